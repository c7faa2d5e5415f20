-- Every statement that the benchmarks send, by name, in one block for each module that sends it.


-- ==== bars.py ====

-- create_generator --
-- Generated bars, which depend only on the numbers of symbol and minute.
CREATE SCHEMA benchmark;

CREATE FUNCTION benchmark.noise(symbol integer, minute bigint, seed bigint) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (hashint8extended(minute * 100000 + symbol, seed) & 2147483647) / 2147483648.0::double precision;

CREATE FUNCTION benchmark.symbol_name(symbol integer) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 'SYM' || lpad(symbol::text, greatest(4, length(symbol::text)), '0') || '/USDT';

CREATE FUNCTION benchmark.moment(minute bigint) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN '2024-01-01 00:00:00+00'::timestamptz + minute * interval '1 minute';

-- Prices have three decimals, as on many exchanges.
CREATE FUNCTION benchmark.price(symbol integer, minute bigint) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN round(((10 + symbol % 90) * exp(0.05 * sin(minute / 700.0 + symbol)
                                           + 0.002 * benchmark.noise(symbol, minute, 1)))::numeric, 3)::double precision;

-- Volumes have two decimals, and rise and fall with the hours.
CREATE FUNCTION benchmark.bar(
    symbol integer, minute bigint,
    OUT open double precision, OUT high double precision, OUT low double precision, OUT close double precision,
    OUT vol double precision)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT open, round((greatest(open, close) * (1 + 0.001 * benchmark.noise(symbol, minute, 2)))::numeric, 3)::double precision,
           round((least(open, close) * (1 - 0.001 * benchmark.noise(symbol, minute, 3)))::numeric, 3)::double precision, close,
           round(exp(3 + sin(minute / 200.0) + 2 * benchmark.noise(symbol, minute, 4))::numeric, 2)::double precision
      FROM (SELECT benchmark.price(symbol, minute - 1) AS open, benchmark.price(symbol, minute) AS close OFFSET 0) AS price;
END;

-- insert_bars --
-- Store the bars of some symbols over some minutes, last ones included.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT benchmark.symbol_name(s.symbol::integer), benchmark.moment(m.minute), b.*
  FROM generate_series(%(first_symbol)s::bigint, %(last_symbol)s) AS s (symbol)
 CROSS JOIN generate_series(%(first_minute)s::bigint, %(last_minute)s) AS m (minute)
 CROSS JOIN LATERAL benchmark.bar(s.symbol::integer, m.minute) AS b;

-- refresh --
-- The measured statement: refresh all features.
CALL refresh_features_1m(NULL, NULL);

-- settle --
-- Do the work of autovacuum before a measurement.
VACUUM (ANALYZE) public.ohlcv_1m, public.features_1m, feature_platform.dirty_log, feature_platform.symbol_state,
       feature_platform.features_1m_state;

-- checkpoint --
-- Write the prepared pages to disk before a measurement.
CHECKPOINT;


-- ==== one_minute.py ====

-- window_functions_of_last_day --
-- Recompute the features of the last day with window functions, as without the platform.
CREATE TEMPORARY TABLE last_day AS
WITH newest AS (
    SELECT benchmark.moment(%(newest_minute)s) AS ts
), windowed AS (
    SELECT symbol, ts AS bucket, close AS last_close, vol, high, low, (open + high + low + close) / 4 AS price,
           lag(close) OVER (PARTITION BY symbol ORDER BY ts) AS previous_close, count(*) OVER one_day AS n,
           sum(vol::text::numeric) OVER one_day AS total,
           sum(vol::text::numeric * vol::text::numeric) OVER one_day AS total_sq
      FROM public.ohlcv_1m
     WHERE ts > (SELECT ts FROM newest) - interval '48 hours'
    WINDOW one_day AS (PARTITION BY symbol ORDER BY ts RANGE BETWEEN interval '1439 minutes' PRECEDING AND CURRENT ROW)
), moments AS (
    SELECT w.*, total::double precision / n AS mean, sqrt((n * total_sq - total * total)::double precision) / n AS deviation
      FROM windowed w
     WHERE bucket > (SELECT ts FROM newest) - interval '24 hours'
)
SELECT symbol, bucket, last_close, vol, ln(last_close / previous_close) AS log_return, n::integer AS n_1d,
       mean AS ma_vol_1d, deviation AS std_vol_1d, CASE WHEN deviation > 0 THEN (vol - mean) / deviation END AS volume_z,
       last_close - CASE WHEN vol > 0 THEN price * vol / vol ELSE price END AS vwap_gap, 0.5 * ln(high / low) ^ 2 AS parkinson_vol
  FROM moments;

