-- Every minute is accounted for: between a symbol's first bar and now a minute either has a bar in ohlcv_1m or lies in a row
-- of ohlcv_1m_gaps, which says why.
CREATE TABLE IF NOT EXISTS public.ohlcv_1m_gaps (
    id              bigint           PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    symbol          text COLLATE "C" NOT NULL,
    start_ts        timestamptz      NOT NULL,      -- first missing minute
    end_ts          timestamptz      NOT NULL,      -- first minute after the last missing one
    state           text             NOT NULL DEFAULT 'open',
    found_at        timestamptz      NOT NULL DEFAULT feature_platform.clock(),
    changed_at      timestamptz      NOT NULL DEFAULT feature_platform.clock(),
    attempts        integer          NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,                    -- NULL: at once
    last_error      text,
    feed            text,
    CONSTRAINT ohlcv_1m_gaps_range_check CHECK (start_ts < end_ts),
    CONSTRAINT ohlcv_1m_gaps_state_check CHECK (state IN ('open', 'filled', 'quiet', 'unavailable'))
);
ALTER TABLE public.ohlcv_1m_gaps ADD COLUMN IF NOT EXISTS feed text;    -- of a database that was set up before there was a recorder
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_missing_idx ON public.ohlcv_1m_gaps (symbol, start_ts) WHERE state <> 'filled';
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_open_idx ON public.ohlcv_1m_gaps (symbol, start_ts) WHERE state = 'open';
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_filled_idx ON public.ohlcv_1m_gaps (changed_at) WHERE state = 'filled';
COMMENT ON TABLE public.ohlcv_1m_gaps IS 'Minutes without a bar, as ranges, and why: open, filled, quiet or unavailable.';
COMMENT ON COLUMN public.ohlcv_1m_gaps.feed IS 'What the recorder heard in these minutes when they were found to be missing: alive, all was heard, so that nothing was traded or the venue is late; dead; NULL: no recorder was at work.';
COMMENT ON COLUMN public.ohlcv_1m_gaps.state IS 'open: found, not yet explained; filled: has bars by now; quiet: the venue answered and had no trades; unavailable: the venue would not answer.';

-- What is missing of a symbol in a range, cut to the range's whole minutes. Gaps do not overlap, so that of those before the
-- range only the last can reach into it: the others are not read.
CREATE OR REPLACE FUNCTION feature_platform.gaps_between(of_symbol text, from_ts timestamptz, to_ts timestamptz)
    RETURNS TABLE (symbol text, start_ts timestamptz, end_ts timestamptz, state text, attempts integer,
                   next_attempt_at timestamptz, last_error text)
    LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT g.symbol, cut.start_ts, cut.end_ts, g.state, g.attempts, g.next_attempt_at, g.last_error
    FROM public.ohlcv_1m_gaps g
    CROSS JOIN LATERAL (SELECT greatest(g.start_ts, feature_platform.bucket_of(from_ts)) AS start_ts,
                               least(g.end_ts, feature_platform.bucket_of(to_ts)) AS end_ts) AS cut
    WHERE g.symbol = of_symbol AND g.state <> 'filled' AND cut.start_ts < cut.end_ts AND g.start_ts < to_ts
      AND g.start_ts >= coalesce((SELECT p.start_ts FROM public.ohlcv_1m_gaps p
                                  WHERE p.symbol = of_symbol AND p.state <> 'filled' AND p.start_ts <= from_ts
                                  ORDER BY p.start_ts DESC LIMIT 1), from_ts);
END;
COMMENT ON FUNCTION feature_platform.gaps_between(text, timestamptz, timestamptz) IS 'The gaps of a symbol in a range, cut to it, but for those that were filled.';

