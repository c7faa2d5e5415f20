-- Every statement that Python sends, by name, in one block for each module that sends it.


-- ==== database.py ====

-- database_session --
-- Wait for no lock for ever.
SET lock_timeout = '30s';

-- server_capabilities --
-- The version and licence of TimescaleDB in this database, NULL where it is not installed.
SELECT extversion AS timescaledb_version,
       current_setting('timescaledb.license', true) AS timescaledb_license
  FROM (VALUES (1)) AS one
  LEFT JOIN pg_extension ON extname = 'timescaledb';


-- ==== embedded.py ====

-- database_exists --
-- A row if the server has a database of this name.
SELECT 1 FROM pg_database WHERE datname = %(name)s;


-- ---- import ----

-- import_check_table --
-- Fail where there is no table of bars, before a long file is read for nothing.
SELECT FROM public.ohlcv_1m LIMIT 0;

-- import_create_staging --
-- Where the rows of one file wait until all of them are known to be good; row_number is their place in the file.
CREATE TEMPORARY TABLE import_bar (
    row_number bigint,
    symbol_id  integer,
    ts         timestamptz,
    open       double precision,
    high       double precision,
    low        double precision,
    close      double precision,
    vol        double precision
) ON COMMIT DROP;

-- import_copy --
-- Fill the staging table.
COPY pg_temp.import_bar (row_number, symbol_id, ts, open, high, low, close, vol) FROM STDIN (FORMAT binary);

-- import_find_repeats --
-- The rows whose symbol and time an earlier row of the file has, and whether their values differ from it.
CREATE TEMPORARY TABLE import_repeat ON COMMIT DROP AS
SELECT row_number, first_row, differs
  FROM (SELECT row_number,
               first_value(row_number) OVER same AS first_row,
               (open, high, low, close, vol) IS DISTINCT FROM
               (first_value(open) OVER same, first_value(high) OVER same, first_value(low) OVER same,
                first_value(close) OVER same, first_value(vol) OVER same) AS differs
          FROM pg_temp.import_bar
        WINDOW same AS (PARTITION BY symbol_id, ts ORDER BY row_number)) AS staged
 WHERE row_number <> first_row;

-- import_count_repeats --
-- How many repeat the values of the earlier row, and how many contradict them.
SELECT count(*) FILTER (WHERE NOT differs), count(*) FILTER (WHERE differs) FROM pg_temp.import_repeat;

-- import_conflicts --
-- The rows that contradict an earlier one, in the file's order.
SELECT row_number, first_row FROM pg_temp.import_repeat WHERE differs ORDER BY row_number;

-- import_delete_repeats --
-- Leave the first row of each symbol and time in the staging table.
DELETE FROM pg_temp.import_bar b USING pg_temp.import_repeat r WHERE b.row_number = r.row_number;

-- import_overlaps --
-- Whether bars are stored already between the first and the last staged one of any symbol.
SELECT EXISTS (
    SELECT FROM unnest(%(symbols)s::text[], %(first)s::timestamptz[], %(last)s::timestamptz[])
                AS staged (symbol, first, last)
     WHERE EXISTS (SELECT FROM public.ohlcv_1m b
                    WHERE b.symbol = staged.symbol COLLATE "C" AND b.ts BETWEEN staged.first AND staged.last));

-- import_insert_in_order --
-- Store the staged bars where none was, of one symbol and in the order of time: the common case, a fifth faster.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol, source, inserted_at)
SELECT (%(symbols)s::text[])[1], ts, open, high, low, close, vol, %(source)s, (SELECT feature_platform.clock()) FROM pg_temp.import_bar;

-- import_insert --
-- Store the staged bars where none was, in any order: half the time of an upsert.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol, source, inserted_at)
SELECT s.symbol COLLATE "C", i.ts, i.open, i.high, i.low, i.close, i.vol, %(source)s, (SELECT feature_platform.clock())
  FROM pg_temp.import_bar i
  JOIN unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = i.symbol_id
 ORDER BY s.symbol COLLATE "C", i.ts;

-- import_analyze --
-- Tell the planner what is staged, before the join with what is stored.
ANALYZE pg_temp.import_bar;

-- import_upsert --
-- Store the staged bars that are new or differ from what is stored; count both. Equal rows are not even locked.
WITH changed AS (
    INSERT INTO public.ohlcv_1m AS b (symbol, ts, open, high, low, close, vol, source, inserted_at)
    SELECT s.symbol COLLATE "C", i.ts, i.open, i.high, i.low, i.close, i.vol, %(source)s, (SELECT feature_platform.clock())
      FROM pg_temp.import_bar i
      JOIN unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = i.symbol_id
      LEFT JOIN public.ohlcv_1m o
             ON o.symbol = s.symbol COLLATE "C" AND o.ts = i.ts
            AND o.ts BETWEEN (SELECT min(f) FROM unnest(%(first)s::timestamptz[]) AS f)
                         AND (SELECT max(l) FROM unnest(%(last)s::timestamptz[]) AS l)
     WHERE o.symbol IS NULL
        OR (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.vol)
     ORDER BY s.symbol COLLATE "C", i.ts
    ON CONFLICT (symbol, ts) DO UPDATE
       SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
           vol = excluded.vol, source = excluded.source, inserted_at = excluded.inserted_at
     WHERE (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM
           (excluded.open, excluded.high, excluded.low, excluded.close, excluded.vol)
    RETURNING b.xmax = 0 AS is_new
)
SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM changed;


-- ==== schema.py ====

-- schema_is_applied --
-- Whether any version of the schema has been set up in this database.
SELECT to_regclass('feature_platform.schema_version') IS NOT NULL;

-- schema_version --
-- The version of the schema that is set up here.
SELECT max(version) FROM feature_platform.schema_version;

-- schema_set_up_as --
-- Have the set-up make this a simulated or a real database, and wait for a table first.
SELECT set_config('feature_platform.set_up_as', %(origin)s, true), set_config('feature_platform.lock_first', %(lock_first)s, true);

-- schema_is_simulated --
-- Whether this database was set up for simulated bars.
SELECT simulated FROM feature_platform.database_origin;


-- ==== origin.py ====

-- origin_exchange --
-- The exchange that this database's bars without a prefix come from, and the URLs of simulated exchanges.
SELECT exchange, exchange_url FROM feature_platform.database_origin;

-- origin_claim_exchange --
-- Keep an exchange where none is kept yet; the one that is kept.
SELECT feature_platform.claim_exchange(%(exchange)s, %(url)s);


-- ==== forget.py ====

-- forget_recorded_until --
-- When a recorder last wrote that it records a symbol; no row where none does.
SELECT beat_at FROM feature_platform.heartbeat WHERE symbol = %(symbol)s AND state NOT IN ('not_recorded', 'stopped')
   AND beat_at > feature_platform.clock() - interval '1 minute';

-- forget_symbol --
-- Delete all of a symbol; how many bars and feature rows it had.
SELECT bars, features FROM feature_platform.forget_symbol(%(symbol)s);


-- ==== logins.py ====

-- roles_missing --
-- Which of these roles the server does not have.
SELECT name FROM unnest(%(names)s::text[]) WITH ORDINALITY AS r (name, place)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r.name) ORDER BY place;


-- ==== refresh.py ====

-- refresh_read_committed --
-- Make a slice see what was committed up to each of its statements, whatever the database's default is.
SET default_transaction_isolation = 'read committed';

-- refresh_bounds --
-- A refresh window as the engine takes it, as text since its ends may be infinite, and the newest mark that it is to see.
SELECT coalesce(feature_platform.bucket_from(%(start)s), '-infinity')::text AS window_lo,
       least(coalesce(feature_platform.bucket_from(%(end)s), 'infinity'), feature_platform.due_until())::text AS window_hi;

-- refresh_mark_window --
-- Mark all of a window dirty.
SELECT feature_platform.mark_window(%(window_lo)s::timestamptz, %(window_hi)s::timestamptz);

-- refresh_todo --
-- The newest mark, and about how many minutes are dirty in a window.
SELECT feature_platform.dirty_horizon() AS horizon,
       coalesce(sum(extract(epoch FROM upper(r) - lower(r)))::bigint / 60, 0) AS minutes
  FROM feature_platform.dirty d
 CROSS JOIN unnest(d.buckets * tstzmultirange(tstzrange(
           %(window_lo)s::timestamptz, greatest(%(window_lo)s::timestamptz, %(window_hi)s::timestamptz)))) AS r;

-- refresh_slice --
-- Bring one slice of a window up to date.
SELECT symbols, minutes, rows_written, more
  FROM feature_platform.refresh_slice(%(window_lo)s::timestamptz, %(window_hi)s::timestamptz, %(horizon)s);


-- ==== verify.py ====