-- count_last_day --
-- How many rows were recomputed.
SELECT count(*) FROM pg_temp.last_day;

-- count_other_values --
-- How many of the recomputed rows are not the stored ones, bit for bit.
SELECT count(*)
  FROM (TABLE pg_temp.last_day
        EXCEPT
        SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
          FROM public.features_1m WHERE bucket >= (SELECT min(bucket) FROM pg_temp.last_day)) AS others;

-- drop_last_day --
-- Drop the recomputed rows.
DROP TABLE pg_temp.last_day;

-- vacuum_small_tables --
-- The work that autovacuum does every few minutes, which are a second here.
VACUUM feature_platform.dirty_log, feature_platform.symbol_state,
       feature_platform.features_1m_state;


-- ==== full_build.py ====

-- keep_marks --
-- The marks that the load of the bars left, to build from them more than once.
CREATE TABLE benchmark.mark AS TABLE feature_platform.dirty_log;

-- keep_finished --
-- The finished rows.
CREATE TABLE benchmark.finished AS SELECT * FROM public.features_1m ORDER BY symbol, bucket;

-- analyze_finished --
-- Collect their statistics.
VACUUM (ANALYZE) benchmark.finished;

-- forget_features --
-- The state before the first refresh, but for the marks.
TRUNCATE public.features_1m, feature_platform.symbol_state, feature_platform.features_1m_state,
         feature_platform.dirty_log;

-- mark_again --
-- The marks as the load left them.
INSERT INTO feature_platform.dirty_log TABLE benchmark.mark;

-- insert_finished --
-- The least that a build can cost: to store the finished rows.
INSERT INTO public.features_1m SELECT * FROM benchmark.finished ORDER BY symbol, bucket;

-- count_features --
-- How many rows there are.
SELECT count(*) FROM public.features_1m;


-- ==== correction.py ====

-- keep_original_rows --
-- The rows that corrections will dirty, as they are before.
CREATE TABLE benchmark.original AS
SELECT * FROM public.features_1m
 WHERE symbol BETWEEN benchmark.symbol_name(%(first_symbol)s) AND benchmark.symbol_name(%(last_symbol)s)
   AND bucket >= benchmark.moment(%(minute)s) AND bucket < benchmark.moment(%(minute)s) + interval '24 hours'
 ORDER BY symbol, bucket;

-- work_out_corrected_rows --
-- The same rows as they will be after, by plain window functions.
CREATE TABLE benchmark.corrected AS
WITH bar AS (
    SELECT symbol, ts, open, high, low, close,
           CASE WHEN ts = benchmark.moment(%(minute)s) THEN round((vol + 12.34)::numeric, 2)::double precision ELSE vol END AS vol
      FROM public.ohlcv_1m
     WHERE symbol BETWEEN benchmark.symbol_name(%(first_symbol)s) AND benchmark.symbol_name(%(last_symbol)s)
       AND ts >= benchmark.moment(%(minute)s) - interval '24 hours' AND ts < benchmark.moment(%(minute)s) + interval '24 hours'
), windowed AS (
    SELECT symbol, ts AS bucket, close AS last_close, vol, high, low, (open + high + low + close) / 4 AS price,
           lag(close) OVER (PARTITION BY symbol ORDER BY ts) AS previous_close, count(*) OVER one_day AS n,
           sum(vol::text::numeric) OVER one_day AS total,
           sum(vol::text::numeric * vol::text::numeric) OVER one_day AS total_sq
      FROM bar
    WINDOW one_day AS (PARTITION BY symbol ORDER BY ts RANGE BETWEEN interval '1439 minutes' PRECEDING AND CURRENT ROW)
), moments AS (
    SELECT w.*, total::double precision / n AS mean, sqrt((n * total_sq - total * total)::double precision) / n AS deviation
      FROM windowed w
     WHERE bucket >= benchmark.moment(%(minute)s)
)
SELECT symbol, bucket, last_close, vol, ln(last_close / previous_close) AS log_return, n::integer AS n_1d,
       mean AS ma_vol_1d, deviation AS std_vol_1d, CASE WHEN deviation > 0 THEN (vol - mean) / deviation END AS volume_z,
       last_close - CASE WHEN vol > 0 THEN price * vol / vol ELSE price END AS vwap_gap, 0.5 * ln(high / low) ^ 2 AS parkinson_vol
  FROM moments;

