-- Statements of read_features, latest and the plots.

-- ==== plot.py ====
-- plot_features --
-- Close and volume_z of one symbol over its last days.
SELECT bucket, last_close, volume_z
  FROM public.features_1m
 WHERE symbol = %(symbol)s
   AND bucket > (SELECT max(bucket) FROM public.features_1m
                 WHERE symbol = %(symbol)s) - make_interval(hours => 24 * %(days)s)
 ORDER BY bucket;

-- plot_window_bounds --
-- The minutes of a window in which a symbol can have rows: from its first minute to the last closed one.
SELECT greatest(%(start)s, (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = %(symbol)s ORDER BY f.bucket
                            LIMIT 1)),
       least(%(end)s, feature_platform.due_until());

-- plot_window --
-- Close and volume_z of one symbol in a window.
SELECT bucket, last_close, volume_z
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket;


-- ==== frames.py ====
-- Sent over ADBC, whose parameters are $1, $2, …; identifiers stand in braces, and so do values that a hypertable needs
-- to exclude chunks while it plans: a parameter or a setting has no value then, and planning costs 2 ms a chunk in each
-- new session.

-- frames_unknown --
-- The symbols of these that never had a bar.
SELECT wanted.symbol
  FROM unnest($1::text[]) WITH ORDINALITY AS wanted (symbol, number)
 WHERE NOT EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = wanted.symbol)
 ORDER BY wanted.number;

-- frames_without_rows --
-- The symbols of these that have no row since a time in a table, by one index look-up each. The table is read only for
-- symbols that ever had a bar.
SELECT wanted.symbol
  FROM unnest($1::text[]) WITH ORDINALITY AS wanted (symbol, number)
 WHERE CASE WHEN EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = wanted.symbol)
            THEN (SELECT true FROM {table} t
                   WHERE t.symbol = wanted.symbol AND t.{time} >= {since} ORDER BY t.{time} DESC LIMIT 1) IS NULL
            ELSE true END
 ORDER BY wanted.number;

-- frames_known --
-- All symbols of a table.
SELECT symbol FROM {view};

-- frames_ever --
-- All symbols that ever had a bar.
SELECT DISTINCT symbol FROM feature_platform.known_symbol;

-- frames_read --
-- The rows of some symbols in a window, in order.
SELECT {columns}
  FROM {table}
 WHERE symbol = ANY ({symbols}::text[]) AND {time} >= {start} AND {time} < {end}
 ORDER BY symbol, {time};

-- frames_lake_until --
-- The end of the rows of a table that a lake has; the Delta table that has them, and its version; and whether the rows
-- belong to the version of the view that is served.
SELECT nullif(l.mirrored_until, '-infinity') AS mirrored_until, l.table_version, l.table_id::text AS table_id,
       l.view IS NOT DISTINCT FROM v.id AS is_served
  FROM feature_platform.lake_table l
  LEFT JOIN feature_platform.feature_view v ON v.name = l.name AND v.served
 WHERE l.name = $1 AND l.location = $2;

-- frames_lake_waiting --
-- The days of some symbols whose rows in the lake may differ.
SELECT w.symbol, lower(r) AS first, upper(r) AS after
  FROM (SELECT w.symbol, range_agg(w.days) AS days FROM feature_platform.lake_waiting w
         WHERE w.name = $1 AND w.symbol = ANY ($2::text[]) GROUP BY w.symbol) AS w
 CROSS JOIN LATERAL unnest(w.days) AS r;

-- frames_views --
-- Every table of features that can be read, with its columns and the relation of all versions of its rows; features_1m
-- is the last one.
SELECT r.name, r.columns, coalesce(v.id, 0) AS id,
       CASE WHEN v.id IS NULL THEN 'feature_platform' ELSE 'feature_views' END AS schema,
       coalesce('v' || v.id, 'features_1m') || '_versions' AS versions,
       coalesce(extract(epoch FROM v.every), 60)::bigint AS seconds, v.built_at,
       coalesce(v.origin, to_timestamp(0)) AS origin
  FROM feature_platform.readable_view r
  LEFT JOIN feature_platform.feature_view v ON v.served AND v.name = r.name
 ORDER BY r.name = 'features_1m', r.name;

-- frames_freeze --
-- Read as of one moment in the whole transaction.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- frames_latest --
-- The newest features of each of some symbols, of those that have one since a time, by one index look-up each.
SELECT f.*
  FROM unnest($1::text[]) AS wanted (symbol)
 CROSS JOIN LATERAL (SELECT {columns}
                       FROM {table} f
                      WHERE f.symbol = wanted.symbol AND f.bucket >= {since}
                      ORDER BY bucket DESC
                      LIMIT 1) AS f
 ORDER BY f.symbol;