-- verify_spans --
-- By symbol: the first minute that has a bar or a stored row, the end of the closed minutes, the end of all to compare.
SELECT s.symbol, greatest(date_bin('1 minute', ends.first_ts, '1970-01-01 00:00+00'), feature_platform.features_from()) AS first_bucket, ends.closed,
       greatest(CASE WHEN ends.last_bar IS NOT NULL
                     THEN least(date_bin('1 minute', ends.last_bar, '1970-01-01 00:00+00') + interval '1 minute', ends.closed) END,
                date_bin('1 minute', ends.last_row, '1970-01-01 00:00+00') + interval '1 minute') AS last
  FROM feature_platform.stored_symbol s
 CROSS JOIN LATERAL (
       SELECT least((SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1),
                    (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1)) AS first_ts,
              (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1) AS last_bar,
              (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT 1) AS last_row,
              feature_platform.due_until() AS closed
 ) AS ends
 ORDER BY s.symbol;

-- verify_slice --
-- Recompute one symbol's rows from start to end by plain window functions over the bars, and compare them with the stored
-- ones bit for bit. A row that differs and is marked dirty is pending, not wrong. One statement, hence one moment.
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
    SELECT w.*, total::double precision / n AS mean, sqrt((n * total_sq - total * total)::double precision) / n AS deviation,
           bucket >= (SELECT date_bin('1 minute', min(ts), '1970-01-01 00:00+00') FROM public.ohlcv_1m WHERE symbol = %(symbol)s)
                     + interval '1439 minutes' AS warm
      FROM windowed w
     WHERE bucket >= %(start)s AND bucket >= feature_platform.features_from() AND bucket < feature_platform.due_until()
), expected AS (
    SELECT bucket, last_close, volume::double precision AS vol, ln(last_close / previous_close) AS log_return, n::integer AS n_1d,
           CASE WHEN warm THEN mean END AS ma_vol_1d, CASE WHEN warm THEN deviation END AS std_vol_1d,
           CASE WHEN warm AND deviation > 0 THEN (volume::double precision - mean) / deviation END AS volume_z,
           last_close - vwap AS vwap_gap, 0.5 * ln(high / low) ^ 2 AS parkinson_vol
      FROM moments
), stored AS (
    SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
      FROM public.features_1m
     WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket >= feature_platform.features_from() AND bucket < %(end)s
), compared AS MATERIALIZED (
    SELECT coalesce(s.bucket, e.bucket) AS bucket, s, e, s.bucket IS NOT NULL AS is_stored,
           (s.last_close, s.vol, s.log_return, s.n_1d, s.ma_vol_1d, s.std_vol_1d, s.volume_z, s.vwap_gap, s.parkinson_vol)
           IS DISTINCT FROM
           (e.last_close, e.vol, e.log_return, e.n_1d, e.ma_vol_1d, e.std_vol_1d, e.volume_z, e.vwap_gap, e.parkinson_vol)
           AS differs
      FROM stored s FULL JOIN expected e ON s.bucket = e.bucket
), judged AS MATERIALIZED (
    -- What a mark reaches beyond its day is not known before a refresh takes it: until then all after it may be pending.
    -- A row of a minute that is not closed is wrong in any case.
    SELECT c.*, c.bucket < feature_platform.due_until() AND
                EXISTS (SELECT FROM feature_platform.dirty_log l
                         WHERE l.symbol = %(symbol)s
                           AND (l.buckets @> c.bucket OR (NOT l.reach_known AND c.bucket >= lower(l.buckets)))) AS pending
      FROM compared c WHERE c.differs
)
SELECT (SELECT count(*) FROM compared WHERE is_stored) AS rows_checked,
       (SELECT count(*) FROM judged WHERE pending) AS pending,
       (SELECT count(*) FROM judged WHERE NOT pending) AS mismatches,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('bucket', to_json(bucket AT TIME ZONE 'UTC') #>> '{}' || 'Z',
                                                     'stored', to_jsonb(s), 'expected', to_jsonb(e)) ORDER BY bucket), '[]')
          FROM (SELECT * FROM judged WHERE NOT pending ORDER BY bucket LIMIT %(show)s) AS first) AS examples;

-- verification_state --
-- The position of the rolling verification, how long its pass has taken, and about how many minutes of history there are.
SELECT v.symbol, v.next_ts::text AS next_ts, v.minutes, v.wrong, feature_platform.clock() - v.started_at AS elapsed,
       (SELECT coalesce(sum(extract(epoch FROM w.until_ts - w.since_ts)) / 60, 0)::bigint FROM feature_platform.gap_watermark w) AS total
  FROM feature_platform.verification v;

-- verification_next --
-- The next symbol at or after a position that has minutes left to verify, and from where to where.
SELECT k.symbol, part.first, span.end_ts AS last
  FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol WHERE symbol >= %(symbol)s) AS k
 CROSS JOIN LATERAL feature_platform.symbol_span(k.symbol) AS span
 CROSS JOIN LATERAL (SELECT CASE WHEN k.symbol = %(symbol)s THEN greatest(span.first_ts, %(next_ts)s::timestamptz) ELSE span.first_ts END AS first) AS part
 WHERE part.first < span.end_ts
 ORDER BY k.symbol LIMIT 1;

-- verification_move --
-- Move the position of the rolling verification; false where another session has moved it.
SELECT feature_platform.verification_move(%(symbol)s, %(next_ts)s::timestamptz, %(to_symbol)s, %(to_ts)s::timestamptz, %(verified)s, %(wrong)s);


-- ==== status.py ====

