-- Statements of connections, the embedded server, set-up, roles and origin.

-- ==== database.py ====
-- database_session --
-- Limit the wait for locks.
SET lock_timeout = '30s';

-- server_capabilities --
-- The version and licence of TimescaleDB in this database, NULL where it is not installed.
SELECT extversion AS timescaledb_version,
       current_setting('timescaledb.license', true) AS timescaledb_license
  FROM (VALUES (1)) AS one
  LEFT JOIN pg_extension ON extname = 'timescaledb';


-- ==== embedded/server.py ====
-- database_exists --
-- A row if the server has a database of this name.
SELECT 1 FROM pg_database WHERE datname = %(name)s;


-- ==== importer/importer.py, archives.py and skew.py ====
-- clock_now --
-- The time now, which also decides which minutes are closed.
SELECT feature_platform.clock();

-- ==== importer/importer.py and archives.py ====

-- import_check_table --
-- Fail where there is no table of bars, before a long file is read.
SELECT FROM public.ohlcv_1m LIMIT 0;

-- import_bounds --
-- The times of the first and last bar of a symbol.
SELECT (SELECT ts FROM public.ohlcv_1m WHERE symbol = %(symbol)s ORDER BY ts LIMIT 1),
       (SELECT ts FROM public.ohlcv_1m WHERE symbol = %(symbol)s ORDER BY ts DESC LIMIT 1);

-- import_create_staging --
-- The table of one file's rows, until the whole file was read; row_number is a row's place in the file.
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
-- The rows that repeat the symbol and time of an earlier row of the file, and whether their values differ.
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
-- The numbers of repeating rows with the values of the earlier row, and with other values.
SELECT count(*) FILTER (WHERE NOT differs), count(*) FILTER (WHERE differs) FROM pg_temp.import_repeat;

-- import_conflicts --
-- The rows that contradict an earlier one, in the file's order.
SELECT row_number, first_row FROM pg_temp.import_repeat WHERE differs ORDER BY row_number;

-- import_delete_repeats --
-- Delete from the staging table all but the first row of each symbol and time.
DELETE FROM pg_temp.import_bar b USING pg_temp.import_repeat r WHERE b.row_number = r.row_number;

-- import_steps --
-- Each symbol's most frequent step in microseconds, its count, the number of all steps, and the shortest step.
SELECT DISTINCT ON (symbol_id) symbol_id, (extract(epoch FROM step) * 1000000)::bigint, n, (sum(n) OVER same)::bigint,
       (extract(epoch FROM min(step) OVER same) * 1000000)::bigint
  FROM (SELECT symbol_id, step, count(*) AS n
          FROM (SELECT symbol_id, ts - lag(ts) OVER (PARTITION BY symbol_id ORDER BY ts) AS step
                FROM pg_temp.import_bar) AS staged
         WHERE step > interval '0'
         GROUP BY symbol_id, step) AS counted
WINDOW same AS (PARTITION BY symbol_id)
 ORDER BY symbol_id, n DESC, step;

-- import_contradicted --
-- The first staged bar that differs from a bar of an earlier file of the same import, and the number of such bars.
SELECT i.row_number, s.symbol, i.ts, e.file, count(*) OVER ()
  FROM unnest(%(earlier)s::text[], %(first)s::timestamptz[], %(last)s::timestamptz[], %(files)s::text[]) AS e (symbol,
      first, last, file)
  JOIN unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, id) ON s.symbol = e.symbol
  JOIN pg_temp.import_bar i ON i.symbol_id = s.id AND i.ts BETWEEN e.first AND e.last
  JOIN public.ohlcv_1m o ON o.symbol = s.symbol COLLATE "C" AND o.ts = i.ts
 WHERE (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.vol)
 ORDER BY i.row_number
 LIMIT 1;

