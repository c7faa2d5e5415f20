-- The accounting for minutes: each minute between a symbol's first bar and now either has a bar in ohlcv_1m or lies in
-- a row of ohlcv_1m_gaps, which has the reason.
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
    CONSTRAINT ohlcv_1m_gaps_state_check CHECK (state IN ('open', 'filled', 'quiet', 'unavailable', 'not_recorded'))
);
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_missing_idx ON public.ohlcv_1m_gaps (symbol, start_ts) WHERE state <> 'filled';
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_open_idx ON public.ohlcv_1m_gaps (symbol, start_ts) WHERE state = 'open';
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_not_recorded_idx ON public.ohlcv_1m_gaps (symbol) WHERE state = 'not_recorded';
CREATE INDEX IF NOT EXISTS ohlcv_1m_gaps_filled_idx ON public.ohlcv_1m_gaps (changed_at) WHERE state = 'filled';
COMMENT ON TABLE public.ohlcv_1m_gaps IS
    'Missing minutes, as ranges, with their state: open, filled, quiet, unavailable or not_recorded.';
COMMENT ON COLUMN public.ohlcv_1m_gaps.feed IS
    'The state of the recorder''s stream in these minutes when they were found: alive (no trades, or the exchange is '
    'late), dead, or NULL (no recorder was running).';
COMMENT ON COLUMN public.ohlcv_1m_gaps.state IS
    'open: found, not yet explained; filled: has bars now; quiet: the exchange answered and had no trades; '
    'unavailable: the exchange did not answer; not_recorded: the symbol is no longer in the settings.';

-- The missing minutes of a symbol in a range, cut to the range's whole minutes. Gaps do not overlap, so of the gaps
-- before the range only the last can reach into it; the others are not read.
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
COMMENT ON FUNCTION feature_platform.gaps_between(text, timestamptz, timestamptz) IS
    'The missing minutes of a symbol in a range, cut to it; without filled gaps.';

-- The gaps of a symbol that reach into [from_ts, to_ts), without filled ones. Only one index range is read, as above.
CREATE OR REPLACE FUNCTION feature_platform.gaps_in(of_symbol text, from_ts timestamptz, to_ts timestamptz)
    RETURNS SETOF public.ohlcv_1m_gaps
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT g.*
    FROM public.ohlcv_1m_gaps g
    WHERE g.symbol = of_symbol AND g.state <> 'filled' AND g.end_ts > from_ts AND g.start_ts < to_ts
      AND g.start_ts >= coalesce((SELECT p.start_ts FROM public.ohlcv_1m_gaps p
                                  WHERE p.symbol = of_symbol AND p.state <> 'filled' AND p.start_ts <= from_ts
                                  ORDER BY p.start_ts DESC LIMIT 1), from_ts);
END;
COMMENT ON FUNCTION feature_platform.gaps_in(text, timestamptz, timestamptz) IS
    'The gaps of a symbol that reach into a range; without filled gaps.';

-- The gaps that the exchange answered for: without trades, or so young that their bars may still be published.
CREATE OR REPLACE VIEW feature_platform.answered_gap AS
SELECT g.symbol, g.start_ts, g.end_ts
FROM public.ohlcv_1m_gaps g
WHERE g.state <> 'filled' AND (g.state = 'quiet' OR (g.state = 'open' AND g.attempts > 0 AND g.last_error IS NULL));
COMMENT ON VIEW feature_platform.answered_gap IS 'The gaps that the exchange answered for; it had no bars of them.';