-- status_symbols --
-- Each symbol's first and last bar, newest feature row and dirty rows, by index.
SELECT s.symbol, ends.first_bar, ends.last_bar, ends.last_feature,
       coalesce(d.rows_dirty, 0) AS rows_dirty, d.marked_at AS dirty_since,
       feature_platform.clock() - (ends.last_feature + interval '1 minute') AS lag
  FROM (SELECT symbol FROM feature_platform.bar_symbol UNION SELECT symbol FROM feature_platform.feature_symbol) AS s
 CROSS JOIN LATERAL (
       SELECT (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first_bar,
              (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1) AS last_bar,
              (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT 1) AS last_feature
 ) AS ends
  LEFT JOIN feature_platform.dirty d ON d.symbol = s.symbol
 ORDER BY s.symbol;

-- status_counts --
-- How many bars and feature rows each symbol has: reads all of both tables' keys.
SELECT symbol, coalesce(b.bars, 0) AS bars, coalesce(f.features, 0) AS features
  FROM (SELECT symbol, count(*) AS bars FROM public.ohlcv_1m GROUP BY symbol) AS b
  FULL JOIN (SELECT symbol, count(*) AS features FROM public.features_1m GROUP BY symbol) AS f USING (symbol);

-- status_policy --
-- The refresh policy, its last run, its last error, and how much is dirty.
SELECT start_offset, end_offset, schedule_interval, runs_in, last_runner, last_start, last_duration, running,
       last_rows_written, last_slices, rows_dirty, oldest_dirty_age, last_error, last_error_at, next_run, last_wakes, last_wake, problem
  FROM feature_platform.policy_status;


-- ==== top.py ====

-- top_open_minutes --
-- How many minutes of each symbol are missing and not explained yet, by the index of open gaps.
SELECT symbol, sum(extract(epoch FROM end_ts - start_ts) / 60)::bigint AS minutes
  FROM public.ohlcv_1m_gaps g
 WHERE state = 'open' AND NOT EXISTS (SELECT FROM feature_platform.heartbeat h WHERE h.symbol = g.symbol AND h.state = 'not_recorded')
 GROUP BY symbol;


-- ==== worker.py ====

-- worker_session --
-- Wait for no lock for long: a worker that waits cannot be stopped.
SET lock_timeout = '2s';

-- worker_claim --
-- Be the one worker of this database, to the end of the session.
SELECT feature_platform.claim_runner('worker');

-- worker_look --
-- The newest mark, committed or not, and the transactions that are running. The snapshot is older than the mark.
SELECT feature_platform.dirty_horizon() AS mark,
       ARRAY(SELECT xid::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS xid) AS running;

-- worker_any_due --
-- Whether rows are due by a mark after this one.
SELECT EXISTS (
    SELECT FROM feature_platform.dirty_log l
     WHERE l.id > %(after)s AND lower(l.buckets) < feature_platform.due_until(p.end_offset))
  FROM feature_platform.policy p;

-- worker_next_run --
-- Seconds until the run after the one that began then, negative when it is late: runs start five seconds after a multiple of
-- schedule_interval since the epoch, when the minute before is closed. Then which rows are due, and seconds until there are
-- more. No row where there is no policy.
SELECT extract(epoch FROM date_bin(step, %(began)s, '1970-01-01 00:00:05+00') + step - now.at)::double precision AS next_run,
       due.until AS due, extract(epoch FROM due.until + greatest(end_offset, '1 minute') - now.at)::double precision AS next_due
  FROM feature_platform.policy
 CROSS JOIN LATERAL make_interval(secs => extract(epoch FROM schedule_interval)) AS step -- months cannot be binned
 CROSS JOIN LATERAL feature_platform.due_until(end_offset) AS due (until)
 CROSS JOIN feature_platform.clock() AS now (at);

-- worker_begin --
-- Begin a run of the policy.
SELECT feature_platform.policy_begin('worker') AS run_id, feature_platform.dirty_horizon() AS horizon, feature_platform.clock() AS began;

-- worker_step --
-- One slice of a run; whether there is more.
SELECT feature_platform.policy_step(%(run_id)s, %(horizon)s);

-- worker_wake --
-- One slice of what is due by now, after a run; whether there is more than that.
SELECT feature_platform.policy_step(%(run_id)s, feature_platform.dirty_horizon(), woken => true);

-- worker_end --
-- End a run.
SELECT feature_platform.policy_end(%(run_id)s, %(error)s);

-- worker_run --
-- What a run did.
SELECT slices, rows_written, finished_at - started_at AS duration, wakes FROM feature_platform.policy_run WHERE id = %(run_id)s;


-- ==== health.py ====

-- health_worker --
-- What is wrong with the worker: no row where there is no policy, or one of its runs began not long ago.
SELECT 'no worker has begun a run of the policy for ' || coalesce(date_trunc('second', now.at - newest.started_at)::text, 'ever') AS problem
  FROM feature_platform.policy p
 CROSS JOIN feature_platform.clock() AS now (at)
  LEFT JOIN LATERAL (SELECT r.started_at FROM feature_platform.policy_run r WHERE r.runner = 'worker'
                        AND r.started_at > now.at - interval '7 days' ORDER BY r.started_at DESC LIMIT 1) AS newest ON true
 WHERE greatest(newest.started_at, p.changed_at) < now.at - 2 * p.schedule_interval - interval '1 minute';

-- health_recorder --
-- What is wrong with the recorder: no row where it has written a heartbeat not long ago, whatever it hears.
SELECT 'no recorder has been heard for ' || coalesce(date_trunc('second', now.at - newest.beat_at)::text, 'ever') AS problem
  FROM feature_platform.clock() AS now (at)
 CROSS JOIN (SELECT max(h.beat_at) AS beat_at FROM feature_platform.heartbeat h) AS newest
 WHERE newest.beat_at >= now.at - interval '1 minute' IS NOT TRUE;

-- health_daemon --
-- What is wrong with Dagster's daemon, in Dagster's own database: which of its parts have not been heard for five minutes.
SELECT 'the daemon is not heard: ' || string_agg(part, ', ' ORDER BY part) AS problem
  FROM unnest(ARRAY['SENSOR', 'SCHEDULER', 'QUEUED_RUN_COORDINATOR', 'MONITORING']) AS part
 WHERE NOT EXISTS (SELECT FROM daemon_heartbeats h WHERE h.daemon_type = part AND h.timestamp > (now() AT TIME ZONE 'UTC') - interval '5 minutes')
HAVING count(*) > 0;


-- ==== demo.py ====

-- demo_any_bar --
-- A row if there is any bar.
SELECT FROM public.ohlcv_1m LIMIT 1;

-- demo_newest --
-- The newest feature rows of each symbol.
SELECT f.*
  FROM feature_platform.feature_symbol s
 CROSS JOIN LATERAL (SELECT symbol, bucket, last_close, log_return, volume_z, vwap_gap, parkinson_vol
                       FROM public.features_1m f
                      WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT %(rows)s) AS f
 ORDER BY f.bucket DESC, f.symbol
 LIMIT %(rows)s;


-- ==== plot.py ====

-- plot_features --
-- Close and volume_z of one symbol over its last days.
SELECT bucket, last_close, volume_z
  FROM public.features_1m
 WHERE symbol = %(symbol)s
   AND bucket > (SELECT max(bucket) FROM public.features_1m WHERE symbol = %(symbol)s) - make_interval(hours => 24 * %(days)s)
 ORDER BY bucket;

-- plot_window_bounds --
-- The minutes of a window that a symbol could have rows for: from its first on, up to the last that is over.
SELECT greatest(%(start)s, (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = %(symbol)s ORDER BY f.bucket LIMIT 1)),
       least(%(end)s, feature_platform.due_until());

-- plot_window --
-- Close and volume_z of one symbol in a window.
SELECT bucket, last_close, volume_z
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket;


-- ==== bars.py ====

-- bars_store --
-- Store the bars of one symbol that are new or differ from what is stored; count both. Equal rows are not even locked.
WITH incoming AS (
    SELECT '1970-01-01 00:00+00'::timestamptz + us * interval '1 microsecond' AS ts, open, high, low, close, vol
      FROM unnest(%(ts)s::bigint[], %(open)s::double precision[], %(high)s::double precision[], %(low)s::double precision[],
                  %(close)s::double precision[], %(vol)s::double precision[]) AS bar (us, open, high, low, close, vol)
), changed AS (
    INSERT INTO public.ohlcv_1m AS b (symbol, ts, open, high, low, close, vol, source, inserted_at)
    SELECT %(symbol)s, i.ts, i.open, i.high, i.low, i.close, i.vol, %(source)s, (SELECT feature_platform.clock())
      FROM incoming i
      LEFT JOIN public.ohlcv_1m o
             ON o.symbol = %(symbol)s AND o.ts = i.ts
            AND o.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
     WHERE o.symbol IS NULL
        OR (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.vol)
     ORDER BY i.ts
    ON CONFLICT (symbol, ts) DO UPDATE
       SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
           vol = excluded.vol, source = excluded.source, inserted_at = excluded.inserted_at
     WHERE (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM
           (excluded.open, excluded.high, excluded.low, excluded.close, excluded.vol)
    RETURNING b.xmax = 0 AS is_new
)
SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM changed;


-- ==== gaps.py ====

-- gaps_find --
-- One tick of the accounting for minutes; how many gaps are open.
SELECT feature_platform.find_gaps();

-- gaps_minutes_left --
-- How many minutes are not accounted for yet.
SELECT feature_platform.minutes_to_account();

-- gaps_due --
-- Open gaps of some symbols that may be asked for now, parted at the ends of UTC days, oldest first; of one day only where it is
-- given.
SELECT g.symbol, greatest(g.start_ts, day.first) AS start, least(g.end_ts, day.first + interval '24 hours') AS end, g.attempts
  FROM public.ohlcv_1m_gaps g
 CROSS JOIN LATERAL generate_series(date_bin('24 hours', g.start_ts, '1970-01-01 00:00+00'), g.end_ts - interval '1 minute',
                                    interval '24 hours') AS day (first)
 WHERE g.state = 'open' AND (g.next_attempt_at IS NULL OR g.next_attempt_at <= feature_platform.clock())
   AND g.symbol = ANY (%(symbols)s::text[]) AND (%(day)s::timestamptz IS NULL OR day.first = %(day)s)
 ORDER BY start, g.symbol;

-- gaps_list --
-- Gaps by symbol and time, of some symbols and states or of all.
SELECT symbol, start_ts AS start, end_ts AS end, state, found_at, changed_at, attempts, next_attempt_at, last_error, feed
  FROM public.ohlcv_1m_gaps
 WHERE (%(symbol)s::text IS NULL OR symbol = %(symbol)s) AND (%(states)s::text[] IS NULL OR state = ANY (%(states)s))
 ORDER BY symbol, start_ts;

-- gaps_answered --
-- The venue has answered for these minutes.
SELECT feature_platform.gap_answered(%(symbol)s, %(start)s, %(end)s);

-- gaps_quiet_minutes --
-- How many minutes of a range had no trades.
SELECT coalesce(sum(extract(epoch FROM least(end_ts, %(end)s) - greatest(start_ts, %(start)s)) / 60), 0)::bigint
  FROM public.ohlcv_1m_gaps
 WHERE symbol = %(symbol)s AND state = 'quiet' AND end_ts > %(start)s AND start_ts < %(end)s;

-- gaps_failed --
-- The venue would not answer for these minutes, nor for so many seconds.
SELECT feature_platform.gap_failed(%(symbol)s, %(start)s, %(end)s, %(error)s, max_attempts => %(attempts)s,
                                   retry_after => make_interval(secs => %(retry_after)s));


-- ==== validation.py ====
-- Each gives one row: how much was looked at, how much of it offends, the first offending rows, and measures.

-- check_database_ready --
-- The server, its extensions and the schema are ones that this code can use.
SELECT count(*) AS checked, count(problem) AS offending,
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
             THEN 'the schema has version ' || coalesce((SELECT max(version) FROM feature_platform.schema_version)::text, 'none')
                  || ': ' || %(schema_version)s || ' is needed' END)
 ) AS condition (problem);