-- index_prepared_rows --
-- Find those of one symbol.
CREATE INDEX ON benchmark.original (symbol);
CREATE INDEX ON benchmark.corrected (symbol);

-- correct_bar --
-- Correct the volume of one bar, as an exchange does, or revert the correction.
UPDATE public.ohlcv_1m SET vol = round((vol + %(by)s::double precision)::numeric, 2)::double precision
 WHERE symbol = benchmark.symbol_name(%(symbol)s) AND ts = benchmark.moment(%(minute)s);

-- forget_marks --
-- Delete the marks of the correction: its rows are updated by hand.
DELETE FROM feature_platform.dirty_log;

-- prepare_corrected_rows --
-- The finished rows behind one correction, ready to be joined.
CREATE TEMPORARY TABLE finished AS
SELECT * FROM benchmark.corrected WHERE symbol = benchmark.symbol_name(%(symbol)s) ORDER BY bucket;

-- prepare_original_rows --
-- The finished rows behind a correction that is taken back, ready to be joined.
CREATE TEMPORARY TABLE finished AS
SELECT * FROM benchmark.original WHERE symbol = benchmark.symbol_name(%(symbol)s) ORDER BY bucket;

-- analyze_prepared_rows --
-- Collect their statistics.
ANALYZE pg_temp.finished;

-- bare_update --
-- The lower bound of a repair: update the rows of the correction to known values. The range is
-- spelt out, or the planner reads the index from the table's first symbol on.
UPDATE public.features_1m f
   SET last_close = n.last_close, vol = n.vol, log_return = n.log_return, n_1d = n.n_1d, ma_vol_1d = n.ma_vol_1d,
       std_vol_1d = n.std_vol_1d, volume_z = n.volume_z, vwap_gap = n.vwap_gap, parkinson_vol = n.parkinson_vol
  FROM pg_temp.finished n
 WHERE f.symbol = benchmark.symbol_name(%(symbol)s) AND f.bucket >= benchmark.moment(%(minute)s)
   AND f.bucket < benchmark.moment(%(minute)s) + interval '24 hours'
   AND f.symbol = n.symbol AND f.bucket = n.bucket;

-- drop_prepared_rows --
-- Forget them.
DROP TABLE pg_temp.finished;

-- vacuum_rows --
-- Leave as little of one repair to the next as autovacuum would.
VACUUM public.ohlcv_1m, public.features_1m;


-- ==== import_files.py ====

-- copy_klines --
-- Lines of a Binance klines file: times in milliseconds, and columns that the platform has no use for.
COPY (
    SELECT extract(epoch FROM benchmark.moment(m.minute))::bigint * 1000, b.open, b.high, b.low, b.close, b.vol,
           extract(epoch FROM benchmark.moment(m.minute))::bigint * 1000 + 59999, round((b.vol * b.close)::numeric, 5),
           (b.vol / 3)::integer, round((b.vol / 2)::numeric, 2), round((b.vol * b.close / 2)::numeric, 5), 0
      FROM generate_series(%(first_minute)s::bigint, %(last_minute)s) AS m (minute)
     CROSS JOIN LATERAL benchmark.bar(1, m.minute) AS b
     ORDER BY m.minute
) TO STDOUT (FORMAT csv);

