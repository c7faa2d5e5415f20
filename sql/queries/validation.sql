-- Statements of the checks and of verify: the proof that stored = recomputed.

-- ==== verify.py ====
-- verify_spans --
-- By symbol: the first minute that has a bar or a stored row, the end of the closed minutes, the end of the minutes to
-- compare.
SELECT s.symbol, greatest(date_bin('1 minute', ends.first_ts, '1970-01-01 00:00+00'),
                          feature_platform.features_from()) AS first_bucket, ends.closed,
       greatest(CASE WHEN ends.last_bar IS NOT NULL
                     THEN least(date_bin('1 minute', ends.last_bar, '1970-01-01 00:00+00') + interval '1 minute',
                                ends.closed) END,
                date_bin('1 minute', ends.last_row, '1970-01-01 00:00+00') + interval '1 minute') AS last
  FROM feature_platform.stored_symbol s
 CROSS JOIN LATERAL (
       SELECT least((SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1),
                    (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket
                     LIMIT 1)) AS first_ts,
              (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1) AS last_bar,
              (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC
               LIMIT 1) AS last_row,
              feature_platform.due_until() AS closed
 ) AS ends
 ORDER BY s.symbol;

-- verify_slice --
-- Recompute one symbol's rows from start to end by plain window functions over the bars, and compare them with the
-- stored ones bit for bit. A row that differs and is marked dirty is pending, not wrong. It is one statement, so that
-- bars, rows and marks are of one snapshot.
WITH minute AS MATERIALIZED (
    SELECT date_bin('1 minute', ts, '1970-01-01 00:00+00') AS bucket,
           (array_agg(close ORDER BY ts DESC))[1] AS last_close,
           sum(vol::text::numeric) AS volume,
           max(high) AS high, min(low) AS low,
           CASE WHEN sum(vol) = 0 THEN avg((open + high + low + close) / 4 ORDER BY ts)
                ELSE sum((open + high + low + close) / 4 * vol ORDER BY ts) / sum(vol ORDER BY ts) END AS vwap
      FROM public.ohlcv_1m
     WHERE symbol = %(symbol)s AND ts >= %(start)s::timestamptz - interval '24 hours' AND ts < %(end)s
     GROUP BY 1
), windowed AS (
    SELECT m.*,
           lag(last_close, 1, (SELECT close FROM public.ohlcv_1m
                                WHERE symbol = %(symbol)s AND ts < %(start)s::timestamptz - interval '24 hours'
                                ORDER BY ts DESC LIMIT 1)) OVER (ORDER BY bucket) AS previous_close,
           count(*) OVER one_day AS n, sum(volume) OVER one_day AS total, sum(volume * volume) OVER one_day AS total_sq
      FROM minute m
    WINDOW one_day AS (ORDER BY bucket RANGE BETWEEN interval '1439 minutes' PRECEDING AND CURRENT ROW)
), moments AS (
    SELECT w.*, total::double precision / n AS mean,
        sqrt((n * total_sq - total * total)::double precision) / n AS deviation,
           bucket >= (SELECT date_bin('1 minute', min(ts), '1970-01-01 00:00+00') FROM public.ohlcv_1m
                      WHERE symbol = %(symbol)s)
                     + interval '1439 minutes' AS warm
      FROM windowed w
     WHERE bucket >= %(start)s AND bucket >= feature_platform.features_from() AND bucket < feature_platform.due_until()
), expected AS (
    SELECT bucket, last_close, volume::double precision AS vol, ln(last_close / previous_close) AS log_return,
        n::integer AS n_1d,
           CASE WHEN warm THEN mean END AS ma_vol_1d, CASE WHEN warm THEN deviation END AS std_vol_1d,
           CASE WHEN warm AND deviation > 0 THEN (volume::double precision - mean) / deviation END AS volume_z,
           last_close - vwap AS vwap_gap, 0.5 * ln(high / low) ^ 2 AS parkinson_vol
      FROM moments
), stored AS (
    SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
      FROM public.features_1m
     WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket >= feature_platform.features_from()
         AND bucket < %(end)s
), compared AS MATERIALIZED (
    SELECT coalesce(s.bucket, e.bucket) AS bucket, s, e, s.bucket IS NOT NULL AS is_stored,
           (s.last_close, s.vol, s.log_return, s.n_1d, s.ma_vol_1d, s.std_vol_1d, s.volume_z, s.vwap_gap,
            s.parkinson_vol)
           IS DISTINCT FROM
           (e.last_close, e.vol, e.log_return, e.n_1d, e.ma_vol_1d, e.std_vol_1d, e.volume_z, e.vwap_gap,
            e.parkinson_vol)
           AS differs
      FROM stored s FULL JOIN expected e ON s.bucket = e.bucket
), judged AS MATERIALIZED (
    -- The rows after the day of a mark are only known after its refresh: until then all later rows may be pending.
    -- A row of a minute that is not closed is wrong in any case.
    SELECT c.*, c.bucket < feature_platform.due_until() AND
                EXISTS (SELECT FROM feature_platform.dirty_log l
                         WHERE l.symbol = %(symbol)s
                           AND (l.buckets @> c.bucket OR (NOT l.reach_known
                                                          AND c.bucket >= lower(l.buckets)))) AS pending
      FROM compared c WHERE c.differs
)
SELECT (SELECT count(*) FROM compared WHERE is_stored) AS rows_checked,
       (SELECT count(*) FROM judged WHERE pending) AS pending,
       (SELECT count(*) FROM judged WHERE NOT pending) AS mismatches,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('bucket', to_json(bucket AT TIME ZONE 'UTC') #>> '{}' || 'Z',
                                                     'stored', to_jsonb(s), 'expected', to_jsonb(e)) ORDER BY bucket),
                                                         '[]')
          FROM (SELECT * FROM judged WHERE NOT pending ORDER BY bucket LIMIT %(show)s) AS first) AS examples;