-- How far each symbol's minutes are accounted for: every minute of [since_ts, until_ts).
CREATE TABLE IF NOT EXISTS feature_platform.gap_watermark (
    symbol   text COLLATE "C" PRIMARY KEY,
    since_ts timestamptz NOT NULL,
    until_ts timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE feature_platform.gap_watermark IS 'How far each symbol''s minutes are accounted for.';

-- Minutes behind the watermark whose bars came or went since, in the writer's own transaction.
CREATE TABLE IF NOT EXISTS feature_platform.late_change (
    symbol  text COLLATE "C" NOT NULL,
    id      bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
    minutes tstzmultirange   NOT NULL,
    CONSTRAINT late_change_pkey PRIMARY KEY (symbol, id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE feature_platform.late_change IS 'Minutes that were accounted for and whose bars came or went since.';

-- Gives a part of one gap another state; what is left of the gap keeps its own.
CREATE OR REPLACE FUNCTION feature_platform.split_gap(gap public.ohlcv_1m_gaps, part tstzmultirange, part_state text) RETURNS void
    LANGUAGE sql VOLATILE
BEGIN ATOMIC
    DELETE FROM public.ohlcv_1m_gaps g WHERE g.id = (gap).id;
    INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, state, found_at, attempts, feed)
    SELECT (gap).symbol, lower(r), upper(r), part_state, (gap).found_at, (gap).attempts, (gap).feed
    FROM unnest(tstzmultirange(tstzrange((gap).start_ts, (gap).end_ts)) * part) AS r;
    INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, state, found_at, changed_at, attempts, next_attempt_at, last_error, feed)
    SELECT (gap).symbol, lower(r), upper(r), (gap).state, (gap).found_at, (gap).changed_at, (gap).attempts,
           (gap).next_attempt_at, (gap).last_error, (gap).feed
    FROM unnest(tstzmultirange(tstzrange((gap).start_ts, (gap).end_ts)) - part) AS r;
END;
COMMENT ON FUNCTION feature_platform.split_gap(public.ohlcv_1m_gaps, tstzmultirange, text) IS 'Gives a part of one gap another state.';

-- Brings the gaps of one symbol in line with its bars over these minutes: what has bars by now becomes `filled`, what has
-- none and is not listed becomes `open`, everything else stays as it was.
CREATE OR REPLACE FUNCTION feature_platform.account_minutes(account_symbol text, minutes tstzmultirange) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    missing tstzmultirange;
    known tstzmultirange := '{}';
    present tstzmultirange;
    gap public.ohlcv_1m_gaps;
    fresh record;
BEGIN
    -- What lies between a bar and the next one, and towards both ends.
    SELECT coalesce(range_agg(tstzrange(step.after_previous, step.bucket)), '{}') INTO missing
    FROM unnest(minutes) AS r
    CROSS JOIN LATERAL (
        SELECT b.bucket, lag(b.bucket + minute, 1, lower(r)) OVER (ORDER BY b.bucket) AS after_previous
        FROM (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
              WHERE b.symbol = account_symbol AND b.ts >= lower(r) AND b.ts < upper(r)
                AND b.ts >= lower(minutes) AND b.ts < upper(minutes)
              UNION ALL SELECT upper(r)) AS b
    ) AS step
    WHERE step.bucket > step.after_previous;

    FOR gap IN
        SELECT g.* FROM public.ohlcv_1m_gaps g
        WHERE g.symbol = account_symbol AND g.state <> 'filled'
          AND g.end_ts > lower(minutes) AND g.start_ts < upper(minutes)
        ORDER BY g.start_ts
    LOOP
        known := known + tstzmultirange(tstzrange(gap.start_ts, gap.end_ts));
        present := tstzmultirange(tstzrange(gap.start_ts, gap.end_ts)) * minutes - missing;
        IF present <> '{}' THEN
            PERFORM feature_platform.split_gap(gap, present, 'filled');
        END IF;
    END LOOP;

    FOR fresh IN
        SELECT lower(f.part) AS start_ts, upper(f.part) AS end_ts, f.feed
        FROM unnest(missing - known) AS r CROSS JOIN LATERAL feature_platform.feed_in(account_symbol, r) AS f ORDER BY 1
    LOOP
        -- An outage that goes on is one gap.
        UPDATE public.ohlcv_1m_gaps g SET end_ts = fresh.end_ts, changed_at = feature_platform.clock()
        WHERE g.symbol = account_symbol AND g.state = 'open' AND g.end_ts = fresh.start_ts AND g.feed IS NOT DISTINCT FROM fresh.feed;
        IF NOT FOUND THEN
            INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, feed) VALUES (account_symbol, fresh.start_ts, fresh.end_ts, fresh.feed);
        END IF;
    END LOOP;
END
$$;