-- check_bars_table --
-- Columns, types and named objects of the table of bars.
WITH expected AS (
    SELECT name, type FROM unnest(%(columns)s::text[], %(types)s::text[]) AS e (name, type)
), found AS (
    SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type, attcollation
      FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
), object AS (
    SELECT conname::text AS name, convalidated AS good FROM pg_constraint WHERE conrelid = to_regclass(%(table)s)
    UNION SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass(%(table)s)
    UNION SELECT tgname::text, tgenabled IN ('O', 'A') AND tgfoid::regproc::text LIKE 'feature_platform.mark_dirty%%'
            FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s)
), judged AS (
    SELECT 'column ' || e.name AS what, CASE WHEN f.name IS NULL THEN 'missing' WHEN f.type <> e.type THEN f.type || ', not ' || e.type
           WHEN e.name = 'symbol' AND f.attcollation <> '"C"'::regcollation THEN 'not in the collation C' END AS problem
      FROM expected e LEFT JOIN found f ON f.name = e.name
    UNION ALL
    SELECT o.name, CASE WHEN NOT EXISTS (SELECT FROM object WHERE object.name = o.name) THEN 'missing'
                        WHEN NOT EXISTS (SELECT FROM object WHERE object.name = o.name AND good)
                        THEN 'not valid, not enabled for every session, or with another function' END
      FROM unnest(%(objects)s::text[]) AS o (name)
    UNION ALL
    SELECT what, problem FROM feature_platform.hazards(to_regclass(%(table)s))
)
SELECT count(*) AS checked, count(problem) AS offending,
       jsonb_agg(jsonb_build_object('what', what, 'problem', problem)) FILTER (WHERE problem IS NOT NULL) AS rows
  FROM judged;

-- check_features_table --
-- Columns, types and indexes of the table of features.
WITH expected AS (
    SELECT name, type FROM unnest(%(columns)s::text[], %(types)s::text[]) AS e (name, type)
), found AS (
    SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type, attcollation
      FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
), judged AS (
    SELECT 'column ' || e.name AS what, CASE WHEN f.name IS NULL THEN 'missing' WHEN f.type <> e.type THEN f.type || ', not ' || e.type
           WHEN e.name = 'symbol' AND f.attcollation <> '"C"'::regcollation THEN 'not in the collation C' END AS problem
      FROM expected e LEFT JOIN found f ON f.name = e.name
    UNION ALL
    SELECT o.name, CASE WHEN i.indexrelid IS NULL THEN 'missing' WHEN NOT i.indisvalid THEN 'not valid' END
      FROM unnest(%(objects)s::text[]) AS o (name)
      LEFT JOIN (pg_index i JOIN pg_class c ON c.oid = i.indexrelid)
             ON c.relname = o.name AND i.indrelid = to_regclass(%(table)s)
    UNION ALL
    SELECT what, problem FROM feature_platform.hazards(to_regclass(%(table)s))
)
SELECT count(*) AS checked, count(problem) AS offending,
       jsonb_agg(jsonb_build_object('what', what, 'problem', problem)) FILTER (WHERE problem IS NOT NULL) AS rows
  FROM judged;

-- check_bars_fresh --
-- The age of each symbol's newest closed bar, or of the newest minute after it that the venue answered for.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), newest AS (
    SELECT s.symbol, last.bar, greatest(last.bar + interval '1 minute', answered.until) AS until
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bar FROM public.ohlcv_1m b
                          WHERE b.symbol = s.symbol AND b.ts < feature_platform.bucket_of(now.at)
                          ORDER BY b.ts DESC LIMIT 1) AS last
     CROSS JOIN LATERAL (SELECT max(g.end_ts) AS until FROM public.ohlcv_1m_gaps g
                          WHERE g.symbol = s.symbol AND g.start_ts > last.bar AND g.state <> 'filled'
                            AND (g.state = 'quiet' OR (g.state = 'open' AND g.attempts > 0 AND g.last_error IS NULL))) AS answered
     WHERE s.symbol = ANY (%(symbols)s::text[])
), judged AS MATERIALIZED (
    SELECT n.symbol, n.bar, extract(epoch FROM now.at - n.until)::double precision AS age FROM newest n CROSS JOIN now
)
SELECT count(*) AS checked, count(*) FILTER (WHERE age > extract(epoch FROM %(limit)s::interval)) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'newest_bar', to_char(bar AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'age_seconds', round(age)) ORDER BY age DESC)
          FROM (SELECT * FROM judged WHERE age > extract(epoch FROM %(limit)s::interval) ORDER BY age DESC LIMIT %(show)s) AS worst) AS rows,
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
SELECT count(*) AS checked, count(ts) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'newest_bar', to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'source', coalesce(source, '')) ORDER BY ts DESC, symbol)
          FROM (SELECT * FROM judged WHERE ts IS NOT NULL ORDER BY ts DESC, symbol LIMIT %(show)s) AS farthest) AS rows,
       max(extract(epoch FROM ts - now.at))::double precision AS farthest_seconds
  FROM judged CROSS JOIN now;

-- check_minute_gaps --
-- Minutes that wait to be explained, and recent ones that the venue would not answer for; by the index of gaps.
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
           g.state = 'unavailable' OR g.start_ts < now.at - %(age)s::interval AS offends
      FROM gap g CROSS JOIN now
)
SELECT (SELECT count(*) FROM feature_platform.gap_watermark w WHERE w.symbol = ANY (%(symbols)s::text[])) AS checked,
       (SELECT count(DISTINCT symbol) FROM judged WHERE offends) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'start', to_char(start_ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'minutes', minutes::bigint, 'state', state, 'attempts', attempts,
                                            'feed', coalesce(feed, 'no recorder'), 'last_error', coalesce(last_error, '')) ORDER BY start_ts DESC)
          FROM (SELECT * FROM judged WHERE offends ORDER BY start_ts DESC LIMIT %(show)s) AS newest) AS rows,
       (SELECT count(*) FROM judged WHERE state = 'open') AS open_gaps,
       (SELECT coalesce(sum(minutes), 0)::bigint FROM judged WHERE state = 'open') AS open_minutes,
       (SELECT coalesce(sum(minutes), 0)::bigint FROM judged WHERE state = 'open' AND feed = 'dead') AS open_minutes_of_a_dead_feed,
       (SELECT coalesce(sum(minutes), 0)::bigint FROM judged WHERE state = 'unavailable') AS unavailable_minutes;

-- check_minutes_accounted_for --
-- Of every symbol the newest half hour that is accounted for, and a day of a few symbols taken at random: each minute of which no
-- change waits to be accounted for has a bar or is listed as missing, not both and not neither. One statement, hence one moment.
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
                             secs => greatest(extract(epoch FROM w.until_ts - w.since_ts)::double precision - 86400, 0))) AS lo) AS start
), judged AS MATERIALIZED (
    SELECT p.symbol, lower(r) AS lo, extract(epoch FROM upper(r) - lower(r)) / 60 AS minutes, has.present, gap.listed, gap.present_too
      FROM part p
      LEFT JOIN feature_platform.changed_minutes c ON c.symbol = p.symbol
     CROSS JOIN LATERAL unnest(tstzmultirange(tstzrange(p.lo, p.hi)) - coalesce(c.minutes, '{}')) AS r
     CROSS JOIN LATERAL (SELECT count(DISTINCT feature_platform.bucket_of(b.ts)) AS present FROM public.ohlcv_1m b
                          WHERE b.symbol = p.symbol AND b.ts >= lower(r) AND b.ts < upper(r)) AS has
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(extract(epoch FROM g.end_ts - g.start_ts) / 60), 0) AS listed,
                  coalesce(sum((SELECT count(DISTINCT feature_platform.bucket_of(b.ts)) FROM public.ohlcv_1m b
                                 WHERE b.symbol = p.symbol AND b.ts >= g.start_ts AND b.ts < g.end_ts)), 0)::bigint AS present_too
             FROM feature_platform.gaps_between(p.symbol, lower(r), upper(r)) AS g) AS gap
), offence AS MATERIALIZED (
    SELECT symbol, lo, format('%%s of %%s minutes have a bar, %%s are listed as missing, %%s of them have a bar', present, minutes::bigint, listed::bigint, present_too) AS problem
      FROM judged WHERE present + listed <> minutes OR present_too > 0
    UNION ALL
    SELECT '', max(w.until_ts), 'minutes are accounted for up to here only: no process accounts for them' FROM watermark w CROSS JOIN now
    HAVING max(w.until_ts) < max(now.at) - %(limit)s::interval
)
SELECT (SELECT coalesce(sum(minutes), 0)::bigint FROM judged) AS checked, (SELECT count(*) FROM offence) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'from', to_char(lo AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'problem', problem) ORDER BY lo DESC)
          FROM (SELECT * FROM offence ORDER BY lo DESC LIMIT %(show)s) AS newest) AS rows,
       feature_platform.minutes_to_account() AS minutes_to_account;