-- verification_state --
-- The position of the rolling verification, the duration of its pass so far, and about the number of minutes of all
-- history.
SELECT v.symbol, v.next_ts::text AS next_ts, v.minutes, v.wrong, feature_platform.clock() - v.started_at AS elapsed,
       (SELECT coalesce(sum(extract(epoch FROM w.until_ts - w.since_ts)) / 60, 0)::bigint
        FROM feature_platform.gap_watermark w) AS total
  FROM feature_platform.verification v;

-- verification_next --
-- The next symbol at or after a position that has minutes to verify, and the start and end of these minutes.
SELECT k.symbol, part.first, span.end_ts AS last
  FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol WHERE symbol >= %(symbol)s) AS k
 CROSS JOIN LATERAL feature_platform.symbol_span(k.symbol) AS span
 CROSS JOIN LATERAL (SELECT CASE WHEN k.symbol = %(symbol)s THEN greatest(span.first_ts, %(next_ts)s::timestamptz)
                     ELSE span.first_ts END AS first) AS part
 WHERE part.first < span.end_ts
 ORDER BY k.symbol LIMIT 1;

-- verification_move --
-- Move the position of the rolling verification; false where another session has moved it.
SELECT feature_platform.verification_move(%(symbol)s, %(next_ts)s::timestamptz, %(to_symbol)s, %(to_ts)s::timestamptz,
                                          %(verified)s, %(wrong)s);


-- ==== validation.py ====
-- Each returns one row: the number of checked things, the number of wrong ones, the first findings, and measures.

-- check_database_ready --
-- Whether this code can use the server, its extensions and the schema.
SELECT count(*) AS checked, count(problem) AS wrong,
       jsonb_agg(jsonb_build_object('problem', problem)) FILTER (WHERE problem IS NOT NULL) AS rows,
       current_setting('server_version') AS server_version, max(timescaledb.version) AS timescaledb_version
  FROM (SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS version) AS timescaledb
 CROSS JOIN LATERAL (VALUES
       (CASE WHEN current_setting('server_version_num')::integer < 150000
             THEN 'the server is PostgreSQL ' || current_setting('server_version') || ': 15 or newer is needed' END),
       (CASE WHEN current_setting('server_encoding') <> 'UTF8'
             THEN 'the database is in ' || current_setting('server_encoding') || ': UTF8 is needed' END),
       (CASE WHEN string_to_array(substring(timescaledb.version FROM '^\d+\.\d+\.\d+'), '.')::integer[] < '{2,26,4}'
             THEN 'TimescaleDB is ' || timescaledb.version || ': 2.26.4 or newer is needed' END),
       (CASE WHEN (SELECT max(version) FROM feature_platform.schema_version) IS DISTINCT FROM %(schema_version)s
             THEN 'the schema has version '
                  || coalesce((SELECT max(version) FROM feature_platform.schema_version)::text, 'none')
                  || ': ' || %(schema_version)s || ' is needed'
             WHEN (SELECT v.hash FROM feature_platform.schema_version v ORDER BY v.version DESC LIMIT 1)
                  IS DISTINCT FROM %(schema_hash)s
             THEN 'the schema was set up from other files of version ' || %(schema_version)s
                  || ': run `feature-platform db apply` of the newest feature_platform' END)
 ) AS condition (problem);

