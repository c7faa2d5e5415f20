-- Statements of training_set.

-- ==== training.py ====
-- Sent over ADBC, with identifiers and values in braces, as those of frames.sql. Events are two arrays. {ids} has the
-- place of each event's symbol in {symbols}. {times} has the times in microseconds since 1970. A reader therefore needs
-- no right to make temporary tables. The statements return the place of each event that has a row, in any order.

-- training_settings --
-- Join by hashes and in memory: the planner does not know how few events lack the row of their newest bucket.
SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true),
       set_config('work_mem', '256MB', true);

-- training_stored --
-- The stored rows of the newest buckets that had closed before the events.
SELECT e.place, {columns}
  FROM (SELECT e.place, s.symbol COLLATE "C" AS symbol,
               date_bin(make_interval(secs => {every}), to_timestamp(0) + e.us * interval '1 microsecond'
                        - make_interval(secs => {every}), {origin}) AS bucket
          FROM unnest({ids}::integer[], {times}::bigint[]) WITH ORDINALITY AS e (id, us, place)
          JOIN unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = e.id) AS e
  JOIN {table} AS v ON v.symbol = e.symbol AND v.bucket = e.bucket
 WHERE v.bucket >= {start} AND v.bucket < {end};

-- training_stored_before --
-- The newest stored rows whose buckets had closed before the events, however old: for events without a row of the
-- newest bucket, by one index look-up each.
SELECT e.place, {columns}
  FROM unnest({ids}::integer[], {times}::bigint[]) WITH ORDINALITY AS e (id, us, place)
  JOIN unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = e.id
 CROSS JOIN LATERAL (
     SELECT * FROM {table} AS t
      WHERE t.symbol = s.symbol COLLATE "C"
        AND t.bucket <= to_timestamp(0) + e.us * interval '1 microsecond' - make_interval(secs => {every})
      ORDER BY t.bucket DESC LIMIT 1) AS v;

-- training_ends --
-- The end of the newest stored bucket of each symbol, in microseconds since 1970.
SELECT s.id, (extract(epoch FROM newest.bucket) * 1000000)::bigint + ({every} * 1000000)::bigint AS us
  FROM unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id)
 CROSS JOIN LATERAL (SELECT t.bucket FROM {table} AS t WHERE t.symbol = s.symbol COLLATE "C"
                      ORDER BY t.bucket DESC LIMIT 1) AS newest;

-- training_known --
-- The versions of rows that were known at the events: of the newest bucket that had closed, or of one that is {back}
-- seconds older. A version is known from the time of its refresh, or if it is flagged or has no number, {delay} seconds
-- after the close of its bucket.
WITH known AS MATERIALIZED (
    SELECT r.no, r.known_by FROM feature_platform.refresh r WHERE r.known_by < {end}
), flagged AS MATERIALIZED (
    SELECT k.symbol, lower(r) AS first, upper(r) - make_interval(secs => {every}) AS last,
           coalesce(k.no, 9223372036854775807) AS no
      FROM feature_platform.known_at_close k
     CROSS JOIN LATERAL unnest(k.minutes) AS r
     WHERE k.view = {view} AND k.symbol = ANY ({symbols}::text[]) AND lower(r) < {end} AND upper(r) > {start}
)
SELECT e.place, {columns}
  FROM (SELECT e.place, s.symbol COLLATE "C" AS symbol, to_timestamp(0) + e.us * interval '1 microsecond' AS time,
               date_bin(make_interval(secs => {every}), to_timestamp(0) + e.us * interval '1 microsecond'
                        - make_interval(secs => {every} + {back}), {origin}) AS bucket
          FROM unnest({ids}::integer[], {times}::bigint[]) WITH ORDINALITY AS e (id, us, place)
          JOIN unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = e.id) AS e
  JOIN {versions} AS v ON v.symbol = e.symbol AND v.bucket = e.bucket
  LEFT JOIN known AS s ON s.no = v.since
  LEFT JOIN known AS u ON u.no = v.until
  LEFT JOIN flagged AS f ON f.symbol = v.symbol AND v.bucket BETWEEN f.first AND f.last
 CROSS JOIN LATERAL (SELECT v.bucket + make_interval(secs => {every} + {delay}) <= e.time AS it) AS closed
 WHERE v.bucket >= {start} AND v.bucket < {end}
   AND (s.known_by <= e.time OR closed.it AND (v.since = 0 OR v.since <= f.no))
   AND (u.known_by <= e.time OR closed.it AND v.until <= f.no) IS NOT TRUE;