-- ==== knowledge.py ====
-- Sent over ADBC, as the statements above.

-- knowledge_limits --
-- The first time that is noted, the time since when versions of rows are kept (NULL: all are), and the time now.
SELECT (SELECT min(r.known_by) FROM feature_platform.refresh r) AS begins,
       (SELECT t.versions_from FROM feature_platform.retention t) AS kept_from, feature_platform.clock() AS now;

-- knowledge_forgotten --
-- When each of some symbols was forgotten, if it was after a time.
SELECT k.symbol, k.forgotten_at
  FROM feature_platform.knowledge_floor k
 WHERE k.symbol = ANY ({symbols}::text[]) AND k.forgotten_at > {moment}
 ORDER BY k.symbol;

-- knowledge_numbers --
-- The numbers of refreshes that were known at a time.
SELECT k.upto, k.late FROM feature_platform.known_at({moment}) AS k;

-- knowledge_read_at --
-- The rows of some symbols in a window by the numbers that were known, in order. The planner knows the numbers, so it
-- reads almost all rows in the order of the index.
SELECT {columns}
  FROM {versions} AS v
 WHERE v.symbol = ANY ({symbols}::text[]) AND v.bucket >= {start} AND v.bucket < {end}
   AND v.since <= {upto}::bigint AND v.since <> ALL ({late}::bigint[])
   AND (v.until IS NULL OR v.until > {upto}::bigint OR v.until = ANY ({late}::bigint[]))
 ORDER BY v.symbol, v.bucket;

-- knowledge_read_after_close --
-- The rows of some symbols in a window, each as it was known some seconds after the start of its bucket, in order. No
-- row is known before its bucket has closed, so the numbers of earlier refreshes do not matter. A day allows for clocks
-- that were set back.
WITH known AS MATERIALIZED (
    SELECT r.no, r.known_by FROM feature_platform.refresh r
     WHERE r.known_by >= {start}::timestamptz - interval '1 day'
       AND r.known_by <= {end}::timestamptz + make_interval(secs => {seconds})
), flagged AS MATERIALIZED (
    SELECT k.symbol, lower(r) AS first, upper(r) - make_interval(secs => {every}) AS last,
           coalesce(k.no, 9223372036854775807) AS no
      FROM feature_platform.known_at_close k
     CROSS JOIN LATERAL unnest(k.minutes) AS r
     WHERE k.view = {view} AND k.symbol = ANY ({symbols}::text[])
       AND lower(r) < {end} AND upper(r) > {start}
)
SELECT {columns}
  FROM {versions} AS v
  LEFT JOIN known AS s ON s.no = v.since
  LEFT JOIN known AS u ON u.no = v.until
  LEFT JOIN flagged AS f ON f.symbol = v.symbol AND v.bucket BETWEEN f.first AND f.last
 WHERE v.symbol = ANY ({symbols}::text[]) AND v.bucket >= {start} AND v.bucket < {end}
   AND (v.since = 0 OR v.since <= f.no OR s.known_by <= v.bucket + make_interval(secs => {seconds}))
   AND (v.until <= f.no OR u.known_by <= v.bucket + make_interval(secs => {seconds})) IS NOT TRUE
   AND v.bucket + make_interval(secs => {seconds}) <= (SELECT feature_platform.clock())
   -- Rows of before the build of a view: knowledge_computed_after_close.
   AND (f.symbol IS NOT NULL OR v.bucket + make_interval(secs => {seconds}) >= {built_at}::timestamptz)
 ORDER BY v.symbol, v.bucket;

-- knowledge_computed_at --
-- The rows of a view of some symbols in a window as they were known at a time before the view was built, in order.
SELECT {columns}
  FROM unnest({symbols}::text[]) AS s (symbol)
 CROSS JOIN LATERAL feature_platform.known_rows_at({view}, s.symbol, {start}, {end}, {moment}) AS k
 CROSS JOIN LATERAL (SELECT s.symbol, k.bucket, {values}) AS v
 ORDER BY v.symbol, v.bucket;

-- knowledge_computed_after_close --
-- The same of rows that were known some time after the close of their bucket, before the view was built.
SELECT {columns}
  FROM unnest({symbols}::text[]) AS s (symbol)
 CROSS JOIN LATERAL feature_platform.known_rows_after({view}, s.symbol, {start},
     least({end}::timestamptz, {built_at}::timestamptz - make_interval(secs => {seconds})),
     make_interval(secs => {seconds} - {every})) AS k
 CROSS JOIN LATERAL (SELECT s.symbol, k.bucket, {values}) AS v
 ORDER BY v.symbol, v.bucket;