-- import_compare --
-- The numbers of staged bars that are new and that differ from the stored ones.
SELECT count(*) FILTER (WHERE o.symbol IS NULL),
       count(*) FILTER (WHERE (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT
                        FROM (i.open, i.high, i.low, i.close, i.vol)
                          AND o.symbol IS NOT NULL)
  FROM pg_temp.import_bar i
  JOIN unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = i.symbol_id
  LEFT JOIN public.ohlcv_1m o
         ON o.symbol = s.symbol COLLATE "C" AND o.ts = i.ts
        AND o.ts BETWEEN (SELECT min(f) FROM unnest(%(first)s::timestamptz[]) AS f)
                     AND (SELECT max(l) FROM unnest(%(last)s::timestamptz[]) AS l);

-- import_overlaps --
-- Whether there are stored bars between the first and the last staged bar of a symbol.
SELECT EXISTS (
    SELECT FROM unnest(%(symbols)s::text[], %(first)s::timestamptz[], %(last)s::timestamptz[])
                AS staged (symbol, first, last)
     WHERE EXISTS (SELECT FROM public.ohlcv_1m b
                    WHERE b.symbol = staged.symbol COLLATE "C" AND b.ts BETWEEN staged.first AND staged.last));

-- import_insert_in_order --
-- Store the staged bars of one symbol, in the order of time, where none is stored: the usual case, a fifth faster.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol, source, inserted_at)
SELECT (%(symbols)s::text[])[1], ts, open, high, low, close, vol, %(source)s, (SELECT feature_platform.clock())
    FROM pg_temp.import_bar;

-- import_insert --
-- Store the staged bars, in any order, where none is stored: takes half the time of an upsert.
INSERT INTO public.ohlcv_1m (symbol, ts, open, high, low, close, vol, source, inserted_at)
SELECT s.symbol COLLATE "C", i.ts, i.open, i.high, i.low, i.close, i.vol, %(source)s, (SELECT feature_platform.clock())
  FROM pg_temp.import_bar i
  JOIN unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = i.symbol_id
 ORDER BY s.symbol COLLATE "C", i.ts;

-- import_analyze --
-- Give the planner statistics of the staged bars, before the join with the stored ones.
ANALYZE pg_temp.import_bar;