-- training_known_before --
-- The same of the newest known rows at or before a bucket of each event, among its {most} versions before that.
WITH flagged AS MATERIALIZED (
    SELECT k.symbol, lower(r) AS first, upper(r) - make_interval(secs => {every}) AS last,
           coalesce(k.no, 9223372036854775807) AS no
      FROM feature_platform.known_at_close k
     CROSS JOIN LATERAL unnest(k.minutes) AS r
     WHERE k.view = {view} AND k.symbol = ANY ({symbols}::text[]) AND lower(r) < {end}
)
SELECT e.place, {columns}
  FROM unnest({ids}::integer[], {times}::bigint[], {buckets}::bigint[]) WITH ORDINALITY AS e (id, us, newest, place)
  JOIN unnest({symbols}::text[]) WITH ORDINALITY AS n (symbol, id) ON n.id = e.id
 CROSS JOIN LATERAL (SELECT to_timestamp(0) + e.us * interval '1 microsecond' AS time) AS at
 CROSS JOIN LATERAL (
     SELECT w.*
       FROM (SELECT * FROM {versions} AS x
              WHERE x.symbol = n.symbol COLLATE "C"
                AND x.bucket <= to_timestamp(0) + e.newest * interval '1 microsecond'
              ORDER BY x.bucket DESC LIMIT {most}) AS w
      CROSS JOIN LATERAL (SELECT w.bucket + make_interval(secs => {every} + {delay}) <= at.time AS it) AS closed
      CROSS JOIN LATERAL (
          SELECT max(f.no) AS no FROM flagged f WHERE f.symbol = w.symbol AND w.bucket BETWEEN f.first AND f.last) AS f
      WHERE ((SELECT r.known_by FROM feature_platform.refresh r WHERE r.no = w.since) <= at.time
             OR closed.it AND (w.since = 0 OR w.since <= f.no))
        AND ((SELECT r.known_by FROM feature_platform.refresh r WHERE r.no = w.until) <= at.time
             OR closed.it AND w.until <= f.no) IS NOT TRUE
      ORDER BY w.bucket DESC LIMIT 1) AS v;

-- training_newest --
-- The newest bucket of each event's symbol that had a known row at the event, in microseconds since 1970: for events
-- that are not near a known row, in one pass over all versions.
WITH known AS MATERIALIZED (
    SELECT r.no, r.known_by FROM feature_platform.refresh r WHERE r.known_by < {end}
), flagged AS MATERIALIZED (
    SELECT k.symbol, lower(r) AS first, upper(r) - make_interval(secs => {every}) AS last,
           coalesce(k.no, 9223372036854775807) AS no
      FROM feature_platform.known_at_close k
     CROSS JOIN LATERAL unnest(k.minutes) AS r
     WHERE k.view = {view} AND k.symbol = ANY ({symbols}::text[]) AND lower(r) < {end}
), line AS (
    SELECT v.symbol, v.bucket, NULL::bigint AS place,
           least(s.known_by, CASE WHEN v.since = 0 OR v.since <= f.no
                                  THEN v.bucket + make_interval(secs => {every} + {delay}) END) AS at
      FROM {versions} AS v
      LEFT JOIN known AS s ON s.no = v.since
      LEFT JOIN flagged AS f ON f.symbol = v.symbol AND v.bucket BETWEEN f.first AND f.last
     WHERE v.symbol = ANY ({symbols}::text[]) AND v.bucket < {end}
    UNION ALL
    SELECT s.symbol COLLATE "C", NULL, e.place, to_timestamp(0) + e.us * interval '1 microsecond'
      FROM unnest({ids}::integer[], {times}::bigint[]) WITH ORDINALITY AS e (id, us, place)
      JOIN unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = e.id
), passed AS (
    SELECT place, max(bucket) OVER (PARTITION BY symbol ORDER BY at, place NULLS FIRST
                                    ROWS UNBOUNDED PRECEDING) AS newest
      FROM line WHERE at IS NOT NULL
)
SELECT place, (extract(epoch FROM newest) * 1000000)::bigint AS newest
  FROM passed WHERE place IS NOT NULL AND newest IS NOT NULL;