-- check_table --
-- Columns, types and named objects of a table: constraints, indexes and the triggers that record changes.
WITH expected AS (
    SELECT name, type FROM unnest(%(columns)s::text[], %(types)s::text[]) AS e (name, type)
), found AS (
    SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type, attcollation
      FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
), object AS (
    SELECT conname::text AS name, CASE WHEN NOT convalidated THEN 'not valid' END AS problem
      FROM pg_constraint WHERE conrelid = to_regclass(%(table)s)
    UNION ALL
    SELECT c.relname::text, CASE WHEN NOT i.indisvalid THEN 'not valid' END
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass(%(table)s)
    UNION ALL
    SELECT tgname::text, CASE WHEN tgenabled NOT IN ('O', 'A') THEN 'not enabled for every session'
                              WHEN tgfoid::regproc::text NOT LIKE 'feature_platform.mark_dirty%%'
                              THEN 'with another function' END
      FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s)
), judged AS (
    SELECT 'column ' || e.name AS what,
           CASE WHEN f.name IS NULL THEN 'missing'
                WHEN f.type <> e.type THEN f.type || ', not ' || e.type
                WHEN e.name = 'symbol' AND f.attcollation <> '"C"'::regcollation THEN 'not in the collation C'
           END AS problem
      FROM expected e LEFT JOIN found f ON f.name = e.name
    UNION ALL
    SELECT o.name, CASE WHEN count(f.name) = 0 THEN 'missing' ELSE min(f.problem) END
      FROM unnest(%(objects)s::text[]) AS o (name) LEFT JOIN object f ON f.name = o.name
     GROUP BY o.name
    UNION ALL
    SELECT what, problem FROM feature_platform.hazards(to_regclass(%(table)s))
)
SELECT count(*) AS checked, count(problem) AS wrong,
       jsonb_agg(jsonb_build_object('what', what, 'problem', problem)) FILTER (WHERE problem IS NOT NULL) AS rows
  FROM judged;

-- check_bars_fresh --
-- The age of each symbol's newest closed bar, or of the newest later minute that the exchange answered for.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), newest AS (
    SELECT s.symbol, last.bar, greatest(last.bar + interval '1 minute', answered.until) AS until
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bar FROM public.ohlcv_1m b
                          WHERE b.symbol = s.symbol AND b.ts < feature_platform.bucket_of(now.at)
                          ORDER BY b.ts DESC LIMIT 1) AS last
     CROSS JOIN LATERAL (SELECT max(g.end_ts) AS until FROM feature_platform.answered_gap g
                          WHERE g.symbol = s.symbol AND g.start_ts > last.bar) AS answered
     WHERE s.symbol = ANY (%(symbols)s::text[])
), judged AS MATERIALIZED (
    SELECT n.symbol, n.bar, extract(epoch FROM now.at - n.until)::double precision AS age FROM newest n CROSS JOIN now
)
SELECT count(*) AS checked, count(*) FILTER (WHERE age > extract(epoch FROM %(limit)s::interval)) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'newest_bar',
                                            to_char(bar AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'age_seconds', round(age)) ORDER BY age DESC)
          FROM (SELECT * FROM judged WHERE age > extract(epoch FROM %(limit)s::interval) ORDER BY age DESC
                LIMIT %(show)s) AS worst) AS rows,
       max(age) AS worst_age_seconds, min(age) AS best_age_seconds
  FROM judged;