-- import_upsert --
-- Store the staged bars that are new or differ from the stored ones; count both. Equal rows are not even locked.
-- The file's range of each symbol is read by the primary key; OFFSET keeps the planner from a scan of all symbols.
-- For an import that is known at close, also return the runs of bars to be flagged: new bars, and corrections of
-- flagged bars. A stored bar of a stream or of REST was known with its old values, so its correction is not flagged.
WITH stored AS (
    SELECT s.id, b.*
      FROM unnest(%(symbols)s::text[], %(first)s::timestamptz[], %(last)s::timestamptz[])
           WITH ORDINALITY AS s (name, first, last, id)
     CROSS JOIN LATERAL (SELECT * FROM public.ohlcv_1m o
                          WHERE o.symbol = s.name COLLATE "C" AND o.ts BETWEEN s.first AND s.last OFFSET 0) AS b
), changed AS (
    INSERT INTO public.ohlcv_1m AS b (symbol, ts, open, high, low, close, vol, source, inserted_at)
    SELECT s.symbol COLLATE "C", i.ts, i.open, i.high, i.low, i.close, i.vol, %(source)s,
        (SELECT feature_platform.clock())
      FROM pg_temp.import_bar i
      JOIN unnest(%(symbols)s::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = i.symbol_id
      LEFT JOIN stored o ON o.id = i.symbol_id AND o.ts = i.ts
     WHERE o.symbol IS NULL
        OR (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.vol)
     ORDER BY s.symbol COLLATE "C", i.ts
    ON CONFLICT (symbol, ts) DO UPDATE
       SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
           vol = excluded.vol, source = excluded.source, inserted_at = excluded.inserted_at
     WHERE (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM
           (excluded.open, excluded.high, excluded.low, excluded.close, excluded.vol)
    RETURNING b.symbol, b.ts, b.xmax = 0 AS is_new
), flagged AS (
    SELECT c.symbol, c.ts, c.is_new OR EXISTS (SELECT FROM feature_platform.known_at_close k
                                                WHERE k.view = 0 AND k.symbol = c.symbol AND k.minutes @> c.ts) AS it
      FROM changed c
     WHERE %(known_at)s = 'close'
), span AS (
    SELECT symbol, min(ts) AS first, max(ts) AS last FROM flagged GROUP BY symbol
), line AS (
    SELECT symbol, ts, it FROM flagged
    UNION ALL
    SELECT s.symbol, s.ts, false
      FROM stored s
      JOIN span p ON p.symbol = s.symbol AND s.ts BETWEEN p.first AND p.last
     WHERE NOT EXISTS (SELECT FROM flagged f WHERE f.symbol = s.symbol AND f.ts = s.ts)
), numbered AS (
    SELECT symbol, ts, it,
           row_number() OVER (PARTITION BY symbol ORDER BY ts)
           - row_number() OVER (PARTITION BY symbol, it ORDER BY ts) AS run
      FROM line
), run AS (
    SELECT symbol, min(ts) AS first, max(ts) AS last FROM numbered WHERE it GROUP BY symbol, run
)
SELECT (SELECT count(*) FROM changed WHERE is_new), (SELECT count(*) FROM changed WHERE NOT is_new),
       array_agg(symbol), array_agg(first), array_agg(last)
  FROM run;

-- import_flag --
-- Flag the minutes of stored bars as known at the close of their buckets.
SELECT feature_platform.flag_known_at_close(
    %(symbols)s::text[], %(first)s::timestamptz[], %(last)s::timestamptz[]);

-- import_unflagged --
-- The number of staged bars whose minutes are not flagged. Mostly those of each symbol are flagged as a whole, and none
-- is read.
WITH flagged AS MATERIALIZED (
    SELECT s.id, f.minutes
      FROM unnest(%(symbols)s::text[], %(first)s::timestamptz[], %(last)s::timestamptz[])
           WITH ORDINALITY AS s (symbol, first, last, id)
     CROSS JOIN LATERAL (SELECT coalesce(range_agg(k.minutes), '{}') AS minutes FROM feature_platform.known_at_close k
                          WHERE k.view = 0 AND k.symbol = s.symbol COLLATE "C") AS f
     WHERE NOT f.minutes @> tstzrange(s.first, s.last, '[]')
)
SELECT count(*) FROM flagged f JOIN pg_temp.import_bar i ON i.symbol_id = f.id WHERE NOT f.minutes @> i.ts;


-- ==== schema.py ====
-- schema_is_applied --
-- Whether any version of the schema has been set up in this database.
SELECT to_regclass('feature_platform.schema_version') IS NOT NULL;

-- schema_version --
-- The number and the hash of the schema that is set up here, NULL if there is none. Always one row.
SELECT v.version, v.hash
  FROM (VALUES (1)) AS one
  LEFT JOIN (SELECT s.version, to_jsonb(s) ->> 'hash' AS hash     -- tables of old versions have no column `hash`
               FROM feature_platform.schema_version s ORDER BY s.version DESC LIMIT 1) AS v ON true;

-- schema_set_up_as --
-- Set, for the set-up, the origin of the database (simulated or real) and the table to lock first.
SELECT set_config('feature_platform.set_up_as', %(origin)s, true),
    set_config('feature_platform.lock_first', %(lock_first)s, true);

-- schema_is_simulated --
-- Whether this database was set up for simulated bars.
SELECT simulated FROM feature_platform.database_origin;


-- ==== origin.py ====
-- origin_exchange --
-- The exchange that this database's bars without a prefix come from, and the URLs of simulated exchanges.
SELECT exchange, exchange_url FROM feature_platform.database_origin;

-- origin_claim_exchange --
-- Store an exchange where none is stored; return the stored one.
SELECT feature_platform.claim_exchange(%(exchange)s, %(url)s);


-- ==== forget.py ====
-- forget_recorded_until --
-- The time of a symbol's last heartbeat from a recorder; no row if none records it.
SELECT beat_at FROM feature_platform.heartbeat WHERE symbol = %(symbol)s AND state NOT IN ('not_recorded', 'stopped')
   AND beat_at > feature_platform.clock() - interval '1 minute';

-- forget_symbol --
-- Delete all data of a symbol; return its numbers of bars and feature rows.
SELECT bars, features FROM feature_platform.forget_symbol(%(symbol)s);


-- ==== roles.py ====
-- roles_missing --
-- The roles of these that the server does not have.
SELECT name FROM unnest(%(names)s::text[]) WITH ORDINALITY AS r (name, place)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r.name) ORDER BY place;