-- One tick of the accounting, cheap whatever the history: what changed behind the watermarks, what was closed since the last
-- tick, and what is open. Minutes younger than `grace` may still be on their way and are left for a later tick. A symbol's
-- long new history is accounted for in parts, `budget` minutes a tick. Returns how many gaps are open.
CREATE OR REPLACE FUNCTION feature_platform.find_gaps(grace interval DEFAULT '2 minutes', budget bigint DEFAULT 200000)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    until CONSTANT timestamptz := feature_platform.bucket_of(feature_platform.clock() - grace);
    from_ts timestamptz;
    part record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('feature_platform.gaps', 0));    -- one accountant at a time

    INSERT INTO feature_platform.gap_watermark AS w (symbol, since_ts, until_ts)
    SELECT s.symbol, first.bucket, first.bucket
    FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS s
    CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
                        WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first
    WHERE NOT EXISTS (SELECT FROM feature_platform.gap_watermark w WHERE w.symbol = s.symbol)
    ON CONFLICT DO NOTHING;

    -- Behind the watermarks: minutes that lost or gained their bar, older history, and whether open gaps have bars by now.
    FOR part IN
        WITH taken AS (DELETE FROM feature_platform.late_change RETURNING symbol, minutes),
        looked_at AS (
            SELECT t.symbol, t.minutes FROM taken t
            UNION ALL
            SELECT g.symbol, tstzmultirange(tstzrange(g.start_ts, g.end_ts)) FROM public.ohlcv_1m_gaps g WHERE g.state = 'open')
        SELECT l.symbol, range_agg(l.minutes) AS minutes, w.since_ts, w.until_ts,
               (SELECT true FROM public.ohlcv_1m b WHERE b.symbol = l.symbol ORDER BY b.ts DESC LIMIT 1) AS has_bars
        FROM looked_at l JOIN feature_platform.gap_watermark w ON w.symbol = l.symbol
        GROUP BY l.symbol, w.since_ts, w.until_ts
    LOOP
        IF part.has_bars IS NULL THEN   -- no first bar, nothing to account for
            DELETE FROM public.ohlcv_1m_gaps g WHERE g.symbol = part.symbol AND g.state <> 'filled';
            DELETE FROM feature_platform.gap_watermark w WHERE w.symbol = part.symbol;
            CONTINUE;
        END IF;
        IF lower(part.minutes) < part.since_ts THEN     -- older history: the minutes up to what was the first bar, too
            part.minutes := part.minutes + tstzmultirange(tstzrange(lower(part.minutes), part.since_ts));
            UPDATE feature_platform.gap_watermark w SET since_ts = lower(part.minutes) WHERE w.symbol = part.symbol;
        END IF;
        PERFORM feature_platform.account_minutes(part.symbol, part.minutes * tstzmultirange(tstzrange(NULL, part.until_ts)));
    END LOOP;

    -- On from the watermarks: a symbol with a bar in every minute needs no more than a count.
    from_ts := (SELECT min(w.until_ts) FROM feature_platform.gap_watermark w);
    FOR part IN
        SELECT w.symbol, w.until_ts AS lo, next.hi, present.minutes = extract(epoch FROM next.hi - w.until_ts) / 60 AS complete
        FROM (SELECT w.*, sum(least(extract(epoch FROM until - w.until_ts) / 60, budget)) OVER (ORDER BY w.symbol) AS so_far
              FROM feature_platform.gap_watermark w WHERE w.until_ts < until) AS w
        CROSS JOIN LATERAL (SELECT least(until, w.until_ts + budget * minute) AS hi) AS next
        CROSS JOIN LATERAL (SELECT count(DISTINCT feature_platform.bucket_of(b.ts)) AS minutes FROM public.ohlcv_1m b
                            WHERE b.symbol = w.symbol AND b.ts >= w.until_ts AND b.ts < next.hi
                              AND b.ts >= from_ts AND b.ts < until) AS present
        WHERE w.so_far - least(extract(epoch FROM until - w.until_ts) / 60, budget) < budget
    LOOP
        IF NOT part.complete THEN
            PERFORM feature_platform.account_minutes(part.symbol, tstzmultirange(tstzrange(part.lo, part.hi)));
        END IF;
        UPDATE feature_platform.gap_watermark w SET until_ts = part.hi WHERE w.symbol = part.symbol;
    END LOOP;
    RETURN (SELECT count(*) FROM public.ohlcv_1m_gaps g WHERE g.state = 'open');
