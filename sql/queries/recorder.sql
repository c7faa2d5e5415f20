-- Statements of the recorder: bars of streams and heartbeats.

-- recorder_store --
-- Store bars of a stream, of any symbols, none twice: new bars, and corrections of earlier bars of a stream. Bars of
-- REST or of a file are not changed; if they differ, symbol and time are returned, so that they are requested again.
WITH incoming AS (
    SELECT symbol COLLATE "C" AS symbol, '1970-01-01 00:00+00'::timestamptz + us * interval '1 microsecond' AS ts, us,
        open, high, low, close, vol
      FROM unnest(%(symbol)s::text[], %(ts)s::bigint[], %(open)s::double precision[], %(high)s::double precision[],
                  %(low)s::double precision[], %(close)s::double precision[], %(vol)s::double precision[])
           AS bar (symbol, us, open, high, low, close, vol)
), differing AS MATERIALIZED (
    SELECT i.*, o.source
      FROM incoming i
      -- One look-up in the primary key for each bar, with any statistics; the range excludes chunks.
      LEFT JOIN LATERAL (
          SELECT b.* FROM public.ohlcv_1m b
           WHERE b.symbol = i.symbol AND b.ts = i.ts AND b.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
           LIMIT 1
      ) AS o ON true
     WHERE o.symbol IS NULL
        OR (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.vol)
), changed AS (
    INSERT INTO public.ohlcv_1m AS b (symbol, ts, open, high, low, close, vol, source)
    SELECT d.symbol, d.ts, d.open, d.high, d.low, d.close, d.vol, 'stream'
      FROM differing d WHERE d.source IS NULL OR d.source = 'stream'
     ORDER BY d.symbol, d.ts
    ON CONFLICT (symbol, ts) DO UPDATE
       SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
           vol = excluded.vol, inserted_at = excluded.inserted_at
     WHERE b.source = 'stream'
       AND (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM
           (excluded.open, excluded.high, excluded.low, excluded.close, excluded.vol)
    RETURNING b.xmax = 0 AS is_new
)
SELECT (SELECT count(*) FILTER (WHERE is_new) FROM changed), (SELECT count(*) FILTER (WHERE NOT is_new) FROM changed),
       coalesce(array_agg(d.symbol), '{}'), coalesce(array_agg(d.us), '{}')
  FROM differing d WHERE d.source <> 'stream';

-- recorder_newest --
-- The time of a symbol's newest bar before a time.
SELECT ts FROM public.ohlcv_1m WHERE symbol = %(symbol)s AND ts < %(before)s ORDER BY ts DESC LIMIT 1;

-- heartbeat_begin --
-- Store that a recorder starts with these symbols: the outage since the last heartbeat of the recorder before it, and
-- the symbols that are no longer recorded.
WITH last AS (
    SELECT max(beat_at) AS at FROM feature_platform.heartbeat WHERE state <> 'not_recorded'
), outage AS (
    INSERT INTO feature_platform.feed_outage (from_at, to_at, reason)
    SELECT last.at, feature_platform.clock(), 'no recorder was running' FROM last
        WHERE last.at < feature_platform.clock()
), ended AS (
    UPDATE feature_platform.heartbeat SET state = 'not_recorded', state_at = beat_at, connected_at = NULL
     WHERE symbol <> ALL (%(symbols)s) AND state <> 'not_recorded'
)
INSERT INTO feature_platform.heartbeat AS h (symbol, exchange, state, state_at, first_at, beat_at, not_live_since)
SELECT symbol, exchange, 'down', now.at, now.at, now.at, now.at
  FROM unnest(%(symbols)s::text[], %(exchanges)s::text[]) AS s (symbol, exchange) CROSS
      JOIN feature_platform.clock() AS now (at)
 ORDER BY symbol
ON CONFLICT (symbol) DO UPDATE
   SET exchange = excluded.exchange, state = 'down', state_at = excluded.state_at, connected_at = NULL,
       beat_at = excluded.beat_at,
       rejected = 0, first_at = CASE WHEN h.state = 'not_recorded' THEN excluded.first_at ELSE h.first_at END,
       -- The start of a recorder does not end the time without a live stream: it may be one of many.
       not_live_since = CASE WHEN h.state = 'not_recorded' THEN excluded.not_live_since
                             ELSE coalesce(h.not_live_since, h.beat_at) END;

-- heartbeat_outages --
-- Store outages that have ended, and delete those of more than 30 days ago.
WITH gone AS (
    DELETE FROM feature_platform.feed_outage WHERE to_at < feature_platform.clock() - interval '30 days'
)
INSERT INTO feature_platform.feed_outage (from_at, to_at, reason, exchange)
SELECT least(from_at, to_at), to_at, reason, exchange
  FROM unnest(%(start)s::timestamptz[], %(end)s::timestamptz[], %(reason)s::text[], %(exchange)s::text[]) AS o (from_at,
      to_at, reason, exchange);

-- heartbeat_write --
-- Store the state of each symbol's stream.
UPDATE feature_platform.heartbeat h
   SET state = b.state, state_at = b.state_at, connected_at = b.connected_at,
       update_at = coalesce(b.update_at, h.update_at),
       bar_at = coalesce(b.bar_at, h.bar_at), rejected = b.rejected, last_error = b.last_error,
           last_error_at = b.last_error_at,
       beat_at = feature_platform.clock(),
       not_live_since = CASE WHEN b.state <> 'live' THEN coalesce(h.not_live_since, b.state_at) END
  FROM unnest(%(symbol)s::text[], %(state)s::text[], %(state_at)s::timestamptz[], %(connected_at)s::timestamptz[],
              %(update_at)s::timestamptz[], %(bar_at)s::timestamptz[], %(rejected)s::bigint[], %(last_error)s::text[],
              %(last_error_at)s::timestamptz[])
       AS b (symbol, state, state_at, connected_at, update_at, bar_at, rejected, last_error, last_error_at)
 WHERE h.symbol = b.symbol;

-- heartbeat_list --
-- The state of each symbol's stream.
SELECT symbol, state, state_at, connected_at, update_at, bar_at, beat_at, rejected, last_error,
       extract(epoch FROM feature_platform.clock() - beat_at)::double precision AS age
  FROM feature_platform.heartbeat ORDER BY symbol;