-- The minutes of each symbol that are accounted for: [since_ts, until_ts).
CREATE TABLE IF NOT EXISTS feature_platform.gap_watermark (
    symbol   text COLLATE "C" PRIMARY KEY,
    since_ts timestamptz NOT NULL,
    until_ts timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE feature_platform.gap_watermark IS 'The minutes of each symbol that are accounted for.';

-- Minutes whose bars changed. The triggers on ohlcv_1m write one row a statement, in the writer's own transaction; the
-- accounting deletes the rows that it has processed. A record becomes visible together with its change, so the tick
-- that reads the record also sees the change, however late its transaction commits and however old its snapshot is. In
-- every snapshot, a minute between since_ts and until_ts without a record here either has a bar or is listed in
-- ohlcv_1m_gaps.
CREATE TABLE IF NOT EXISTS feature_platform.bar_change (
    id      bigint        PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    -- by position: the symbol, and the outermost changed bars of one of its UTC days
    symbols text[] COLLATE "C" NOT NULL,
    first   timestamptz[] NOT NULL,
    last    timestamptz[] NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE feature_platform.bar_change IS 'Minutes whose bars changed since they were last accounted for.';

CREATE OR REPLACE VIEW feature_platform.changed_minutes AS
SELECT c.symbol, range_agg(tstzrange(feature_platform.bucket_of(c.first),
                                     feature_platform.bucket_of(c.last) + interval '1 minute')) AS minutes
FROM feature_platform.bar_change b CROSS JOIN LATERAL unnest(b.symbols, b.first, b.last) AS c (symbol, first, last)
GROUP BY c.symbol;
COMMENT ON VIEW feature_platform.changed_minutes IS
    'By symbol: the minutes whose bars changed since they were last accounted for.';

-- The sequence has a value once this database accounts for minutes. Until then the triggers record no changes, so that
-- bar_change does not grow where no process reads it. It is a sequence because its value is visible to every
-- transaction at once, independent of snapshots.
CREATE SEQUENCE IF NOT EXISTS feature_platform.gap_accounting;
COMMENT ON SEQUENCE feature_platform.gap_accounting IS 'Has a value once minutes are accounted for.';

-- One row while transactions may be open that wrote bars before the accounting began, and so left no record. When they
-- have ended, all history is accounted for once more. `xid` is newer than all of them; NULL: not assigned yet.
CREATE TABLE IF NOT EXISTS feature_platform.gap_beginning (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    xid      xid8
);
COMMENT ON TABLE feature_platform.gap_beginning IS
    'Whether writers from before the first accounting may still be open.';

CREATE OR REPLACE FUNCTION feature_platform.begin_accounting() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_sequence_last_value('feature_platform.gap_accounting') IS NULL THEN
        PERFORM nextval('feature_platform.gap_accounting');
        INSERT INTO feature_platform.gap_beginning DEFAULT VALUES ON CONFLICT (only_one) DO UPDATE SET xid = NULL;
        RETURN;
    END IF;
    -- A restored dump may hold the number of another server, which is newer than all of this server.
    DELETE FROM feature_platform.gap_beginning g
    WHERE g.xid <= pg_snapshot_xmin(pg_current_snapshot()) OR g.xid >= pg_snapshot_xmax(pg_current_snapshot());
    IF FOUND THEN
        PERFORM feature_platform.recheck_gaps();
    END IF;
    -- Assigned in a later transaction than the one that set the sequence, so every writer without a record has an older
    -- xid.
    UPDATE feature_platform.gap_beginning g SET xid = pg_current_xact_id() WHERE g.xid IS NULL;
END
$$;
COMMENT ON FUNCTION feature_platform.begin_accounting() IS
    'Makes the triggers record changes from now on, and rechecks history after writers that began before.';

-- Give a part of one gap another state; the rest of the gap keeps its state.
CREATE OR REPLACE FUNCTION feature_platform.split_gap(gap public.ohlcv_1m_gaps, part tstzmultirange, part_state text)
    RETURNS void
    LANGUAGE sql VOLATILE
BEGIN ATOMIC
    DELETE FROM public.ohlcv_1m_gaps g WHERE g.id = (gap).id;
    INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, state, found_at, attempts, feed)
    SELECT (gap).symbol, lower(r), upper(r), part_state, (gap).found_at, (gap).attempts, (gap).feed
    FROM unnest(tstzmultirange(tstzrange((gap).start_ts, (gap).end_ts)) * part) AS r;
    INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, state, found_at, changed_at, attempts, next_attempt_at,
                                      last_error, feed)
    SELECT (gap).symbol, lower(r), upper(r), (gap).state, (gap).found_at, (gap).changed_at, (gap).attempts,
           (gap).next_attempt_at, (gap).last_error, (gap).feed
    FROM unnest(tstzmultirange(tstzrange((gap).start_ts, (gap).end_ts)) - part) AS r;
END;
COMMENT ON FUNCTION feature_platform.split_gap(public.ohlcv_1m_gaps, tstzmultirange, text) IS
    'Gives a part of one gap another state.';