-- training_flagged --
-- For events before a view was built: the newest row of an import that is known at close, in the version of the
-- import, whose bucket had closed {delay} seconds before; and its bucket in microseconds since 1970.
WITH flagged AS MATERIALIZED (
    SELECT k.symbol, lower(r) AS first, upper(r) - make_interval(secs => {every}) AS last,
           coalesce(k.no, 9223372036854775807) AS no
      FROM feature_platform.known_at_close k
     CROSS JOIN LATERAL unnest(k.minutes) AS r
     WHERE k.view = {view} AND k.symbol = ANY ({symbols}::text[]) AND lower(r) < {end}
)
SELECT e.place, (extract(epoch FROM v.bucket) * 1000000)::bigint AS bucket, {columns}
  FROM unnest({ids}::integer[], {times}::bigint[]) WITH ORDINALITY AS e (id, us, place)
  JOIN unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = e.id
 CROSS JOIN LATERAL (SELECT to_timestamp(0) + e.us * interval '1 microsecond'
                            - make_interval(secs => {every} + {delay}) AS last) AS closed
 CROSS JOIN LATERAL (
     SELECT x.*
       FROM flagged f
      CROSS JOIN LATERAL (
          SELECT * FROM {versions} AS t
           WHERE t.symbol = s.symbol COLLATE "C" AND t.bucket >= f.first AND t.bucket <= least(f.last, closed.last)
             AND t.since <= f.no AND (t.until <= f.no) IS NOT TRUE
           ORDER BY t.bucket DESC LIMIT 1) AS x
      WHERE f.symbol = s.symbol AND f.first <= closed.last
      ORDER BY f.first DESC LIMIT 1) AS v;

-- training_computed --
-- For events before a view was built: the newest row that was known, if its bucket is after {afters}, in microseconds
-- since 1970.
SELECT g.places[k.place] AS place, {columns}
  FROM (SELECT e.id, array_agg(e.place ORDER BY e.us, e.place) AS places,
               array_agg(to_timestamp(0) + e.us * interval '1 microsecond' ORDER BY e.us, e.place) AS times,
               array_agg(CASE WHEN e.after < 0 THEN '-infinity'
                              ELSE to_timestamp(0) + e.after * interval '1 microsecond' END ORDER BY e.us, e.place)
                   AS afters
          FROM unnest({ids}::integer[], {times}::bigint[], {afters}::bigint[])
               WITH ORDINALITY AS e (id, us, after, place)
         GROUP BY e.id) AS g
  JOIN unnest({symbols}::text[]) WITH ORDINALITY AS s (symbol, id) ON s.id = g.id
 CROSS JOIN LATERAL feature_platform.known_rows_of({view}, s.symbol, g.times, g.afters) AS k
 CROSS JOIN LATERAL (SELECT {values}) AS v;


-- ==== lake/training_tasks.py ====
-- Sent over ADBC, too. Times go to the tasks as microseconds since 1970.

-- training_refreshes --
-- Since when the refreshes are known that were known before a time, in the order of their numbers.
SELECT r.no, (extract(epoch FROM r.known_by) * 1000000)::bigint AS known_by
  FROM feature_platform.refresh r WHERE r.known_by < {end} ORDER BY r.no;

-- training_flags --
-- The buckets of imports that are known at close: the first and the last one of each run, and the number of the newest
-- version that the import brought.
SELECT k.symbol, (extract(epoch FROM lower(r)) * 1000000)::bigint AS first,
       (extract(epoch FROM upper(r) - make_interval(secs => {every})) * 1000000)::bigint AS last,
       coalesce(k.no, 9223372036854775806) AS no
  FROM feature_platform.known_at_close k
 CROSS JOIN LATERAL unnest(k.minutes) AS r
 WHERE k.view = {view} AND k.symbol = ANY ({symbols}::text[]);

-- training_rows --
-- The stored rows of some spans, each of a symbol, which the lake does not have.
SELECT s.symbol, (extract(epoch FROM v.bucket) * 1000000)::bigint AS bucket, v.refresh_no AS since{columns}
  FROM unnest({symbols}::text[], {lows}::bigint[], {highs}::bigint[]) AS s (symbol, low, high)
 CROSS JOIN LATERAL (SELECT * FROM {table} AS t
                      WHERE t.symbol = s.symbol COLLATE "C"
                        AND t.bucket >= to_timestamp(0) + s.low * interval '1 microsecond'
                        AND t.bucket < to_timestamp(0) + s.high * interval '1 microsecond'
                     OFFSET 0) AS v;

-- training_versions --
-- The versions of rows of some symbols in a window that refreshes have replaced.
SELECT v.symbol, (extract(epoch FROM v.bucket) * 1000000)::bigint AS bucket, v.since, v.until{columns}
  FROM {versions} AS v
 WHERE v.until IS NOT NULL AND v.symbol = ANY ({symbols}::text[]) AND v.bucket >= {start} AND v.bucket < {end};