-- check_no_future_bars --
-- Symbols with a bar of a minute that has not begun; by the index of bars.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), judged AS MATERIALIZED (
    SELECT s.symbol, future.ts, future.source
      FROM now CROSS JOIN feature_platform.bar_symbol s
      LEFT JOIN LATERAL (SELECT b.ts, b.source FROM public.ohlcv_1m b
                          WHERE b.symbol = s.symbol AND b.ts >= feature_platform.bucket_of(now.at) + interval '1 minute'
                          ORDER BY b.ts DESC LIMIT 1) AS future ON true
)
SELECT count(*) AS checked, count(ts) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'newest_bar',
                                            to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'source', coalesce(source, '')) ORDER BY ts DESC, symbol)
          FROM (SELECT * FROM judged WHERE ts IS NOT NULL ORDER BY ts DESC, symbol LIMIT %(show)s) AS farthest) AS rows,
       max(extract(epoch FROM ts - now.at))::double precision AS farthest_seconds
  FROM judged CROSS JOIN now;

-- check_minute_gaps --
-- Minutes that wait for an answer, and recent ones that the exchange did not answer for; by the index of gaps.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), gap AS MATERIALIZED (
    SELECT g.symbol, g.start_ts, g.end_ts, g.state, g.attempts, g.last_error, g.feed
      FROM public.ohlcv_1m_gaps g WHERE g.state = 'open' AND g.symbol = ANY (%(symbols)s::text[])
    UNION ALL
    SELECT g.symbol, g.start_ts, g.end_ts, g.state, g.attempts, g.last_error, g.feed
      FROM now CROSS JOIN feature_platform.gap_watermark w
     CROSS JOIN LATERAL (SELECT * FROM public.ohlcv_1m_gaps g
                          WHERE g.symbol = w.symbol AND g.state <> 'filled' AND g.state = 'unavailable'
                            AND g.start_ts > now.at - interval '7 days') AS g
     WHERE w.symbol = ANY (%(symbols)s::text[])
), judged AS (
    SELECT g.*, extract(epoch FROM g.end_ts - g.start_ts) / 60 AS minutes,
           g.state = 'unavailable' OR g.start_ts < now.at - %(age)s::interval AS is_wrong
      FROM gap g CROSS JOIN now
)
SELECT (SELECT count(*) FROM feature_platform.gap_watermark w WHERE w.symbol = ANY (%(symbols)s::text[])) AS checked,
       (SELECT count(DISTINCT symbol) FROM judged WHERE is_wrong) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'start',
                                            to_char(start_ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'minutes', minutes::bigint, 'state', state, 'attempts', attempts,
                                            'feed', coalesce(feed, 'no recorder'), 'last_error',
                                                coalesce(last_error, '')) ORDER BY start_ts DESC)
          FROM (SELECT * FROM judged WHERE is_wrong ORDER BY start_ts DESC LIMIT %(show)s) AS newest) AS rows,
       (SELECT count(*) FROM judged WHERE state = 'open') AS open_gaps,
       (SELECT coalesce(sum(minutes), 0)::bigint FROM judged WHERE state = 'open') AS open_minutes,
       (SELECT coalesce(sum(minutes), 0)::bigint FROM judged WHERE state = 'open'
        AND feed = 'dead') AS open_minutes_of_a_dead_feed,
       (SELECT coalesce(sum(minutes), 0)::bigint FROM judged WHERE state = 'unavailable') AS unavailable_minutes;