-- check_bars_sane --
-- Bars of the last hour that trade at one price for long, step far, or have a range of prices and no volume.
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
), offence AS MATERIALIZED (
    SELECT symbol, ts, format('%%s bars at one price', bars + 1) AS what FROM run
    UNION ALL SELECT symbol, ts, format('a step from %%s to %%s', previous, close) FROM bar WHERE abs(close / previous - 1) > %(step)s
    UNION ALL SELECT symbol, ts, format('no volume, but prices from %%s to %%s', low, high) FROM bar WHERE vol = 0 AND high <> low
)
SELECT (SELECT count(*) FROM bar) AS checked, (SELECT count(*) FROM offence) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'ts', to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'what', what) ORDER BY ts DESC)
          FROM (SELECT * FROM offence ORDER BY ts DESC LIMIT %(show)s) AS newest) AS rows;

-- check_features_rows --
-- How many of the newest nine closed minutes each symbol has a row for, or is known to have had no trades in.
WITH now AS MATERIALIZED (
    SELECT at, feature_platform.bucket_of(at) AS until FROM (SELECT feature_platform.clock() - %(settle)s::interval AS at) AS settled
), judged AS MATERIALIZED (
    SELECT s.symbol, has.rows, quiet.minutes AS quiet
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (SELECT count(*) AS rows FROM public.features_1m f
                          WHERE f.symbol = s.symbol AND f.bucket > now.at - interval '10 minutes' AND f.bucket < now.until) AS has
     CROSS JOIN LATERAL (SELECT coalesce(sum(extract(epoch FROM least(g.end_ts, now.until) - greatest(g.start_ts, now.until - interval '9 minutes')) / 60), 0)::bigint AS minutes
                           FROM public.ohlcv_1m_gaps g
                          WHERE g.symbol = s.symbol AND g.state <> 'filled' AND g.start_ts > now.at - interval '1 day'
                            AND g.start_ts < now.until AND g.end_ts > now.until - interval '9 minutes'
                            AND (g.state = 'quiet' OR (g.state = 'open' AND g.attempts > 0 AND g.last_error IS NULL))) AS quiet
     WHERE s.symbol = ANY (%(symbols)s::text[])
       -- Not a symbol that began in these minutes: by its first row or, without one, by when its first bar was stored.
       AND coalesce((SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1),
                    (SELECT greatest(feature_platform.bucket_of(b.ts), b.inserted_at) FROM public.ohlcv_1m b
                      WHERE b.symbol = s.symbol AND b.ts >= feature_platform.features_from() ORDER BY b.ts LIMIT 1))
           <= now.until - interval '9 minutes'
)
SELECT count(*) AS checked, count(*) FILTER (WHERE rows + quiet < 9) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'rows', rows, 'without_trades', quiet) ORDER BY rows, symbol)
          FROM (SELECT * FROM judged WHERE rows + quiet < 9 ORDER BY rows, symbol LIMIT %(show)s) AS worst) AS rows,
       min(rows) AS fewest_rows, sum(rows)::bigint AS rows_10_minutes
  FROM judged;

-- check_features_not_null --
-- NULLs in the newest three rows of each symbol, its first row and its first day excepted.
WITH newest AS MATERIALIZED (
    SELECT f.symbol, f.bucket, f.log_return, f.volume_z, f.bucket - first.bucket AS age
      FROM feature_platform.feature_symbol s
     CROSS JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1) AS first
     CROSS JOIN LATERAL (SELECT * FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT 3) AS f
), judged AS MATERIALIZED (
    SELECT *, (log_return IS NULL AND age > '0') OR (volume_z IS NULL AND age >= interval '1439 minutes') AS offends FROM newest
)
SELECT count(*) AS checked, count(*) FILTER (WHERE offends) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'bucket', to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                                            'log_return', log_return, 'volume_z', volume_z) ORDER BY bucket DESC, symbol)
          FROM (SELECT * FROM judged WHERE offends ORDER BY bucket DESC, symbol LIMIT %(show)s) AS newest) AS rows,
       count(*) FILTER (WHERE age < interval '1439 minutes') AS rows_in_first_day
  FROM judged;

-- check_features_fresh --
-- The age of each symbol's newest row, or of the newest minute known to have had no trades; without any row, of its first bar.
WITH now AS MATERIALIZED (
    SELECT feature_platform.clock() AS at
), newest AS (
    SELECT s.symbol, last.bucket, greatest(last.bucket + interval '1 minute', first.since, answered.until) AS until
      FROM now CROSS JOIN feature_platform.bar_symbol s
      LEFT JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT 1) AS last ON true
      LEFT JOIN LATERAL (SELECT feature_platform.bucket_of(greatest(b.ts, b.inserted_at)) AS since
                           FROM public.ohlcv_1m b
                          WHERE b.symbol = s.symbol AND last.bucket IS NULL AND b.ts >= feature_platform.features_from() AND b.ts < now.at
                          ORDER BY b.ts LIMIT 1) AS first ON true
     CROSS JOIN LATERAL (SELECT max(g.end_ts) AS until FROM public.ohlcv_1m_gaps g
                          WHERE g.symbol = s.symbol AND g.start_ts > last.bucket AND g.state <> 'filled'
                            AND (g.state = 'quiet' OR (g.state = 'open' AND g.attempts > 0 AND g.last_error IS NULL))) AS answered
     WHERE s.symbol = ANY (%(symbols)s::text[]) AND (last.bucket IS NOT NULL OR first.since IS NOT NULL)
), judged AS MATERIALIZED (
    SELECT n.symbol, n.bucket, extract(epoch FROM now.at - n.until)::double precision AS lag,
           n.until < feature_platform.bucket_of(now.at - %(settle)s::interval) AS offends
      FROM newest n CROSS JOIN now
)
SELECT count(*) AS checked, count(*) FILTER (WHERE offends) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'newest_row', coalesce(to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'none'),
                                            'lag_seconds', round(lag)) ORDER BY lag DESC)
          FROM (SELECT * FROM judged WHERE offends ORDER BY lag DESC LIMIT %(show)s) AS worst) AS rows,
       max(lag) AS worst_lag_seconds
  FROM judged;

-- check_recorder_alive --
-- Markets whose heartbeat is old, or whose feed has been anything but live for too long; none where no recorder was ever at work.
WITH judged AS MATERIALIZED (
    SELECT h.symbol, h.state, h.heard_at, h.last_error, h.refused,
           extract(epoch FROM feature_platform.clock() - h.beat_at)::double precision AS age,
           extract(epoch FROM feature_platform.clock() - h.state_at)::double precision AS since,
           h.beat_at < feature_platform.clock() - %(limit)s::interval
               OR (h.state <> 'live' AND h.state_at < feature_platform.clock() - %(limit)s::interval) AS offends
      FROM feature_platform.heartbeat h WHERE h.state <> 'not_recorded'
)
SELECT count(*) AS checked, count(*) FILTER (WHERE offends) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'state', state, 'state_seconds', round(since), 'beat_seconds', round(age),
                                            'heard_at', coalesce(to_char(heard_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), ''),
                                            'last_error', coalesce(last_error, '')) ORDER BY age DESC, symbol)
          FROM (SELECT * FROM judged WHERE offends ORDER BY age DESC, symbol LIMIT %(show)s) AS worst) AS rows,
       count(*) FILTER (WHERE state = 'live') AS live, count(*) FILTER (WHERE state = 'catching_up') AS catching_up,
       count(*) FILTER (WHERE state IN ('down', 'stopped')) AS down, max(age) AS oldest_beat_seconds, sum(refused)::bigint AS rows_refused
  FROM judged;

-- check_volume_z_shape --
-- Flat stretches, NULLs after the first day, and minutes with a bar and no row, of the last hour.
WITH now AS MATERIALIZED (
    SELECT at, feature_platform.bucket_of(at - interval '1 hour') AS since, feature_platform.bucket_of(at) AS until
      FROM (SELECT feature_platform.clock() - %(settle)s::interval AS at) AS settled
), feature AS MATERIALIZED (
    SELECT f.*
      FROM now CROSS JOIN feature_platform.feature_symbol s
     CROSS JOIN LATERAL (
           SELECT symbol, bucket, vol, volume_z, ma_vol_1d, previous,
                  count(*) FILTER (WHERE volume_z IS DISTINCT FROM previous) OVER (ORDER BY bucket) AS run
             FROM (SELECT f.symbol, f.bucket, f.vol, f.volume_z, f.ma_vol_1d, lag(f.volume_z) OVER (ORDER BY f.bucket) AS previous
                     FROM public.features_1m f WHERE f.symbol = s.symbol AND f.bucket >= now.since) AS f) AS f
), run AS (
    SELECT symbol, min(bucket) AS bucket, count(*) AS rows
      FROM feature WHERE volume_z = previous AND vol > 0
     GROUP BY symbol, run HAVING count(*) >= %(flat)s - 1
), hole AS (
    SELECT s.symbol, b.bucket
      FROM now CROSS JOIN feature_platform.bar_symbol s
     CROSS JOIN LATERAL (
           SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
            WHERE b.symbol = s.symbol AND b.ts >= now.since AND b.ts < now.until AND b.inserted_at < now.at
           EXCEPT
           SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol AND f.bucket >= now.since AND f.bucket < now.until) AS b
), offence AS MATERIALIZED (
    SELECT symbol, bucket, format('the same value in %%s rows', rows + 1) AS what FROM run
    UNION ALL SELECT symbol, bucket, 'NULL after the first day' FROM feature WHERE volume_z IS NULL AND ma_vol_1d IS NOT NULL
    UNION ALL SELECT symbol, bucket, 'a bar and no row' FROM hole
)
SELECT (SELECT count(*) FROM feature) AS checked, (SELECT count(*) FROM offence) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'bucket', to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'what', what) ORDER BY bucket DESC)
          FROM (SELECT * FROM offence ORDER BY bucket DESC LIMIT %(show)s) AS newest) AS rows;