-- copy_bars --
-- The same bars in the form of the table.
COPY (
    SELECT benchmark.symbol_name(1), benchmark.moment(m.minute), b.*
      FROM generate_series(%(first_minute)s::bigint, %(last_minute)s) AS m (minute)
     CROSS JOIN LATERAL benchmark.bar(1, m.minute) AS b
     ORDER BY m.minute
) TO STDOUT (FORMAT csv);

-- create_bare_table --
-- The table of bars with its constraints, defaults and indexes, but no triggers.
CREATE TABLE benchmark.bare (LIKE public.ohlcv_1m INCLUDING ALL);

-- empty_bare_table --
-- An empty table again.
TRUNCATE benchmark.bare;

-- empty_bars --
-- An empty database again.
TRUNCATE public.ohlcv_1m, feature_platform.dirty_log;

-- bare_copy --
-- The least that an import can cost: to copy the bars as they are.
COPY benchmark.bare (symbol, ts, open, high, low, close, vol) FROM STDIN (FORMAT csv);

-- count_other_bars --
-- How many bars of the bare copy the import did not store alike.
SELECT count(*)
  FROM benchmark.bare c
  FULL JOIN public.ohlcv_1m b ON b.symbol = c.symbol AND b.ts = c.ts
 WHERE (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM (c.open, c.high, c.low, c.close, c.vol);


-- ==== machine.py ====

-- settings --
-- Some of the server's settings.
SELECT name, current_setting(name) FROM unnest(%(names)s::text[]) AS name;


-- ==== read_year.py ====

-- copy_year --
-- All rows of the one symbol, raw.
COPY (SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
        FROM public.features_1m WHERE symbol = 'SYM0001/USDT' ORDER BY bucket) TO STDOUT (FORMAT binary);

-- read_year --
-- The same rows, for pd.read_sql over psycopg.
SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
  FROM public.features_1m WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s ORDER BY bucket;

-- read_year_sqlalchemy --
-- The same rows, for pd.read_sql over SQLAlchemy.
SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
  FROM public.features_1m WHERE symbol = :symbol AND bucket >= :start AND bucket < :end ORDER BY bucket;


-- ==== lag.py ====

-- remove_policy --
-- Remove the policy: only the benchmark refreshes.
SELECT remove_features_1m_policy(if_exists => true);

-- set_schedule --
-- A policy that a worker runs every so many seconds.
SELECT add_features_1m_policy(schedule_interval => make_interval(secs => %(seconds)s));

-- disable_triggers --
-- Have writers run no trigger.
ALTER TABLE public.ohlcv_1m DISABLE TRIGGER USER;

-- enable_triggers --
-- Have writers run the triggers again.
ALTER TABLE public.ohlcv_1m ENABLE TRIGGER USER;

-- mark_all --
-- Mark the bars that were written without triggers.
SELECT feature_platform.mark_window('-infinity', 'infinity');

-- run_job --
-- Run the policy once, as a database job does.
CALL feature_platform.run_policy();

-- woken_slices --
-- How many slices commits have led to.
SELECT sum(wakes) FROM feature_platform.policy_run;

-- rows_of_minute --
-- Whose rows of a minute can be read.
SELECT symbol FROM public.features_1m WHERE bucket = %(bucket)s;

-- write_bar --
-- Store a bar's volume, as a writer of single bars does.
UPDATE public.ohlcv_1m SET vol = %(by)s
 WHERE symbol = benchmark.symbol_name(%(symbol)s) AND ts = benchmark.moment(%(minute)s);


-- ==== worker_process.py ====

-- ended_runs --
-- How many runs of the policy have ended.
SELECT count(*) FROM feature_platform.policy_run WHERE finished_at IS NOT NULL;


-- ==== heavy_lag.py ====

-- live_history --
-- An hour of bars of each live symbol, up to the minute before a minute.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT 'LIVE' || lpad(s::text, 5, '0'), benchmark.moment(%(minute)s::bigint - m), 10, 10, 10, 10, s
  FROM generate_series(1, %(symbols)s::integer) AS s, generate_series(1, 60) AS m;

-- heavy_history --
-- Bars of each symbol that a heavy statement writes, first and last minute included.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT 'SYM' || lpad(s::text, 5, '0'), benchmark.moment(m), 10, 12, 9, 10 + m %% 3, 1 + (m + s) %% 7
  FROM generate_series(1, %(symbols)s::integer) AS s, generate_series(%(first)s::bigint, %(last)s) AS m;

-- heavy_correction --
-- Correct the newest bar of each symbol.
UPDATE public.ohlcv_1m SET vol = %(round)s + %(minute)s::double precision
 WHERE symbol IN (SELECT 'SYM' || lpad(s::text, 5, '0') FROM generate_series(1, %(symbols)s::integer) AS s)
   AND ts = (SELECT max(b.ts) FROM public.ohlcv_1m b WHERE b.symbol = 'SYM00001');

-- heavy_ticks --
-- Store a row for each second of a minute of each symbol.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT 'SYM' || lpad(s::text, 5, '0'), benchmark.moment(%(minute)s) + t * interval '1 second', 10, 12, 9, 10 + t %% 3, t
  FROM generate_series(1, %(symbols)s::integer) AS s, generate_series(0, 59) AS t;

-- heavy_symbols --
-- Store the first bar of each of many symbols.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT 'SYM' || %(round)s || lpad(s::text, 6, '0'), benchmark.moment(%(minute)s), 10, 12, 9, 10, s
  FROM generate_series(1, %(symbols)s::integer) AS s;

-- heavy_marks --
-- Whether the heavy statement's symbols have anything left to refresh.
SELECT count(*) FROM (SELECT FROM feature_platform.dirty_log WHERE symbol >= 'SYM' LIMIT 1) AS mark;

-- write_live_bar --
-- Store the newest bar of a live symbol.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
VALUES (%(symbol)s, benchmark.moment(%(minute)s), 10, 10, 10, 10, 1);

-- live_rows --
-- Whose rows of a minute can be read.
SELECT symbol FROM public.features_1m WHERE symbol = ANY (%(symbols)s::text[]) AND bucket = %(bucket)s;


-- ==== views.py ====

-- settle_views --
-- Do the work of autovacuum before a measurement, of all tables.
VACUUM (ANALYZE);

-- refresh_newest_of_view --
-- The measured statement: refresh the newest rows of a view, as the worker does.
SELECT s.symbols, s.rows_written::integer, s.more
  FROM feature_platform.feature_view v
 CROSS JOIN LATERAL feature_platform.view_slice(
           v.id, '-infinity', feature_platform.view_due(v.every, v.origin), live => true) AS s
 WHERE v.name = %(name)s;

-- clear_view_changes --
-- Delete what all views have processed, as the worker does.
SELECT feature_platform.clear_view_changes();

-- pick_symbols_of_views --
-- The search of each view for symbols whose changes it has not processed.
SELECT count(*) FROM feature_platform.feature_view v
 CROSS JOIN LATERAL unnest(feature_platform.pick_view_symbols(v.id, '-infinity', 'infinity', true, 1000)) AS symbol;

-- unbuilt_symbols --
-- How many symbols of a view are not built to their first bucket.
SELECT count(*) FROM feature_platform.view_symbol WHERE dirty <> '{}';


-- ==== memory.py ====

-- some_features --
-- How many rows there are, at most one.
SELECT count(*) FROM (SELECT FROM features_1m LIMIT 1) AS row;


-- ==== validation_poll.py ====

-- poll_rows_of_symbols --
-- SELECT COUNT(*) FROM features_1m WHERE bucket > now()-'10 minutes'::interval, symbol by symbol; and the time.
SELECT to_char(now() AT TIME ZONE 'UTC', 'HH24:MI:SS.MS'), extract(second FROM now())::double precision, s.symbol,
       (SELECT count(*) FROM features_1m f WHERE f.symbol = s.symbol AND f.bucket > now() - '10 minutes'::interval)
  FROM (SELECT DISTINCT symbol FROM features_1m WHERE bucket > now() - '1 hour'::interval) AS s;

-- poll_nulls --
-- Which of SELECT * FROM features_1m ORDER BY bucket DESC LIMIT 3 have a NULL after the first day of their symbol.
SELECT to_char(now() AT TIME ZONE 'UTC', 'HH24:MI:SS.MS'), n.symbol, n.bucket
  FROM (SELECT * FROM features_1m ORDER BY bucket DESC LIMIT 3) AS n
 WHERE NOT (n IS NOT NULL)
   AND n.bucket >= (SELECT f.bucket FROM features_1m f WHERE f.symbol = n.symbol ORDER BY f.bucket LIMIT 1) + '1439 minutes'::interval;


-- ==== ticks.py ====

-- keep_out_of_the_log --
-- Tables that no tick writes need no log.
ALTER TABLE public.ohlcv_1m SET UNLOGGED;
ALTER TABLE public.features_1m SET UNLOGGED;

-- store_first_symbol --
-- The bars of one symbol: of every recent minute, and before of one hour in so many.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT benchmark.symbol_name(1), benchmark.moment(m.minute), b.*
  FROM generate_series(%(first_minute)s::bigint, %(last_minute)s) AS m (minute)
 CROSS JOIN LATERAL benchmark.bar(1, m.minute) AS b
 WHERE m.minute >= %(recent_minute)s OR (m.minute - %(first_minute)s) / 60 %% %(traded)s = 0;

-- triggers_off --
-- Have copies mark nothing dirty: they come with their features.
SET session_replication_role = replica;

-- triggers_on --
-- Let stored bars mark their features again.
RESET session_replication_role;

-- multiply_bars --
-- The same bars for every other symbol.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT benchmark.symbol_name(s.symbol), b.ts, b.open, b.high, b.low, b.close, b.vol
  FROM generate_series(2, %(symbols)s) AS s (symbol)
 CROSS JOIN LATERAL (SELECT * FROM public.ohlcv_1m b WHERE b.symbol = benchmark.symbol_name(1) ORDER BY b.ts) AS b;

-- multiply_features --
-- And their features.
INSERT INTO public.features_1m (symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol)
SELECT benchmark.symbol_name(s.symbol), f.bucket, f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z,
       f.vwap_gap, f.parkinson_vol
  FROM generate_series(2, %(symbols)s) AS s (symbol)
 CROSS JOIN LATERAL (SELECT * FROM public.features_1m f WHERE f.symbol = benchmark.symbol_name(1) ORDER BY f.bucket) AS f;

-- multiply_state --
-- The caches of the refresh.
WITH first AS (
    INSERT INTO feature_platform.symbol_state
    SELECT benchmark.symbol_name(s.symbol), t.first_bucket
      FROM generate_series(2, %(symbols)s) AS s (symbol)
     CROSS JOIN feature_platform.symbol_state t WHERE t.symbol = benchmark.symbol_name(1)
)
INSERT INTO feature_platform.features_1m_state (symbol, slot, bucket, sums, counts)
SELECT benchmark.symbol_name(s.symbol), t.slot, t.bucket, t.sums, t.counts
  FROM generate_series(2, %(symbols)s) AS s (symbol)
 CROSS JOIN feature_platform.features_1m_state t WHERE t.symbol = benchmark.symbol_name(1);

-- account_for_quiet --
-- The minutes without a bar, as the platform lists them.
INSERT INTO public.ohlcv_1m_gaps (symbol, start_ts, end_ts, state)
SELECT benchmark.symbol_name(s.symbol), g.start_ts, g.end_ts, 'quiet'
  FROM generate_series(1, %(symbols)s) AS s (symbol)
 CROSS JOIN (SELECT ts + interval '1 minute' AS start_ts, lead(ts) OVER (ORDER BY ts) AS end_ts
               FROM public.ohlcv_1m WHERE symbol = benchmark.symbol_name(1)) AS g
 WHERE g.start_ts < g.end_ts ORDER BY 1, 2;

-- account_for_all --
-- Account for all minutes that are old enough.
INSERT INTO feature_platform.gap_watermark (symbol, since_ts, until_ts)
SELECT benchmark.symbol_name(s.symbol), benchmark.moment(%(first_minute)s), benchmark.moment(%(last_minute)s - 1)
  FROM generate_series(1, %(symbols)s) AS s (symbol);

-- store_heartbeats --
-- The heartbeat of a recorder with all symbols live.
INSERT INTO feature_platform.heartbeat (symbol, state, state_at, first_at, connected_at, update_at, beat_at)
SELECT symbol, 'live', since_ts, since_ts, since_ts, until_ts, until_ts FROM feature_platform.gap_watermark;

-- analyze_pasts --
-- Statistics for the planner, as by autovacuum.
ANALYZE;

-- insert_same_minute --
-- The next minute of every symbol.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT benchmark.symbol_name(s.symbol), benchmark.moment(%(minute)s), b.*
  FROM generate_series(1, %(symbols)s) AS s (symbol) CROSS JOIN benchmark.bar(1, %(minute)s) AS b;

-- beat --
-- Renew the heartbeat of all symbols.
UPDATE feature_platform.heartbeat SET beat_at = feature_platform.clock(), update_at = feature_platform.clock();

-- count_bars_of_one --
-- How many bars one symbol has.
SELECT count(*) FROM public.ohlcv_1m WHERE symbol = benchmark.symbol_name(1);

-- find_symbols --
-- Know the symbols that were stored while the triggers were off.
SELECT feature_platform.find_symbols();

-- account_again --
-- The state before the last tick of the accounting.
UPDATE feature_platform.gap_watermark SET until_ts = feature_platform.bucket_of(feature_platform.clock() - interval '3 minutes');

-- not_accounted_for --
-- The number of symbols that a tick did not account for, and of open gaps.
SELECT (SELECT count(*) FROM feature_platform.gap_watermark WHERE until_ts < feature_platform.clock() - interval '4 minutes')
       + (SELECT count(*) FROM public.ohlcv_1m_gaps WHERE state = 'open');


-- ==== as_of.py ====

-- as_if_live_rows --
-- Copy the stored rows, each with the number of a refresh of its own minute.
CREATE TEMPORARY TABLE live_row ON COMMIT DROP AS
SELECT f.*, (extract(epoch FROM f.bucket - benchmark.moment(0)) / 60)::bigint + 1 AS minute_no
  FROM public.features_1m f;

-- as_if_live_empty --
-- Delete the rows and their numbers.
TRUNCATE public.features_1m, feature_platform.features_1m_history, feature_platform.refresh;

-- as_if_live_refreshes --
-- One refresh for each minute, a second after its close, and one for each minute an hour later.
INSERT INTO feature_platform.refresh (no, known_by, newest_known, overtaken_by)
OVERRIDING SYSTEM VALUE
SELECT n, at, n, n - 1
  FROM (SELECT n, benchmark.moment(n) + interval '1 second' AS at FROM generate_series(1, %(minutes)s + 60) AS n) AS r;

-- as_if_live_store --
-- Store the copies, as if each had been stored by a refresh of its minute. Every n-th row was corrected an hour later.
INSERT INTO public.features_1m
       (symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol,
        refresh_no)
SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol,
       minute_no + CASE WHEN minute_no %% %(corrected)s = 0 THEN 60 ELSE 0 END
  FROM live_row ORDER BY symbol, bucket;

-- as_if_live_versions --
-- Store the versions of the rows that were corrected.
INSERT INTO feature_platform.features_1m_history
       (symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol,
        since, until)
SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol,
       minute_no, minute_no + 60
  FROM live_row WHERE minute_no %% %(corrected)s = 0 ORDER BY symbol, bucket;

-- as_if_live_settle --
-- Do the work of autovacuum before a measurement.
VACUUM (ANALYZE) public.features_1m, feature_platform.features_1m_history, feature_platform.refresh;


-- ==== training_set.py ====

-- training_set_view --
-- Let the rows of the view count as known from the close of their buckets, and the view as built before its rows.
WITH built AS (UPDATE feature_platform.feature_view SET built_at = benchmark.moment(0) WHERE id = 1)
UPDATE feature_views.v1_rows SET refresh_no = 0;


-- ==== ten_thousand.py ====

-- generators --
-- Whether the database has the functions that generate bars.
SELECT count(*) FROM pg_namespace WHERE nspname = 'benchmark';

-- load_live_history --
-- Store one bar of each symbol in each of these steps, in the order of time. The minutes of symbols differ inside a step;
-- symbols share the values of a hundred, because generating them takes longer than storing them.
WITH pattern AS MATERIALIZED (
    SELECT p.number, step.number AS step, b.*
      FROM generate_series(0, 99) AS p (number)
     CROSS JOIN generate_series(%(first)s::bigint, %(last)s) AS step (number)
     CROSS JOIN LATERAL benchmark.bar(p.number, step.number * %(step)s::bigint) AS b
)
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol)
SELECT benchmark.symbol_name(s.symbol), benchmark.moment(m.minute), p.open, p.high, p.low, p.close, p.vol
  FROM generate_series(1, %(symbols)s::integer) AS s (symbol)
  JOIN pattern p ON p.number = s.symbol %% 100
 CROSS JOIN LATERAL (SELECT p.step * %(step)s::bigint + s.symbol * 7 %% %(step)s::bigint) AS m (minute)
 ORDER BY m.minute, s.symbol
    ON CONFLICT (symbol, ts) DO NOTHING;