-- check_minutes_accounted_for --
-- The newest half hour that is accounted for of every symbol, and a random day of a few random symbols: each minute
-- must either have a bar or be listed as missing, except minutes with a change that is not accounted for yet. It is one
-- statement, so that all tables are of one snapshot.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), watermark AS MATERIALIZED (
    SELECT w.symbol, w.since_ts, w.until_ts FROM feature_platform.gap_watermark w
     WHERE w.since_ts < w.until_ts AND NOT EXISTS (SELECT FROM feature_platform.gap_beginning)
), part AS MATERIALIZED (
    SELECT symbol, greatest(since_ts, until_ts - interval '30 minutes') AS lo, until_ts AS hi FROM watermark
    UNION ALL
    SELECT w.symbol, start.lo, least(start.lo + interval '24 hours', w.until_ts)
      FROM (SELECT * FROM watermark ORDER BY random() LIMIT %(samples)s) AS w
     CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(w.since_ts + random() * make_interval(
                             secs => greatest(extract(epoch FROM w.until_ts - w.since_ts)::double precision - 86400,
                                              0))) AS lo) AS start
), judged AS MATERIALIZED (
    SELECT p.symbol, lower(r) AS lo, extract(epoch FROM upper(r) - lower(r)) / 60 AS minutes, has.present, gap.listed,
        gap.present_too
      FROM part p
      LEFT JOIN feature_platform.changed_minutes c ON c.symbol = p.symbol
     CROSS JOIN LATERAL unnest(tstzmultirange(tstzrange(p.lo, p.hi)) - coalesce(c.minutes, '{}')) AS r
     CROSS JOIN LATERAL (SELECT count(DISTINCT feature_platform.bucket_of(b.ts)) AS present FROM public.ohlcv_1m b
                          WHERE b.symbol = p.symbol AND b.ts >= lower(r) AND b.ts < upper(r)) AS has
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(extract(epoch FROM g.end_ts - g.start_ts) / 60), 0) AS listed,
                  coalesce(sum((SELECT count(DISTINCT feature_platform.bucket_of(b.ts)) FROM public.ohlcv_1m b
                                 WHERE b.symbol = p.symbol AND b.ts >= g.start_ts AND b.ts < g.end_ts)),
                                     0)::bigint AS present_too
             FROM feature_platform.gaps_between(p.symbol, lower(r), upper(r)) AS g) AS gap
), finding AS MATERIALIZED (
    SELECT symbol, lo, format('%%s of %%s minutes have a bar, %%s are listed as missing, %%s of them have a bar',
                              present, minutes::bigint, listed::bigint, present_too) AS problem
      FROM judged WHERE present + listed <> minutes OR present_too > 0
    UNION ALL
    SELECT '', max(w.until_ts), 'minutes are accounted for up to here only: no process accounts for them'
        FROM watermark w CROSS JOIN now
    HAVING max(w.until_ts) < max(now.at) - %(limit)s::interval
)
SELECT (SELECT coalesce(sum(minutes), 0)::bigint FROM judged) AS checked, (SELECT count(*) FROM finding) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'from',
                                            to_char(lo AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'problem', problem)
                                                ORDER BY lo DESC)
          FROM (SELECT * FROM finding ORDER BY lo DESC LIMIT %(show)s) AS newest) AS rows,
       feature_platform.minutes_to_account() AS minutes_to_account;

-- check_bars_sane --
-- Unusual bars of the last hour: many at one price, a large step of the price, or a range of prices without volume.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() - interval '1 hour' AS since
), bar AS MATERIALIZED (
    -- Symbol by symbol in the order of the index: nothing is sorted.
    SELECT b.*
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (
           SELECT symbol, ts, high, low, close, vol, previous,
                  count(*) FILTER (WHERE close IS DISTINCT FROM previous) OVER (ORDER BY ts) AS run
             FROM (SELECT b.symbol, b.ts, b.high, b.low, b.close, b.vol, lag(b.close) OVER (ORDER BY b.ts) AS previous
                     FROM public.ohlcv_1m b WHERE b.symbol = s.symbol AND b.ts >= now.since) AS b) AS b
), run AS (
    SELECT symbol, min(ts) AS ts, count(*) AS bars
      FROM bar WHERE close = previous
     GROUP BY symbol, run HAVING count(*) >= %(stale)s - 1 AND min(vol) > 0
), finding AS MATERIALIZED (
    SELECT symbol, ts, format('%%s bars at one price', bars + 1) AS what FROM run
    UNION ALL SELECT symbol, ts, format('a step from %%s to %%s', previous, close) FROM bar
        WHERE abs(close / previous - 1) > %(step)s
    UNION ALL SELECT symbol, ts, format('no volume, but prices from %%s to %%s', low, high) FROM bar WHERE vol = 0
        AND high <> low
)
SELECT (SELECT count(*) FROM bar) AS checked, (SELECT count(*) FROM finding) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol,
                                            'ts', to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'what', what) ORDER BY ts DESC)
          FROM (SELECT * FROM finding ORDER BY ts DESC LIMIT %(show)s) AS newest) AS rows;

