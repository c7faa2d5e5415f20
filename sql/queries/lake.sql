-- Statements of the lake.

-- ==== lake/tables.py ====
-- lake_tables --
-- The tables that the lake mirrors: the bars without columns that change without a mark, and every served view with the
-- refresh of each row.
SELECT name, view, time, columns, every,
       EXISTS (SELECT FROM feature_platform.lake_table l WHERE l.name = t.name) AS is_synced
  FROM (SELECT 'ohlcv_1m' AS name, NULL::integer AS view, 'ts' AS time,
               '{symbol,ts,open,high,low,close,vol}'::text[] AS columns, interval '1 minute' AS every, 0 AS place
        UNION ALL
        SELECT r.name, v.id, 'bucket', '{symbol,bucket}'::text[] || r.columns || '{refresh_no}',
               coalesce(v.every, interval '1 minute'), 1
          FROM feature_platform.readable_view r
          LEFT JOIN feature_platform.feature_view v ON v.name = r.name AND v.served
         WHERE v.id IS NULL OR v.state <> 'building') AS t
 ORDER BY place, name;


-- ==== lake/sync.py ====
-- lake_add --
-- Begin to mirror a table. The id of the table distinguishes it from that of another database.
INSERT INTO feature_platform.lake_table (name, location, view) VALUES (%(name)s, %(location)s, %(view)s)
ON CONFLICT ON CONSTRAINT lake_table_pkey DO NOTHING;

-- lake_lock --
-- The state of a table, locked against other writers until the end of the transaction.
SELECT location, view, table_id::text, table_version, nullif(recorded_until, '-infinity') AS recorded_until,
       nullif(mirrored_until, '-infinity') AS mirrored_until
  FROM feature_platform.lake_table WHERE name = %(name)s FOR UPDATE;

-- lake_forget_all_changes --
-- Delete the changes of a table whose rows are all written again.
DELETE FROM feature_platform.lake_change WHERE name = %(name)s;

-- lake_restart --
-- Mirror a table from its first row, into a Delta table that is empty.
UPDATE feature_platform.lake_table
   SET location = %(location)s, view = %(view)s, table_version = %(version)s, mirrored_until = '-infinity'
 WHERE name = %(name)s;

-- lake_written --
-- Note the version that a commit made.
UPDATE feature_platform.lake_table
   SET table_version = %(version)s, mirrored_until = greatest(mirrored_until, %(until)s),
       synced_at = feature_platform.clock()
 WHERE name = %(name)s;

-- lake_record_until --
-- Have the changes of all rows before a time recorded.
SELECT feature_platform.record_lake_until(%(name)s, %(until)s);

-- lake_today --
-- The start of the current UTC day: the rows before it are closed.
SELECT date_trunc('day', feature_platform.clock(), 'UTC');

-- lake_symbols --
-- All symbols, and the first row of any.
SELECT coalesce(array_agg(k.symbol ORDER BY k.symbol), '{{}}'), min(first.at)
  FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS k
 CROSS JOIN LATERAL (SELECT (SELECT t.{time} FROM {table} t WHERE t.symbol = k.symbol ORDER BY t.{time} LIMIT 1) AS at)
    AS first;

-- lake_changes --
-- The oldest changes of a table: of each symbol the days from 1970 on, as dates, the end exclusive.
SELECT c.id, c.symbol, lower(r) AS first, upper(r) AS after
  FROM (SELECT l.id, l.symbol, l.days FROM feature_platform.lake_change l
         WHERE l.name = %(name)s ORDER BY l.id LIMIT %(limit)s) AS c
 CROSS JOIN LATERAL unnest(c.days) AS r
 ORDER BY c.id;

-- lake_forget_changes --
-- Delete changes that a commit has written.
DELETE FROM feature_platform.lake_change WHERE name = %(name)s AND id = ANY (%(ids)s);

-- lake_read --
-- The rows of some symbols in a window, over ADBC.
SELECT {columns}
  FROM {table}
 WHERE symbol = ANY ({symbols}::text[]) AND {time} >= {start} AND {time} < {end}
 ORDER BY symbol, {time};


-- ==== lake/state.py ====
-- lake_states --
-- The tables of the lake, and how many symbols have days that wait for a sync.
SELECT t.name, nullif(t.mirrored_until, '-infinity') AS mirrored_until, t.synced_at,
       (SELECT count(DISTINCT w.symbol) FROM feature_platform.lake_waiting w WHERE w.name = t.name) AS waiting
  FROM feature_platform.lake_table t ORDER BY t.name <> 'ohlcv_1m', t.name;

-- lake_waiting --
-- The days of a table that may differ in the lake.
SELECT 0, w.symbol, lower(r), upper(r)
  FROM feature_platform.lake_waiting w CROSS JOIN LATERAL unnest(w.days) AS r
 WHERE w.name = %(name)s;

-- lake_record --
-- Have the next sync write some days of symbols again.
SELECT feature_platform.record_lake_changes(%(name)s, array_agg(d.symbol), array_agg(tstzmultirange(d.days)))
  FROM unnest(%(symbols)s::text[], %(days)s::tstzrange[]) AS d (symbol, days);


-- ==== lake/verify.py ====
-- lake_sample --
-- The rows of one symbol in a window, in order.
SELECT {columns} FROM {table} WHERE symbol = %(symbol)s AND {time} >= %(start)s AND {time} < %(end)s ORDER BY {time};