-- newest_live_minute --
-- The number of the newest minute with features, -1 without any.
SELECT coalesce(extract(epoch FROM (SELECT max(bucket) FROM public.features_1m) - benchmark.moment(0))::bigint / 60, -1);

-- bars_of_minute --
-- The bars of some symbols in one minute, for a writer.
SELECT benchmark.symbol_name(s.symbol), (extract(epoch FROM benchmark.moment(%(minute)s)) * 1000000)::bigint, b.*
  FROM unnest(%(symbols)s::integer[]) AS s (symbol)
 CROSS JOIN LATERAL benchmark.bar(s.symbol, %(minute)s) AS b;

-- known_rows_of_minute --
-- The rows of one minute, and since when each is known, in seconds since 1970.
SELECT f.symbol, extract(epoch FROM r.known_by)::double precision
  FROM public.features_1m f LEFT JOIN feature_platform.refresh r ON r.no = f.refresh_no
 WHERE f.bucket = %(bucket)s;

-- any_mark --
-- Whether any due row waits for a refresh.
SELECT count(*) FROM (SELECT FROM feature_platform.dirty_log WHERE lower(buckets) < feature_platform.due_until() LIMIT 1) AS mark;

-- live_minutes --
-- How many feature rows the live minutes have.
SELECT count(*) FROM public.features_1m WHERE bucket BETWEEN %(first)s AND %(last)s;