-- check_features_rows --
-- The number of the newest closed minutes of each symbol that have a row, or are known to have had no trades.
WITH now AS MATERIALIZED (
    SELECT at, feature_platform.bucket_of(at) AS until
        FROM (SELECT feature_platform.clock() - %(settle)s::interval AS at) AS settled
), judged AS MATERIALIZED (
    SELECT s.symbol, has.rows, quiet.minutes AS quiet
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (SELECT count(*) AS rows FROM public.features_1m f
                          WHERE f.symbol = s.symbol AND f.bucket > now.at - interval '10 minutes'
                              AND f.bucket < now.until) AS has
     CROSS JOIN LATERAL (SELECT coalesce(sum(extract(epoch FROM least(g.end_ts, now.until)
                                                     - greatest(g.start_ts, now.until - interval '9 minutes')) / 60),
                                         0)::bigint AS minutes
                           FROM feature_platform.answered_gap g
                          WHERE g.symbol = s.symbol AND g.start_ts > now.at - interval '1 day'
                            AND g.start_ts < now.until AND g.end_ts > now.until - interval '9 minutes') AS quiet
     WHERE s.symbol = ANY (%(symbols)s::text[])
       -- Except symbols that began in these minutes, by the first row or, without one, by the time of the first bar.
       AND coalesce((SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1),
                    (SELECT greatest(feature_platform.bucket_of(b.ts), b.inserted_at) FROM public.ohlcv_1m b
                      WHERE b.symbol = s.symbol AND b.ts >= feature_platform.features_from() ORDER BY b.ts LIMIT 1))
           <= now.until - interval '9 minutes'
)
SELECT count(*) AS checked, count(*) FILTER (WHERE rows + quiet < 9) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'rows', rows, 'without_trades', quiet) ORDER BY rows,
                         symbol)
          FROM (SELECT * FROM judged WHERE rows + quiet < 9 ORDER BY rows, symbol LIMIT %(show)s) AS worst) AS rows,
       min(rows) AS fewest_rows, sum(rows)::bigint AS rows_10_minutes
  FROM judged;

-- check_features_not_null --
-- NULLs in the newest three rows of each symbol, except in its first row and its first day.
WITH newest AS MATERIALIZED (
    SELECT f.symbol, f.bucket, f.log_return, f.volume_z, f.bucket - first.bucket AS age
      FROM feature_platform.feature_symbol s
     CROSS JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket
                         LIMIT 1) AS first
     CROSS JOIN LATERAL (SELECT * FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC
                         LIMIT 3) AS f
), judged AS MATERIALIZED (
    SELECT *, (log_return IS NULL AND age > '0') OR (volume_z IS NULL AND age >= interval '1439 minutes') AS is_wrong
        FROM newest
)
SELECT count(*) AS checked, count(*) FILTER (WHERE is_wrong) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'bucket',
                                            to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'log_return', log_return, 'volume_z', volume_z) ORDER BY bucket DESC,
                                                symbol)
          FROM (SELECT * FROM judged WHERE is_wrong ORDER BY bucket DESC, symbol LIMIT %(show)s) AS newest) AS rows,
       count(*) FILTER (WHERE age < interval '1439 minutes') AS rows_in_first_day
  FROM judged;

-- check_features_fresh --
-- The age of each symbol's newest row, or of its newest minute without trades; for a symbol without rows, the age of
-- its first bar.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), newest AS (
    SELECT s.symbol, last.bucket, greatest(last.bucket + interval '1 minute', first.since, answered.until) AS until
      FROM now CROSS JOIN feature_platform.bar_symbol s
      LEFT JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC
                         LIMIT 1) AS last ON true
      LEFT JOIN LATERAL (SELECT feature_platform.bucket_of(greatest(b.ts, b.inserted_at)) AS since
                           FROM public.ohlcv_1m b
                          WHERE b.symbol = s.symbol AND last.bucket IS NULL AND b.ts >= feature_platform.features_from()
                              AND b.ts < now.at
                          ORDER BY b.ts LIMIT 1) AS first ON true
     CROSS JOIN LATERAL (SELECT max(g.end_ts) AS until FROM feature_platform.answered_gap g
                          WHERE g.symbol = s.symbol AND g.start_ts > last.bucket) AS answered
     WHERE s.symbol = ANY (%(symbols)s::text[]) AND (last.bucket IS NOT NULL OR first.since IS NOT NULL)
), judged AS MATERIALIZED (
    SELECT n.symbol, n.bucket, extract(epoch FROM now.at - n.until)::double precision AS lag,
           n.until < feature_platform.bucket_of(now.at - %(settle)s::interval) AS is_wrong
      FROM newest n CROSS JOIN now
)
SELECT count(*) AS checked, count(*) FILTER (WHERE is_wrong) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'newest_row',
                                            coalesce(to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'none'),
                                            'lag_seconds', round(lag)) ORDER BY lag DESC)
          FROM (SELECT * FROM judged WHERE is_wrong ORDER BY lag DESC LIMIT %(show)s) AS worst) AS rows,
       max(lag) AS worst_lag_seconds
  FROM judged;

