-- Statements of drift. They return counts and hours, so that no raw value leaves the database, and read only values
-- whose absolute value is below 1e150: the square of a larger one overflows, and NaN is above all.

-- drift_symbols --
-- The end of the newest minute that is due, and the symbols that have bars.
SELECT feature_platform.due_until(), ARRAY(SELECT symbol FROM feature_platform.bar_symbol);

-- drift_edges --
-- The standard deviation of each column of a symbol in a window, and the edges of bins of equal numbers of values.
SELECT c.number, stddev_pop(c.value), percentile_cont(%(fractions)s::double precision[]) WITHIN GROUP (ORDER BY c.value)
  FROM {view} f
 CROSS JOIN LATERAL unnest(ARRAY[{columns}]::double precision[]) WITH ORDINALITY AS c (value, number)
 WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s AND abs(c.value) < 1e150
 GROUP BY c.number;

-- drift_counts --
-- The number of values of a symbol by column, day of a window and bin; `edges` has one row for each column.
WITH edge AS MATERIALIZED (
    SELECT number, ARRAY(SELECT unnest(given.edges[number:number])) AS edges
      FROM (SELECT %(edges)s::double precision[] AS edges) AS given
     CROSS JOIN LATERAL generate_series(1, array_length(given.edges, 1)) AS number
)
SELECT e.number, floor(extract(epoch FROM f.bucket - %(start)s) / 86400)::integer AS day,
       width_bucket(c.value, e.edges) AS bin, count(*)
  FROM {view} f
 CROSS JOIN LATERAL unnest(ARRAY[{columns}]::double precision[]) WITH ORDINALITY AS c (value, number)
  JOIN edge e ON e.number = c.number
 WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s AND abs(c.value) < 1e150
 GROUP BY e.number, day, bin;

-- drift_hours --
-- The mean of the newest minutes of each hour of a window, two quantiles of fewer minutes, and the largest step from a
-- row to the next, by column of a symbol; only hours with enough values. A row counts from its end.
WITH hour_row AS MATERIALIZED (
    SELECT f.bucket, floor(extract(epoch FROM f.bucket - %(start)s) / 3600)::integer AS hour,
           ARRAY[{columns}]::double precision[] AS now,
           lag(ARRAY[{columns}]::double precision[]) OVER (ORDER BY f.bucket) AS before
      FROM {view} f
     WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s - %(every)s AND f.bucket < %(end)s
)
SELECT c.number, r.hour, avg(c.now) FILTER (WHERE age.left < %(mean)s),
       percentile_cont(%(fractions)s::double precision[]) WITHIN GROUP (ORDER BY c.now)
           FILTER (WHERE age.left < %(quantile)s),
       max(abs(c.now - c.before))
  FROM hour_row r
 CROSS JOIN LATERAL unnest(r.now, r.before) WITH ORDINALITY AS c (now, before, number)
 CROSS JOIN LATERAL (SELECT %(start)s + (r.hour + 1) * interval '1 hour' - r.bucket - %(every)s AS left) AS age
 WHERE r.hour >= 0 AND abs(c.now) < 1e150 AND (c.before IS NULL OR abs(c.before) < 1e150)
 GROUP BY c.number, r.hour
HAVING count(*) FILTER (WHERE age.left < %(quantile)s) >= %(least)s;