-- worker_session_pid --
-- The process of the worker's session.
SELECT pid FROM feature_platform.runner WHERE runner = 'worker';

-- live_counters --
-- Counters and sizes of the server, in bytes; `log` is the log of transactions, `written` all that it gave to the disks.
SELECT pg_current_wal_insert_lsn() - '0/0' AS log, (SELECT sum(i.write_bytes + coalesce(i.extend_bytes, 0)) FROM pg_stat_io i) AS written,
       w.wal_fpi AS "full pages in the log", c.num_timed AS "checkpoints by time", c.num_requested AS "checkpoints by size",
       pg_table_size('public.ohlcv_1m') AS "bars, rows", pg_indexes_size('public.ohlcv_1m') AS "bars, indexes",
       pg_table_size('public.features_1m') AS "features, rows", pg_indexes_size('public.features_1m') AS "features, indexes",
       pg_database_size(current_database()) AS "all"
  FROM pg_stat_wal w, pg_stat_checkpointer c;

-- live_tables --
-- Dead rows and runs of autovacuum of the tables that a live minute changes.
SELECT relname AS name, n_dead_tup AS dead, autovacuum_count AS vacuums
  FROM pg_stat_user_tables
 WHERE relname IN ('ohlcv_1m', 'features_1m', 'dirty_log', 'symbol_state', 'features_1m_state', 'heartbeat', 'symbol_number');