-- check_recorder_alive --
-- Symbols with an old heartbeat, or not live for too long; none if no recorder has ever run.
WITH judged AS MATERIALIZED (
    SELECT h.symbol, h.state, h.update_at, h.last_error, h.rejected,
           extract(epoch FROM feature_platform.clock() - h.beat_at)::double precision AS age,
           extract(epoch FROM feature_platform.clock() - h.state_at)::double precision AS since,
           -- Not the start of the state: a connection without valid updates may be replaced again and again.
           h.beat_at < feature_platform.clock() - %(limit)s::interval
               OR (h.state <> 'live' AND coalesce(h.not_live_since, h.state_at)
                                         < feature_platform.clock() - %(limit)s::interval) AS is_wrong
      FROM feature_platform.heartbeat h WHERE h.state <> 'not_recorded'
)
SELECT count(*) AS checked, count(*) FILTER (WHERE is_wrong) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'state', state, 'state_seconds', round(since),
                                            'beat_seconds', round(age),
                                            'last_update', coalesce(to_char(update_at AT TIME ZONE 'UTC',
                                                'YYYY-MM-DD HH24:MI:SS'), ''),
                                            'last_error', coalesce(last_error, '')) ORDER BY age DESC, symbol)
          FROM (SELECT * FROM judged WHERE is_wrong ORDER BY age DESC, symbol LIMIT %(show)s) AS worst) AS rows,
       count(*) FILTER (WHERE state = 'live') AS live, count(*) FILTER (WHERE state = 'catching_up') AS catching_up,
       count(*) FILTER (WHERE state IN ('down', 'stopped')) AS down, max(age) AS oldest_beat_seconds,
           sum(rejected)::bigint AS rows_rejected
  FROM judged;

-- check_volume_z_shape --
-- In the last hour: rows with the same value, NULLs after the first day, and minutes with a bar and no row.
WITH now AS MATERIALIZED (
    SELECT at, feature_platform.bucket_of(at - interval '1 hour') AS since, feature_platform.bucket_of(at) AS until
      FROM (SELECT feature_platform.clock() - %(settle)s::interval AS at) AS settled
), feature AS MATERIALIZED (
    SELECT f.*
      FROM now CROSS JOIN feature_platform.feature_symbol s
     CROSS JOIN LATERAL (
           SELECT symbol, bucket, vol, volume_z, ma_vol_1d, previous,
                  count(*) FILTER (WHERE volume_z IS DISTINCT FROM previous) OVER (ORDER BY bucket) AS run
             FROM (SELECT f.symbol, f.bucket, f.vol, f.volume_z, f.ma_vol_1d,
                   lag(f.volume_z) OVER (ORDER BY f.bucket) AS previous
                     FROM public.features_1m f WHERE f.symbol = s.symbol AND f.bucket >= now.since) AS f) AS f
), run AS (
    SELECT symbol, min(bucket) AS bucket, count(*) AS rows
      FROM feature WHERE volume_z = previous AND vol > 0
     GROUP BY symbol, run HAVING count(*) >= %(flat)s - 1
), unrefreshed AS (
    SELECT s.symbol, b.bucket
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (
           SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
            WHERE b.symbol = s.symbol AND b.ts >= now.since AND b.ts < now.until AND b.inserted_at < now.at
           EXCEPT
           SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol AND f.bucket >= now.since
               AND f.bucket < now.until) AS b
), finding AS MATERIALIZED (
    SELECT symbol, bucket, format('the same value in %%s rows', rows + 1) AS what FROM run
    UNION ALL SELECT symbol, bucket, 'NULL after the first day' FROM feature WHERE volume_z IS NULL
        AND ma_vol_1d IS NOT NULL
    UNION ALL SELECT symbol, bucket, 'a bar and no row' FROM unrefreshed
)
SELECT (SELECT count(*) FROM feature) AS checked, (SELECT count(*) FROM finding) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'bucket',
                                            to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'what', what)
                                                ORDER BY bucket DESC)
          FROM (SELECT * FROM finding ORDER BY bucket DESC LIMIT %(show)s) AS newest) AS rows;