-- check_dirty_age --
-- How long the oldest dirty row of each symbol has been dirty.
WITH judged AS MATERIALIZED (
    SELECT d.symbol, d.rows_dirty, extract(epoch FROM feature_platform.clock() - d.marked_at)::double precision AS age,
           feature_platform.clock() - d.marked_at > %(limit)s::interval AS offends
      FROM feature_platform.dirty d
)
SELECT (SELECT count(*) FROM feature_platform.bar_symbol) AS checked, count(*) FILTER (WHERE offends) AS offending,
       (SELECT jsonb_agg(jsonb_build_object('symbol', symbol, 'rows_dirty', rows_dirty, 'age_seconds', round(age)) ORDER BY age DESC)
          FROM (SELECT * FROM judged WHERE offends ORDER BY age DESC LIMIT %(show)s) AS oldest) AS rows,
       coalesce(sum(rows_dirty), 0)::bigint AS rows_dirty, coalesce(max(age), 0) AS oldest_dirty_seconds
  FROM judged;

-- check_stored_spans --
-- A few symbols taken at random, with the minutes that have rows or should.
SELECT s.symbol, span.first_ts AS first, span.end_ts AS last
  FROM (SELECT symbol FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS k ORDER BY random() LIMIT %(samples)s) AS s
 CROSS JOIN LATERAL feature_platform.symbol_span(s.symbol) AS span
 WHERE span.first_ts < span.end_ts;

-- check_policy_present --
-- Whether there is a policy.
SELECT 1 AS checked, CASE WHEN count(*) = 0 THEN 1 ELSE 0 END AS offending,
       CASE WHEN count(*) = 0 THEN '[{"problem": "SELECT add_features_1m_policy() adds one"}]'::jsonb END AS rows,
       max(start_offset)::text AS start_offset, max(end_offset)::text AS end_offset, max(schedule_interval)::text AS schedule_interval
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
    SELECT 'a run has taken ' || date_trunc('second', last_duration) FROM policy WHERE running AND last_duration > interval '10 minutes'
    UNION ALL
    SELECT last_error FROM policy WHERE last_error_at > feature_platform.clock() - interval '10 minutes'
)
SELECT (SELECT count(*) FROM policy) AS checked, CASE WHEN EXISTS (SELECT FROM problem) THEN 1 ELSE 0 END AS offending,
       (SELECT jsonb_agg(jsonb_build_object('problem', problem)) FROM problem WHERE %(show)s > 0) AS rows,
       p.runs_in, p.last_runner, extract(epoch FROM p.since)::double precision AS seconds_since_start,
       extract(epoch FROM p.last_duration)::double precision AS last_duration_seconds, p.last_rows_written, p.rows_dirty
  FROM (SELECT) AS one LEFT JOIN policy p ON true;


-- ==== orchestration ====

-- window_bars --
-- Bars and minutes without one of each symbol in a window, up to the last closed minute.
WITH span AS MATERIALIZED (
    SELECT %(start)s::timestamptz AS lo, least(%(end)s::timestamptz, feature_platform.due_until()) AS hi
)
SELECT s.symbol, has.bars, greatest(asked.minutes - has.minutes, 0) AS missing, gap.open, gap.quiet, gap.unavailable,
       coalesce(greatest(extract(epoch FROM span.hi - has.last - interval '1 minute'), 0), 0)::double precision AS lag,
       last.close AS last_close
  FROM span CROSS JOIN feature_platform.bar_symbol s
 CROSS JOIN LATERAL (SELECT count(*) AS bars, count(DISTINCT feature_platform.bucket_of(b.ts)) AS minutes,
                            feature_platform.bucket_of(max(b.ts)) AS last
                       FROM public.ohlcv_1m b WHERE b.symbol = s.symbol AND b.ts >= span.lo AND b.ts < span.hi) AS has
 CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first
 CROSS JOIN LATERAL (SELECT (extract(epoch FROM span.hi - greatest(span.lo, first.bucket)) / 60)::bigint AS minutes) AS asked
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(part.minutes) FILTER (WHERE g.state = 'open'), 0)::bigint AS open,
              coalesce(sum(part.minutes) FILTER (WHERE g.state = 'quiet'), 0)::bigint AS quiet,
              coalesce(sum(part.minutes) FILTER (WHERE g.state = 'unavailable'), 0)::bigint AS unavailable
         FROM public.ohlcv_1m_gaps g
        CROSS JOIN LATERAL (SELECT extract(epoch FROM least(g.end_ts, span.hi) - greatest(g.start_ts, span.lo)) / 60 AS minutes) AS part
        WHERE g.symbol = s.symbol AND g.state <> 'filled' AND g.start_ts < span.hi AND g.end_ts > span.lo) AS gap
  LEFT JOIN LATERAL (SELECT b.close FROM public.ohlcv_1m b WHERE b.symbol = s.symbol AND b.ts >= span.lo AND b.ts < span.hi
                      ORDER BY b.ts DESC LIMIT 1) AS last ON true
 ORDER BY missing DESC, s.symbol;

-- window_features --
-- Rows and NULLs of each symbol in a window, and minutes without a row, up to the last closed minute.
WITH span AS MATERIALIZED (
    SELECT %(start)s::timestamptz AS lo, least(%(end)s::timestamptz, feature_platform.due_until()) AS hi
)
SELECT s.symbol, has.rows, has.null_log_return, has.null_volume_z,
       greatest((extract(epoch FROM span.hi - greatest(span.lo, first.bucket)) / 60)::bigint - has.rows, 0) AS missing,
       has.spikes, coalesce(greatest(extract(epoch FROM span.hi - has.last - interval '1 minute'), 0), 0)::double precision AS lag,
       has.volatility
  FROM span CROSS JOIN feature_platform.feature_symbol s
 CROSS JOIN LATERAL (SELECT count(*) AS rows, count(*) FILTER (WHERE f.log_return IS NULL) AS null_log_return,
                            count(*) FILTER (WHERE f.volume_z IS NULL) AS null_volume_z,
                            count(*) FILTER (WHERE f.volume_z > 3) AS spikes, max(f.bucket) AS last,
                            sqrt(sum(f.log_return ^ 2)) AS volatility
                       FROM public.features_1m f WHERE f.symbol = s.symbol AND f.bucket >= span.lo AND f.bucket < span.hi) AS has
 CROSS JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1) AS first
 ORDER BY missing DESC, s.symbol;

-- newest_minutes --
-- The newest closed minute of each table: a bar of a minute that is not over does not count.
WITH now AS MATERIALIZED (
    SELECT feature_platform.bucket_of(feature_platform.clock()) AS minute
)
SELECT (SELECT max(last.minute)
          FROM now CROSS JOIN feature_platform.bar_symbol s
         CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS minute FROM public.ohlcv_1m b
                              WHERE b.symbol = s.symbol AND b.ts < now.minute ORDER BY b.ts DESC LIMIT 1) AS last) AS ohlcv_1m,
       (SELECT f.bucket FROM public.features_1m f
         WHERE f.bucket < (SELECT minute FROM now) ORDER BY f.bucket DESC LIMIT 1) AS features_1m;

-- whole_days --
-- Of these UTC days, the newest first, those that have rows, no minute to be explained and none that is dirty.
SELECT day.first
  FROM unnest(%(days)s::timestamptz[]) AS day (first)
 WHERE EXISTS (SELECT FROM public.features_1m f WHERE f.bucket >= day.first AND f.bucket < day.first + interval '24 hours')
   AND NOT EXISTS (SELECT FROM public.ohlcv_1m_gaps g
                    WHERE g.state = 'open' AND g.start_ts < day.first + interval '24 hours' AND g.end_ts > day.first)
   AND NOT EXISTS (SELECT FROM feature_platform.dirty_log l
                    WHERE l.buckets && tstzrange(day.first, day.first + interval '24 hours'))
 ORDER BY day.first DESC;