END
$$;
COMMENT ON FUNCTION feature_platform.account_minutes(text, tstzmultirange) IS 'Brings the gaps of one symbol in line with its bars.';
COMMENT ON FUNCTION feature_platform.find_gaps(interval, bigint) IS 'One tick of the accounting for minutes; returns how many gaps are open.';

-- The nightly proof: looks at all history again, as if nothing had been accounted for yet, in find_gaps' parts.
CREATE OR REPLACE FUNCTION feature_platform.recheck_gaps() RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT feature_platform.find_symbols();
    INSERT INTO feature_platform.late_change (symbol, minutes)
    SELECT w.symbol, tstzmultirange(tstzrange(w.since_ts, w.until_ts))
    FROM feature_platform.gap_watermark w WHERE w.since_ts < w.until_ts ORDER BY w.symbol;
END;
COMMENT ON FUNCTION feature_platform.recheck_gaps() IS 'Has the next find_gaps() look at all history again.';

-- The venue answered for these minutes: what has no bar now had no trades, once it is as old as `settled`; what is younger
-- may still be published and stays open.
CREATE OR REPLACE FUNCTION feature_platform.gap_answered(
    answered_symbol text, from_ts timestamptz, to_ts timestamptz, settled interval DEFAULT '10 minutes') RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answered CONSTANT tstzrange := tstzrange(feature_platform.bucket_of(from_ts), feature_platform.bucket_of(to_ts));
    old_enough CONSTANT tstzmultirange := tstzmultirange(
        answered * tstzrange(NULL, feature_platform.bucket_of(feature_platform.clock() - settled)));
    gap public.ohlcv_1m_gaps;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('feature_platform.gaps', 0));
    PERFORM feature_platform.account_minutes(answered_symbol, tstzmultirange(answered));
    FOR gap IN
        SELECT g.* FROM public.ohlcv_1m_gaps g
        WHERE g.symbol = answered_symbol AND g.state IN ('open', 'unavailable')
          AND g.end_ts > lower(answered) AND g.start_ts < upper(answered)
        ORDER BY g.start_ts
    LOOP
        PERFORM feature_platform.split_gap(gap, old_enough, 'quiet');
    END LOOP;
    -- What is too young to tell is asked for again, and soon: the market may trade again. An answer is no failure: attempts that
    -- fail are counted from here.
    UPDATE public.ohlcv_1m_gaps g
    SET attempts = 1, next_attempt_at = feature_platform.clock() + interval '4 minutes', last_error = NULL
    WHERE g.symbol = answered_symbol AND g.state = 'open' AND g.end_ts > lower(answered) AND g.start_ts < upper(answered);
END
$$;
COMMENT ON FUNCTION feature_platform.gap_answered(text, timestamptz, timestamptz, interval) IS 'Notes that the venue has answered for a range of minutes.';

-- The venue did not answer for these minutes. They are asked for again later and later (1, 2, 4 ... minutes, with jitter, at
-- most an hour, and not before the venue wants to be asked), and given up as `unavailable` after so many attempts.
DROP FUNCTION IF EXISTS feature_platform.gap_failed(text, timestamptz, timestamptz, text, integer);    -- as it was before it knew of retry_after
CREATE OR REPLACE FUNCTION feature_platform.gap_failed(
    failed_symbol text, from_ts timestamptz, to_ts timestamptz, error text, max_attempts integer DEFAULT 10,
    retry_after interval DEFAULT '0') RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE public.ohlcv_1m_gaps g
    SET attempts = g.attempts + 1, last_error = gap_failed.error, changed_at = feature_platform.clock(),
        state = CASE WHEN g.attempts + 1 >= max_attempts THEN 'unavailable' ELSE 'open' END,
        next_attempt_at = CASE WHEN g.attempts + 1 < max_attempts
            THEN feature_platform.clock() + greatest(
                retry_after, (0.5 + random()) * least(interval '1 minute' * power(2, least(g.attempts, 6)), interval '1 hour')) END
    WHERE g.symbol = failed_symbol AND g.state = 'open' AND g.end_ts > from_ts AND g.start_ts < to_ts;
END;
COMMENT ON FUNCTION feature_platform.gap_failed(text, timestamptz, timestamptz, text, integer, interval) IS 'Notes that the venue would not answer for a range of minutes.';