-- check_refresh_backlog --
-- The time that the oldest dirty row of each symbol has waited for a refresh.
WITH judged AS MATERIALIZED (
    SELECT d.symbol, d.rows_dirty, extract(epoch FROM feature_platform.clock() - d.marked_at)::double precision AS age,
           feature_platform.clock() - d.marked_at > %(limit)s::interval AS is_wrong
      FROM feature_platform.dirty d
)
SELECT (SELECT count(*) FROM feature_platform.bar_symbol) AS checked, count(*) FILTER (WHERE is_wrong) AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'rows_dirty', rows_dirty, 'age_seconds', round(age))
                         ORDER BY age DESC)
          FROM (SELECT * FROM judged WHERE is_wrong ORDER BY age DESC LIMIT %(show)s) AS oldest) AS rows,
       coalesce(sum(rows_dirty), 0)::bigint AS rows_dirty, coalesce(max(age), 0) AS oldest_dirty_seconds
  FROM judged;

-- check_stored_spans --
-- A few random symbols, with the minutes that have rows or should have them.
SELECT s.symbol, span.first_ts AS first, span.end_ts AS last
  FROM (SELECT symbol FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS k ORDER BY random()
        LIMIT %(samples)s) AS s
 CROSS JOIN LATERAL feature_platform.symbol_span(s.symbol) AS span
 WHERE span.first_ts < span.end_ts;

-- check_policy_present --
-- Whether there is a policy.
SELECT 1 AS checked, CASE WHEN count(*) = 0 THEN 1 ELSE 0 END AS wrong,
       CASE WHEN count(*) = 0 THEN '[{"problem": "SELECT add_features_1m_policy() adds one"}]'::jsonb END AS rows,
       max(start_offset)::text AS start_offset, max(end_offset)::text AS end_offset,
           max(schedule_interval)::text AS schedule_interval
  FROM feature_platform.policy WHERE %(show)s > 0;

-- check_policy_healthy --
-- Whether the policy runs in time, and without errors.
WITH policy AS MATERIALIZED (
    SELECT s.*, feature_platform.clock() - coalesce(s.last_start, p.changed_at) AS since
      FROM feature_platform.policy_status s CROSS JOIN feature_platform.policy p
), problem AS (
    SELECT problem FROM policy WHERE problem IS NOT NULL
    UNION ALL
    SELECT 'no run has begun for ' || date_trunc('second', since) AS problem FROM policy
     WHERE since > 2 * schedule_interval + interval '15 seconds' AND NOT running
    UNION ALL
    SELECT 'a run has taken ' || date_trunc('second', last_duration) FROM policy WHERE running
        AND last_duration > interval '10 minutes'
    UNION ALL
    SELECT last_error FROM policy WHERE last_error_at > feature_platform.clock() - interval '10 minutes'
)
SELECT (SELECT count(*) FROM policy) AS checked, CASE WHEN EXISTS (SELECT FROM problem) THEN 1 ELSE 0 END AS wrong,
       (SELECT jsonb_agg(jsonb_build_object('problem', problem)) FROM problem WHERE %(show)s > 0) AS rows,
       p.runs_in, p.last_runner, extract(epoch FROM p.since)::double precision AS seconds_since_start,
       extract(epoch FROM p.last_duration)::double precision AS last_duration_seconds, p.last_rows_written, p.rows_dirty
  FROM (SELECT) AS one LEFT JOIN policy p ON true;