-- due_days --
-- UTC days with open gaps of some symbols that may be asked for now, newest first. `identity` changes when one of the gaps is asked for, and
-- when one is found; it does not when an outage that goes on makes its gap longer.
SELECT day.first AS day, count(*) AS gaps, array_agg(DISTINCT g.symbol ORDER BY g.symbol) AS symbols,
       sum(extract(epoch FROM least(g.end_ts, day.first + interval '24 hours') - greatest(g.start_ts, day.first)) / 60)::bigint AS minutes,
       md5(string_agg(concat_ws('|', g.symbol, extract(epoch FROM g.start_ts), extract(epoch FROM g.found_at), g.attempts,
                                extract(epoch FROM g.next_attempt_at)), ',' ORDER BY g.symbol, g.start_ts)) AS identity
  FROM public.ohlcv_1m_gaps g
 CROSS JOIN LATERAL generate_series(date_bin('24 hours', g.start_ts, '1970-01-01 00:00+00'), g.end_ts - interval '1 minute',
                                    interval '24 hours') AS day (first)
 WHERE g.state = 'open' AND (g.next_attempt_at IS NULL OR g.next_attempt_at <= feature_platform.clock())
   AND g.symbol = ANY (%(symbols)s::text[])
 GROUP BY day.first ORDER BY day.first DESC;

-- bar_symbols --
-- Every symbol that has bars.
SELECT symbol FROM feature_platform.bar_symbol;

-- recheck_gaps --
-- Have the next ticks of the accounting look at all history again.
SELECT feature_platform.recheck_gaps();

-- apply_retention --
-- Delete what is kept no longer.
CALL feature_platform.apply_retention();

-- policy_set --
-- Change the policy, or add it where there is none.
SELECT CASE WHEN EXISTS (SELECT FROM feature_platform.policy)
            THEN (SELECT 'changed' FROM public.alter_features_1m_policy(%(start_offset)s::text::interval, %(end_offset)s::text::interval, %(schedule_interval)s::text::interval))
            ELSE (SELECT 'added' FROM public.add_features_1m_policy(%(start_offset)s::text::interval, %(end_offset)s::text::interval, %(schedule_interval)s::text::interval)) END;

-- policy_runs_since --
-- What the policy's runs did after that run, and what wakes added to that one: it had written so many rows in so many slices
-- when it was reported. The newest that has ended, and what it has written so far.
SELECT count(*) FILTER (WHERE id > %(last)s) AS runs,
       coalesce(sum(rows_written - CASE WHEN id = %(last)s THEN %(rows)s ELSE 0 END), 0)::bigint AS rows_written,
       coalesce(sum(slices - CASE WHEN id = %(last)s THEN %(slices)s ELSE 0 END), 0)::bigint AS slices,
       coalesce(max(extract(epoch FROM finished_at - started_at)) FILTER (WHERE id > %(last)s), 0)::double precision AS longest_seconds,
       count(error) FILTER (WHERE id > %(last)s) AS failed, coalesce(max(id), %(last)s) AS last,
       coalesce((array_agg(rows_written ORDER BY id DESC))[1], 0) AS last_rows, coalesce((array_agg(slices ORDER BY id DESC))[1], 0) AS last_slices
  FROM feature_platform.policy_run WHERE id >= %(last)s AND finished_at IS NOT NULL;

-- policy_is_late --
-- Whether neither a worker nor a database job has begun a run for two intervals.
SELECT coalesce((SELECT max(r.started_at) FROM feature_platform.policy_run r WHERE r.runner IN ('worker', 'job')), p.changed_at)
       < feature_platform.clock() - 2 * p.schedule_interval
  FROM feature_platform.policy p;

-- policy_begin --
-- Begin a run of the policy in place of a worker; the marks that it takes.
SELECT feature_platform.policy_begin('sensor') AS run_id, feature_platform.dirty_horizon() AS horizon;


-- ==== orchestration/purge.py, in Dagster's own database ====

-- purge_index --
-- What the UI asks for each check, its newest execution, by an index that Dagster does not make.
CREATE INDEX IF NOT EXISTS feature_platform_check_idx ON asset_check_executions (asset_key, check_name, id);

-- purge_check_executions --
-- Delete so many executions of checks that are old and not the newest of their check.
WITH old AS (
    SELECT e.id FROM asset_check_executions e
     WHERE e.create_timestamp < %(before)s::timestamptz AT TIME ZONE 'UTC'
       AND EXISTS (SELECT FROM asset_check_executions n
                    WHERE n.asset_key = e.asset_key AND n.check_name = e.check_name AND n.id > e.id
                      AND n.execution_status <> 'PLANNED')
     ORDER BY e.id LIMIT %(limit)s
)
DELETE FROM asset_check_executions e USING old WHERE e.id = old.id;

-- purge_events --
-- Delete, of so many old events, those that tell nothing that a newer one does not: the newest of each kind, asset and
-- partition stays, and so does the newest result of each check, and all of a run that is not over.
WITH old AS MATERIALIZED (
    SELECT l.id FROM event_logs l
     WHERE l.timestamp < %(before)s::timestamptz AT TIME ZONE 'UTC' AND l.id > %(after)s
     ORDER BY l.id LIMIT %(limit)s
), gone AS (
    DELETE FROM event_logs l USING old
     WHERE l.id = old.id
       AND NOT EXISTS (SELECT FROM asset_check_executions c WHERE c.evaluation_event_storage_id = l.id)
       AND NOT EXISTS (SELECT FROM runs r WHERE r.run_id = l.run_id AND r.status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED'))
       AND (l.asset_key IS NULL
            OR EXISTS (SELECT FROM event_logs n
                        WHERE n.asset_key = l.asset_key AND n.dagster_event_type = l.dagster_event_type
                          AND n.partition IS NOT DISTINCT FROM l.partition AND n.id > l.id))
    RETURNING l.id
)
SELECT (SELECT max(id) FROM old) AS after, (SELECT count(*) FROM gone) AS deleted;

-- purge_runs --
-- Delete so many old runs, with their tags, of which no event is left.
WITH old AS (
    SELECT r.run_id FROM runs r
     WHERE r.update_timestamp < %(before)s::timestamptz AT TIME ZONE 'UTC' AND r.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
       AND NOT EXISTS (SELECT FROM event_logs l WHERE l.run_id = r.run_id)
     ORDER BY r.id LIMIT %(limit)s
)
DELETE FROM runs r USING old WHERE r.run_id = old.run_id;

-- purge_size --
-- How large the database is, in bytes.
SELECT pg_database_size(current_database());


-- ==== service ====

-- service_session --
-- Have a session of the service give up on time, write nothing, and tell time in UTC.
SELECT set_config('statement_timeout', %(statement_timeout)s, false), set_config('default_transaction_read_only', 'on', false),
       set_config('timezone', 'UTC', false);

-- service_latest --
-- The newest row of each of some symbols, and how many seconds ago its minute ended.
SELECT f.symbol, f.bucket, f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z, f.vwap_gap,
       f.parkinson_vol, extract(epoch FROM feature_platform.clock() - f.bucket - interval '1 minute')::double precision AS age_seconds
  FROM unnest(%(symbols)s::text[]) AS asked (symbol)
 CROSS JOIN LATERAL (SELECT * FROM public.features_1m f
                      WHERE f.symbol = asked.symbol COLLATE "C" ORDER BY f.bucket DESC LIMIT 1) AS f;

-- service_rows --
-- Some rows of one symbol, from start to end, in the order of time.
SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket LIMIT %(rows)s;

-- service_next_start --
-- The minute of the row that comes after so many, from start to end; no row where there are no more.
SELECT bucket
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket OFFSET %(rows)s LIMIT 1;

-- service_symbol_is_known --
-- Whether a symbol has feature rows; the table is asked only for symbols that ever had a bar.
SELECT CASE WHEN EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = %(symbol)s)
            THEN (SELECT true FROM public.features_1m f
                   WHERE f.symbol = %(symbol)s ORDER BY f.bucket DESC LIMIT 1) IS NOT NULL
            ELSE false END;

-- service_known_symbols --
-- The symbols that have feature rows, for an error to propose the nearest.
SELECT symbol FROM feature_platform.feature_symbol LIMIT 5000;

-- service_symbols --
-- Every symbol that has feature rows, its first and last one, and how many seconds ago the last one's minute ended.
SELECT s.symbol, ends.first, ends.last,
       extract(epoch FROM feature_platform.clock() - ends.last - interval '1 minute')::double precision AS age_seconds
  FROM feature_platform.feature_symbol s
 CROSS JOIN LATERAL (
       SELECT (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1) AS first,
              (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT 1) AS last
 ) AS ends
 ORDER BY s.symbol;

-- service_dirty --
-- How many rows are dirty, and for how many seconds the oldest has been.
SELECT coalesce(sum(rows_dirty), 0)::bigint,
       coalesce(extract(epoch FROM feature_platform.clock() - min(marked_at)), 0)::double precision
  FROM feature_platform.dirty;