-- Bring the gaps of one symbol in line with its bars over these minutes: a listed minute with a bar becomes `filled`, a
-- minute without a bar that is not listed becomes `open` (`not_recorded` where its symbol was no longer recorded), all
-- others stay.
CREATE OR REPLACE FUNCTION feature_platform.account_minutes(account_symbol text, minutes tstzmultirange) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- planning for one symbol costs more the more chunks there are
    SET enable_seqscan = off    -- index look-ups, also before there are statistics
    SET jit = off               -- before 18 a disabled scan counts 1e10, and compiling takes longer than the statement
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    listed record;
BEGIN
    FOR listed IN
        SELECT (array_agg(g))[1] AS gap, range_agg(present.minutes) AS present
        FROM unnest(minutes) AS r
        CROSS JOIN LATERAL feature_platform.gaps_in(account_symbol, lower(r), upper(r)) AS g
        CROSS JOIN LATERAL (
            SELECT range_agg(tstzrange(feature_platform.bucket_of(b.ts),
                                       feature_platform.bucket_of(b.ts) + minute)) AS minutes
            FROM public.ohlcv_1m b
            WHERE b.symbol = account_symbol AND b.ts >= greatest(g.start_ts, lower(r))
                AND b.ts < least(g.end_ts, upper(r))
              AND b.ts >= lower(minutes) AND b.ts < upper(minutes)
        ) AS present
        WHERE present.minutes IS NOT NULL
        GROUP BY g.id
    LOOP
        PERFORM feature_platform.split_gap(listed.gap, listed.present, 'filled');
    END LOOP;

    WITH step AS (
        -- Between a bar and the next one, and towards both ends.
        SELECT b.bucket, lag(b.bucket + minute, 1, lower(r)) OVER (PARTITION BY r ORDER BY b.bucket) AS after_previous
        FROM unnest(minutes) AS r
        CROSS JOIN LATERAL (
            SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
            WHERE b.symbol = account_symbol AND b.ts >= lower(r) AND b.ts < upper(r)
              AND b.ts >= lower(minutes) AND b.ts < upper(minutes)
            UNION ALL SELECT upper(r)
        ) AS b
    ), missing AS (
        SELECT range_agg(tstzrange(s.after_previous, s.bucket)) AS minutes FROM step s WHERE s.bucket > s.after_previous
    ), known AS (
        SELECT range_agg(tstzrange(g.start_ts, g.end_ts)) AS minutes
        FROM unnest(minutes) AS r CROSS JOIN LATERAL feature_platform.gaps_in(account_symbol, lower(r), upper(r)) AS g
    ), fresh AS MATERIALIZED (
        SELECT lower(f.part) AS start_ts, upper(f.part) AS end_ts, nullif(f.feed, 'not_recorded') AS feed, now.state,
            before.id AS follows
        FROM missing m CROSS JOIN known k
        CROSS JOIN LATERAL unnest(m.minutes - coalesce(k.minutes, '{}')) AS r
        CROSS JOIN LATERAL feature_platform.feed_in(account_symbol, r) AS f
        CROSS JOIN LATERAL (SELECT CASE WHEN f.feed = 'not_recorded' THEN 'not_recorded'
                            ELSE 'open' END AS state) AS now
        LEFT JOIN LATERAL (
            SELECT p.* FROM public.ohlcv_1m_gaps p
            WHERE p.symbol = account_symbol AND p.state <> 'filled' AND p.start_ts < lower(f.part)
            ORDER BY p.start_ts DESC LIMIT 1
        ) AS before ON before.state = now.state AND before.end_ts = lower(f.part) AND before.feed IS NOT DISTINCT
            FROM nullif(f.feed, 'not_recorded')
    ), grown AS (
        -- A gap that continues stays one gap.
        UPDATE public.ohlcv_1m_gaps g SET end_ts = f.end_ts, changed_at = feature_platform.clock()
        FROM fresh f WHERE g.id = f.follows
    )
    INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, state, feed)
    SELECT account_symbol, f.start_ts, f.end_ts, f.state, f.feed FROM fresh f WHERE f.follows IS NULL
        ORDER BY f.start_ts;
END
$$;
COMMENT ON FUNCTION feature_platform.account_minutes(text, tstzmultirange) IS
    'Brings the gaps of one symbol in line with its bars.';

-- One tick of the accounting: the minutes whose bars changed, then the minutes that closed since the last tick. Gaps
-- without a new bar are not read, however many are open. The bars of minutes younger than `grace` may still arrive; a
-- later tick accounts for these minutes. A long history is accounted for in parts of `budget` minutes a tick, symbols
-- with few minutes first, so that the live minute does not wait for it. Return the number of open gaps.
CREATE OR REPLACE FUNCTION feature_platform.find_gaps(grace interval DEFAULT '2 minutes', budget bigint DEFAULT 200000)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- as in account_minutes
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    until CONSTANT timestamptz := feature_platform.bucket_of(feature_platform.clock() - grace);
    from_ts timestamptz;
    now_minutes tstzmultirange;
    part record;
    ended record;
