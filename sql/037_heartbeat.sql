-- The recorder's state by symbol. It distinguishes a symbol without trades from a dead stream, and lists the recorded
-- symbols.
CREATE TABLE IF NOT EXISTS feature_platform.heartbeat (
    symbol        text COLLATE "C" PRIMARY KEY,
    state         text        NOT NULL,
    state_at      timestamptz NOT NULL,     -- begin of this state
    first_at      timestamptz NOT NULL,     -- first subscription by a recorder
    connected_at  timestamptz,              -- begin of the present connection
    update_at     timestamptz,              -- last update of this symbol
    bar_at        timestamptz,              -- newest minute that came by the stream
    beat_at       timestamptz NOT NULL,     -- last write of this row
    rejected      bigint      NOT NULL DEFAULT 0,
    last_error    text,
    last_error_at timestamptz,
    exchange      text        NOT NULL DEFAULT '',
    not_live_since timestamptz,             -- end of the last `live` state; NULL while live
    CONSTRAINT heartbeat_state_check CHECK (state IN ('live', 'catching_up', 'down', 'stopped', 'not_recorded'))
) WITH (fillfactor = 50);
COMMENT ON TABLE feature_platform.heartbeat IS 'The state of each symbol''s stream, as the recorder last wrote it.';
COMMENT ON COLUMN feature_platform.heartbeat.state IS
    'live: updates arrive and no minute is missing; catching_up: updates arrive and missed minutes are requested; '
    'down: no updates; stopped: the recorder ended in order; not_recorded: the symbol was removed from the settings.';
COMMENT ON COLUMN feature_platform.heartbeat.exchange IS 'The exchange of the symbol, by ccxt''s id.';
COMMENT ON COLUMN feature_platform.heartbeat.rejected IS
    'The number of rejected rows of the stream since the recorder started.';

-- The times without updates of an exchange, with the reason; kept for 30 days.
CREATE TABLE IF NOT EXISTS feature_platform.feed_outage (
    id      bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    from_at timestamptz NOT NULL,
    to_at   timestamptz NOT NULL,
    reason  text        NOT NULL,
    exchange text       NOT NULL DEFAULT '',    -- empty: every exchange
    CONSTRAINT feed_outage_range_check CHECK (from_at <= to_at)
);
CREATE INDEX IF NOT EXISTS feed_outage_to_idx ON feature_platform.feed_outage (to_at);
COMMENT ON TABLE feature_platform.feed_outage IS 'The times without updates of an exchange, with the reason.';

-- Split minutes by the state of the stream: `alive` where it was connected all the time, `dead` where it was not,
-- `not_recorded` where the symbol was no longer recorded, NULL where no recorder was running yet.
CREATE OR REPLACE FUNCTION feature_platform.feed_in(feed_symbol text, minutes tstzrange, OUT part tstzrange,
                                                    OUT feed text) RETURNS SETOF record
    LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH beat AS (
        SELECT h.exchange, feature_platform.bucket_of(h.first_at) AS since,
               CASE WHEN h.state = 'not_recorded' THEN feature_platform.bucket_of(h.state_at) END AS until,
               CASE WHEN h.state IN ('down', 'stopped') THEN least(h.state_at, h.beat_at)
                    WHEN h.state <> 'not_recorded' AND h.beat_at < feature_platform.clock() - interval '1 minute'
                        THEN h.beat_at END AS silent_from
        FROM feature_platform.heartbeat h WHERE h.symbol = feed_symbol
    ), known AS (
        SELECT tstzmultirange(minutes * tstzrange(b.since, CASE WHEN b.until IS NOT NULL
                                                  THEN greatest(b.since, b.until) END)) AS span FROM beat b
    ), dead AS (
        SELECT range_agg(tstzrange(feature_platform.bucket_of(o.from_at), feature_platform.bucket_of(o.to_at)
                                   + interval '1 minute')) AS span
        FROM (SELECT o.from_at, o.to_at FROM feature_platform.feed_outage o
              WHERE o.to_at >= lower(minutes) AND o.from_at < upper(minutes)
                AND (o.exchange = '' OR o.exchange = (SELECT b.exchange FROM beat b))
              UNION ALL
              SELECT b.silent_from, upper(minutes) FROM beat b WHERE b.silent_from < upper(minutes)) AS o
    ), parted AS (
        SELECT coalesce(k.span * d.span, '{}') AS dead, coalesce(k.span - coalesce(d.span, '{}'), '{}') AS alive,
               coalesce((SELECT tstzmultirange(minutes * tstzrange(greatest(b.since, b.until), NULL)) FROM beat b
                         WHERE b.until IS NOT NULL),
                        '{}') AS ended
        FROM (SELECT) AS one LEFT JOIN known k ON true LEFT JOIN dead d ON true
    )
    SELECT r, 'alive' FROM parted p CROSS JOIN LATERAL unnest(p.alive) AS r
    UNION ALL SELECT r, 'dead' FROM parted p CROSS JOIN LATERAL unnest(p.dead) AS r
    UNION ALL SELECT r, 'not_recorded' FROM parted p CROSS JOIN LATERAL unnest(p.ended) AS r
    UNION ALL SELECT r, NULL FROM parted p CROSS
        JOIN LATERAL unnest(tstzmultirange(minutes) - p.alive - p.dead - p.ended) AS r;