-- service_gaps --
-- The minutes of the last 24 hours without a bar, by state, by the index of gaps.
WITH day AS MATERIALIZED (
    SELECT at - interval '24 hours' AS since, at AS until FROM feature_platform.clock() AS now (at)
), gap AS (
    SELECT g.state, extract(epoch FROM least(g.end_ts, day.until) - greatest(g.start_ts, day.since)) / 60 AS minutes
      FROM day CROSS JOIN feature_platform.gap_watermark w
     CROSS JOIN LATERAL (
           (SELECT g.* FROM public.ohlcv_1m_gaps g -- the one that may reach into the day
             WHERE g.symbol = w.symbol AND g.state <> 'filled' AND g.start_ts < day.since ORDER BY g.start_ts DESC LIMIT 1)
           UNION ALL
           SELECT g.* FROM public.ohlcv_1m_gaps g
            WHERE g.symbol = w.symbol AND g.state <> 'filled' AND g.start_ts >= day.since AND g.start_ts < day.until) AS g
     WHERE g.end_ts > day.since
)
SELECT s.state, coalesce(sum(gap.minutes), 0)::double precision
  FROM unnest('{open,quiet,unavailable}'::text[]) AS s (state)
  LEFT JOIN gap ON gap.state = s.state
 GROUP BY s.state ORDER BY s.state;

-- service_policy --
-- Whether there is a policy, and its last run: when it began, how many seconds it took, what it wrote.
SELECT EXISTS (SELECT FROM feature_platform.policy), extract(epoch FROM run.started_at)::double precision,
       extract(epoch FROM run.finished_at - run.started_at)::double precision, run.rows_written
  FROM (VALUES (1)) AS one
  LEFT JOIN LATERAL (SELECT * FROM feature_platform.policy_run r ORDER BY r.id DESC LIMIT 1) AS run ON true;

-- service_policy_runs --
-- How the runs of the last hour ended, of the last thousand.
SELECT o.outcome, count(r.id)
  FROM unnest('{ok,failed,unfinished}'::text[]) AS o (outcome)
  LEFT JOIN (SELECT id, started_at,
                    CASE WHEN error IS NOT NULL THEN 'failed' WHEN finished_at IS NULL THEN 'unfinished' ELSE 'ok' END AS outcome
               FROM feature_platform.policy_run ORDER BY id DESC LIMIT 1000) AS r
         ON r.outcome = o.outcome AND r.started_at > feature_platform.clock() - interval '1 hour'
 GROUP BY o.outcome ORDER BY o.outcome;

-- service_recorder --
-- What the recorder said last of each market, and for how many seconds it and the market have been silent.
SELECT symbol, state, extract(epoch FROM feature_platform.clock() - beat_at)::double precision AS beat_age,
       extract(epoch FROM feature_platform.clock() - heard_at)::double precision AS heard_age, refused
  FROM feature_platform.heartbeat
 ORDER BY symbol;


-- ==== frames.py ====
-- Sent over ADBC, whose parameters are $1, $2, …; what stands in braces are identifiers.

-- frames_unknown --
-- Which of some symbols a table has no row of: one index look-up each. The table is read only for symbols that ever
-- had a bar, and only their newest row, which is in the first chunk that is read.
SELECT wanted.symbol
  FROM unnest($1::text[]) WITH ORDINALITY AS wanted (symbol, number)
 WHERE CASE WHEN EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = wanted.symbol)
            THEN (SELECT true FROM {table} t WHERE t.symbol = wanted.symbol ORDER BY t.{time} DESC LIMIT 1) IS NULL
            ELSE true END
 ORDER BY wanted.number;

-- frames_known --
-- All symbols of a table.
SELECT symbol FROM {view};

-- frames_window --
-- Keep the parameters of frames_read, which COPY takes none of, until the end of the transaction.
SELECT set_config('feature_platform.read_symbols', $1::text[]::text, true),
       set_config('feature_platform.read_start', $2::timestamptz::text, true),
       set_config('feature_platform.read_end', $3::timestamptz::text, true);

-- frames_read --
-- The rows of some symbols in a window, in order.
SELECT {columns}
  FROM {table}
 WHERE symbol = ANY (current_setting('feature_platform.read_symbols')::text[])
   AND {time} >= current_setting('feature_platform.read_start')::timestamptz
   AND {time} < current_setting('feature_platform.read_end')::timestamptz
 ORDER BY symbol, {time};

-- frames_latest --
-- The newest features of each of some symbols, or of all, by one index look-up each.
SELECT f.*
  FROM unnest(coalesce($1::text[], (SELECT array_agg(symbol) FROM feature_platform.feature_symbol))) AS wanted (symbol)
 CROSS JOIN LATERAL (SELECT symbol, bucket, {columns}
                       FROM public.features_1m f
                      WHERE f.symbol = wanted.symbol
                      ORDER BY bucket DESC
                      LIMIT 1) AS f
 ORDER BY f.symbol;


-- ==== recorder ====

-- recorder_store --
-- Store bars of a stream, of any markets, none twice: new ones, and corrections of what a stream said before. What the exchange
-- said over REST, or a file, is left as it is; where it differs, symbol and time are returned for the exchange to be asked again.
WITH incoming AS (
    SELECT symbol COLLATE "C" AS symbol, '1970-01-01 00:00+00'::timestamptz + us * interval '1 microsecond' AS ts, us, open, high, low, close, vol
      FROM unnest(%(symbol)s::text[], %(ts)s::bigint[], %(open)s::double precision[], %(high)s::double precision[],
                  %(low)s::double precision[], %(close)s::double precision[], %(vol)s::double precision[])
           AS bar (symbol, us, open, high, low, close, vol)
), differing AS MATERIALIZED (
    SELECT i.*, o.source
      FROM incoming i
      LEFT JOIN public.ohlcv_1m o
             ON o.symbol = i.symbol AND o.ts = i.ts AND o.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
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
-- When the newest bar of a symbol before a moment began.
SELECT ts FROM public.ohlcv_1m WHERE symbol = %(symbol)s AND ts < %(before)s ORDER BY ts DESC LIMIT 1;

-- heartbeat_begin --
-- A recorder begins with some symbols: the outage since the last beat of the one before, and the symbols that are recorded no more.
WITH last AS (
    SELECT max(beat_at) AS at FROM feature_platform.heartbeat WHERE state <> 'not_recorded'
), outage AS (
    INSERT INTO feature_platform.feed_outage (from_at, to_at, reason)
    SELECT last.at, feature_platform.clock(), 'no recorder was running' FROM last WHERE last.at < feature_platform.clock()
), ended AS (
    UPDATE feature_platform.heartbeat SET state = 'not_recorded', state_at = beat_at, connected_at = NULL
     WHERE symbol <> ALL (%(symbols)s) AND state <> 'not_recorded'
)
INSERT INTO feature_platform.heartbeat AS h (symbol, exchange, state, state_at, first_at, beat_at)
SELECT symbol, exchange, 'down', now.at, now.at, now.at
  FROM unnest(%(symbols)s::text[], %(exchanges)s::text[]) AS s (symbol, exchange) CROSS JOIN feature_platform.clock() AS now (at)
 ORDER BY symbol
ON CONFLICT (symbol) DO UPDATE
   SET exchange = excluded.exchange, state = 'down', state_at = excluded.state_at, connected_at = NULL, beat_at = excluded.beat_at,
       refused = 0, first_at = CASE WHEN h.state = 'not_recorded' THEN excluded.first_at ELSE h.first_at END;

-- heartbeat_outages --
-- Note outages that are over, and forget what is long past.
WITH gone AS (
    DELETE FROM feature_platform.feed_outage WHERE to_at < feature_platform.clock() - interval '30 days'
)
INSERT INTO feature_platform.feed_outage (from_at, to_at, reason, exchange)
SELECT least(from_at, to_at), to_at, reason, exchange
  FROM unnest(%(start)s::timestamptz[], %(end)s::timestamptz[], %(reason)s::text[], %(exchange)s::text[]) AS o (from_at, to_at, reason, exchange);

-- heartbeat_write --
-- What is heard of each market now.
UPDATE feature_platform.heartbeat h
   SET state = b.state, state_at = b.state_at, connected_at = b.connected_at, heard_at = coalesce(b.heard_at, h.heard_at),
       bar_at = coalesce(b.bar_at, h.bar_at), refused = b.refused, last_error = b.last_error, last_error_at = b.last_error_at,
       beat_at = feature_platform.clock()
  FROM unnest(%(symbol)s::text[], %(state)s::text[], %(state_at)s::timestamptz[], %(connected_at)s::timestamptz[],
              %(heard_at)s::timestamptz[], %(bar_at)s::timestamptz[], %(refused)s::bigint[], %(last_error)s::text[],
              %(last_error_at)s::timestamptz[])
       AS b (symbol, state, state_at, connected_at, heard_at, bar_at, refused, last_error, last_error_at)
 WHERE h.symbol = b.symbol;

-- heartbeat_list --
-- What the recorder hears of each market.
SELECT symbol, state, state_at, connected_at, heard_at, bar_at, beat_at, refused, last_error,
       extract(epoch FROM feature_platform.clock() - beat_at)::double precision AS age
  FROM feature_platform.heartbeat ORDER BY symbol;