BEGIN
    PERFORM FROM feature_platform.mutex m WHERE m.name = 'gaps' FOR UPDATE;     -- one accounting at a time
    PERFORM feature_platform.begin_accounting();

    -- A symbol may have been removed from the settings, or added again, after its minutes were listed.
    FOR ended IN
        SELECT g AS gap, tstzmultirange(tstzrange(feature_platform.bucket_of(h.state_at), NULL)) AS minutes
        FROM feature_platform.heartbeat h
        CROSS JOIN LATERAL feature_platform.gaps_in(h.symbol, feature_platform.bucket_of(h.state_at), 'infinity') AS g
        WHERE h.state = 'not_recorded' AND g.state = 'open'
    LOOP
        PERFORM feature_platform.split_gap(ended.gap, ended.minutes, 'not_recorded');
    END LOOP;
    UPDATE public.ohlcv_1m_gaps g SET state = 'open', changed_at = feature_platform.clock(), next_attempt_at = NULL
    FROM feature_platform.heartbeat h
    WHERE g.state = 'not_recorded' AND h.symbol = g.symbol AND h.state <> 'not_recorded';

    INSERT INTO feature_platform.gap_watermark AS w (symbol, since_ts, until_ts)
    SELECT s.symbol, first.bucket, first.bucket
    FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS s
    CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
                        WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first
    WHERE NOT EXISTS (SELECT FROM feature_platform.gap_watermark w WHERE w.symbol = s.symbol)
    ON CONFLICT DO NOTHING;

    -- The changed minutes between the first bar and the watermark, and those that are listed: an exchange may have
    -- answered for minutes beyond the watermark, or of a symbol without bars. The other changed minutes lie beyond the
    -- watermark; the tick that moves the watermark there sees the change.
    FOR part IN
        WITH taken AS (
            DELETE FROM feature_platform.bar_change RETURNING symbols, first, last
        ), changed AS (
            SELECT c.symbol COLLATE "C" AS symbol,
                   range_agg(tstzrange(feature_platform.bucket_of(c.first),
                                       feature_platform.bucket_of(c.last) + minute)) AS minutes
            FROM taken t CROSS JOIN LATERAL unnest(t.symbols, t.first, t.last) AS c (symbol, first, last)
            GROUP BY 1
        ), begins AS (
            SELECT c.symbol, c.minutes, w.since_ts, w.until_ts,
                   CASE WHEN lower(c.minutes) < w.since_ts
                        THEN least(w.since_ts, (SELECT feature_platform.bucket_of(b.ts) FROM public.ohlcv_1m b
                                                WHERE b.symbol = c.symbol ORDER BY b.ts LIMIT 1))
                        ELSE w.since_ts END AS first_ts
            FROM changed c LEFT JOIN feature_platform.gap_watermark w ON w.symbol = c.symbol
        ), wanted AS MATERIALIZED (
            SELECT n.symbol, n.since_ts, n.first_ts,
                   CASE WHEN n.until_ts IS NULL THEN '{}'
                        ELSE (n.minutes + tstzmultirange(tstzrange(n.first_ts, n.since_ts)))
                             * tstzmultirange(tstzrange(n.first_ts, n.until_ts)) END
                   + coalesce(n.minutes * (
                        SELECT range_agg(tstzrange(g.start_ts, g.end_ts))
                        FROM feature_platform.gaps_in(n.symbol, greatest(lower(n.minutes), n.until_ts),
                                                      upper(n.minutes)) AS g), '{}') AS minutes
            FROM begins n
        ), sized AS (
            SELECT w.*, (SELECT sum(extract(epoch FROM upper(r) - lower(r)) / 60)::bigint
                         FROM unnest(w.minutes) AS r) AS size
            FROM wanted w WHERE w.minutes <> '{}'
        )
        SELECT s.*, budget - sum(s.size) OVER (ORDER BY s.size, s.symbol) + s.size AS allowed,
               (SELECT true FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1) AS has_bars
        FROM sized s
    LOOP
        IF part.has_bars IS NULL THEN   -- without a first bar there are no minutes to account for
            DELETE FROM public.ohlcv_1m_gaps g WHERE g.symbol = part.symbol AND g.state <> 'filled';
            DELETE FROM feature_platform.gap_watermark w WHERE w.symbol = part.symbol;
            CONTINUE;
        END IF;
        IF part.first_ts < part.since_ts THEN     -- older history
            UPDATE feature_platform.gap_watermark w SET since_ts = part.first_ts WHERE w.symbol = part.symbol;
        END IF;
        now_minutes := CASE WHEN part.size <= part.allowed THEN part.minutes
                            WHEN part.allowed > 0 THEN feature_platform.newest_minutes(part.minutes,
                                part.allowed::bigint)
                            ELSE '{}' END;
        PERFORM feature_platform.account_minutes(part.symbol, now_minutes);
        INSERT INTO feature_platform.bar_change (symbols, first, last)
        SELECT array_agg(part.symbol), array_agg(lower(r)), array_agg(upper(r) - minute)
        FROM unnest(part.minutes - now_minutes) AS r HAVING count(*) > 0;
    END LOOP;

    -- The minutes after the watermarks: a symbol with a bar in every minute needs only a count.
    from_ts := (SELECT min(w.until_ts) FROM feature_platform.gap_watermark w);
    FOR part IN
        SELECT w.symbol, w.until_ts AS lo, next.hi,
               present.minutes = extract(epoch FROM next.hi - w.until_ts) / 60 AS complete
        FROM (SELECT w.*, sum(least(extract(epoch FROM until - w.until_ts) / 60, budget))
                              OVER (ORDER BY w.until_ts DESC, w.symbol) AS so_far
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
COMMENT ON FUNCTION feature_platform.find_gaps(interval, bigint) IS
    'One tick of the accounting for minutes; returns the number of open gaps.';

-- The number of minutes older than `grace` that the next ticks have to account for: 0 when the list of gaps is
-- complete.
CREATE OR REPLACE FUNCTION feature_platform.minutes_to_account(grace interval DEFAULT '2 minutes') RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH target AS MATERIALIZED (
        SELECT feature_platform.bucket_of(feature_platform.clock() - grace) AS until
    ), ahead AS (
        SELECT greatest(t.until - w.until_ts, '0') AS span FROM feature_platform.gap_watermark w CROSS JOIN target t
        UNION ALL
        SELECT greatest(t.until - first.bucket, '0')
        FROM target t
        CROSS JOIN (SELECT DISTINCT k.symbol FROM feature_platform.known_symbol k
                    WHERE NOT EXISTS (SELECT FROM feature_platform.gap_watermark w WHERE w.symbol = k.symbol)) AS s
        CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
                            WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first
        UNION ALL
        SELECT upper(r) - lower(r)
        FROM feature_platform.changed_minutes c
        JOIN feature_platform.gap_watermark w ON w.symbol = c.symbol
        CROSS JOIN LATERAL unnest(c.minutes * tstzmultirange(tstzrange(NULL, w.until_ts))) AS r
    )
    SELECT coalesce(sum(extract(epoch FROM a.span)) / 60, 0)::bigint FROM ahead a;
END;
COMMENT ON FUNCTION feature_platform.minutes_to_account(interval) IS
    'The number of minutes that the next ticks have to account for.';

-- The nightly proof: make the next ticks account for all history again, in the parts of find_gaps().
CREATE OR REPLACE FUNCTION feature_platform.recheck_gaps() RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT feature_platform.find_symbols();
    INSERT INTO feature_platform.bar_change (symbols, first, last)
    SELECT array_agg(w.symbol), array_agg(w.since_ts), array_agg(w.until_ts - interval '1 minute')
    FROM feature_platform.gap_watermark w WHERE w.since_ts < w.until_ts HAVING count(*) > 0;
END;
COMMENT ON FUNCTION feature_platform.recheck_gaps() IS
    'Makes the next ticks of find_gaps() account for all history again.';

-- Record that the exchange answered for these minutes: a minute without a bar had no trades, once it is as old as
-- `settled`. The bar of a younger minute may still be published, so that minute stays open.
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
    PERFORM FROM feature_platform.mutex m WHERE m.name = 'gaps' FOR UPDATE;
    PERFORM feature_platform.begin_accounting();
    PERFORM feature_platform.account_minutes(answered_symbol, tstzmultirange(answered));
    FOR gap IN
        SELECT g.* FROM feature_platform.gaps_in(answered_symbol, lower(answered), upper(answered)) AS g
        WHERE g.state IN ('open', 'unavailable', 'not_recorded')
        ORDER BY g.start_ts
    LOOP
        PERFORM feature_platform.split_gap(gap, old_enough, 'quiet');
    END LOOP;
    -- A minute that is too young is requested again soon, since the symbol may trade again. An answer is not a failure,
    -- so it resets the count of failed attempts.
    UPDATE public.ohlcv_1m_gaps g
    SET attempts = 1, next_attempt_at = feature_platform.clock() + interval '4 minutes', last_error = NULL
    WHERE g.id IN (SELECT i.id FROM feature_platform.gaps_in(answered_symbol, lower(answered), upper(answered)) AS i)
      AND g.state = 'open';
END
$$;
COMMENT ON FUNCTION feature_platform.gap_answered(text, timestamptz, timestamptz, interval) IS
    'Records that the exchange answered for a range of minutes.';