END;
COMMENT ON FUNCTION feature_platform.feed_in(text, tstzrange) IS 'Splits minutes by the state of the stream in them.';

-- The open gaps that may be requested now: of these symbols, and of symbols of the same exchanges that are no longer
-- recorded. The exchange still has to explain the minutes in which these were recorded. There is one row for each UTC
-- day of a gap: its minutes [start_ts, end_ts) of that day. The gap itself starts at gap_start.
CREATE OR REPLACE FUNCTION feature_platform.due_gaps(of_symbols text[])
    RETURNS TABLE (symbol text, day timestamptz, start_ts timestamptz, end_ts timestamptz, gap_start timestamptz,
                   found_at timestamptz, attempts integer, next_attempt_at timestamptz)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT g.symbol, day.first, greatest(g.start_ts, day.first), least(g.end_ts, day.first + interval '24 hours'),
           g.start_ts, g.found_at, g.attempts, g.next_attempt_at
    FROM public.ohlcv_1m_gaps g
    CROSS JOIN LATERAL generate_series(date_bin('24 hours', g.start_ts, '1970-01-01 00:00+00'),
                                       g.end_ts - interval '1 minute', interval '24 hours') AS day (first)
    WHERE g.state = 'open' AND (g.next_attempt_at IS NULL OR g.next_attempt_at <= feature_platform.clock())
      AND (g.symbol = ANY (of_symbols)
           OR g.symbol IN (SELECT h.symbol FROM feature_platform.heartbeat h
                           WHERE h.state = 'not_recorded'
                             AND h.exchange IN (SELECT r.exchange FROM feature_platform.heartbeat r
                                                WHERE r.symbol = ANY (of_symbols) AND r.state <> 'not_recorded')));
END;
COMMENT ON FUNCTION feature_platform.due_gaps(text[]) IS
    'The open gaps that may be requested now, of these symbols and of others of their exchanges, split by UTC day.';

-- Record that the exchange did not answer for these minutes. The retries wait longer each time (1, 2, 4 ... minutes
-- with jitter, at most an hour, and at least the exchange's own retry_after); after max_attempts the minutes become
-- `unavailable`, or `not_recorded` where their symbol is no longer recorded. Often the exchange does not have such a
-- symbol any more; if it returns to the settings, its minutes become `open` again.
CREATE OR REPLACE FUNCTION feature_platform.gap_failed(
    failed_symbol text, from_ts timestamptz, to_ts timestamptz, error text, max_attempts integer DEFAULT 10,
    retry_after interval DEFAULT '0') RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE public.ohlcv_1m_gaps g
    SET attempts = g.attempts + 1, last_error = gap_failed.error, changed_at = feature_platform.clock(),
        state = CASE WHEN g.attempts + 1 < max_attempts THEN 'open'
                     WHEN EXISTS (SELECT FROM feature_platform.heartbeat h
                                  WHERE h.symbol = g.symbol AND h.state = 'not_recorded') THEN 'not_recorded'
                     ELSE 'unavailable' END,
        next_attempt_at = CASE WHEN g.attempts + 1 < max_attempts
            THEN feature_platform.clock() + greatest(
                retry_after, (0.5 + random()) * least(interval '1 minute' * power(2, least(g.attempts, 6)),
                                                      interval '1 hour')) END
    WHERE g.id IN (SELECT i.id FROM feature_platform.gaps_in(failed_symbol, from_ts, to_ts) AS i) AND g.state = 'open';
END;
COMMENT ON FUNCTION feature_platform.gap_failed(text, timestamptz, timestamptz, text, integer, interval) IS
    'Records that the exchange did not answer for a range of minutes.';
