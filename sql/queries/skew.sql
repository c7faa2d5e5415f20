-- Statements of skew: the proof that served rows are what the model service should have read.

-- skew_serves --
-- The different rows that were served since a time, all or a random sample: when and how often each was served, and the
-- version of its view.
SELECT s.view, v.id AS view_id, s.symbol, s.bucket, s.refresh_no, s.symbol_no, s.waiting::text AS waiting, s.waiting_no,
       array_send(s.values) AS bits, min(s.served_at) AS served_at, max(s.served_at) AS last_served_at,
       count(*) AS serves,
       coalesce(v.every, interval '1 minute')::text AS every, coalesce(v.origin, '1970-01-01 00:00:00+00') AS origin,
       coalesce(v.columns, f.columns) AS columns
  FROM (SELECT * FROM feature_platform.served
         WHERE served_at >= %(since)s
         ORDER BY CASE WHEN %(sample)s::integer IS NOT NULL THEN random() END LIMIT %(sample)s::integer) AS s
 CROSS JOIN (SELECT columns FROM feature_platform.readable_view WHERE name = 'features_1m') AS f
  LEFT JOIN feature_platform.feature_view v ON v.name = s.view AND v.version = s.version
 GROUP BY s.view, s.version, v.id, s.symbol, s.bucket, s.refresh_no, s.symbol_no, s.waiting::text, s.waiting_no, bits,
          v.every, v.origin, v.columns, f.columns
 ORDER BY s.symbol, s.bucket;

-- skew_view --
-- The grid and the columns of a view that is served.
SELECT v.id AS view_id, coalesce(v.every, interval '1 minute')::text AS every,
       extract(epoch FROM coalesce(v.every, interval '1 minute'))::double precision AS seconds,
       coalesce(v.origin, '1970-01-01 00:00:00+00') AS origin, r.columns
  FROM feature_platform.readable_view r
  LEFT JOIN feature_platform.feature_view v ON v.name = r.name AND v.served
 WHERE r.name = %(view)s;

-- skew_row --
-- The bits of a row as of a number, computed from the bars as of it; NULL where there was none. And whether the number
-- and all bars that the row needs are in the history.
WITH given AS (
    SELECT %(bucket)s::timestamptz AS bucket, %(every)s::interval AS every, %(origin)s::timestamptz AS origin,
           {plain_from}(%(symbol)s, %(bucket)s::timestamptz, %(no)s::bigint) AS start
)
SELECT g.start >= feature_platform.history_from()
       AND %(no)s::bigint >= coalesce(
           (SELECT k.no FROM feature_platform.knowledge_floor k WHERE k.symbol = %(symbol)s), 0) AS is_kept,
       (SELECT array_send(ARRAY[{columns}]::double precision[])
          FROM {plain}(%(symbol)s, g.start, g.bucket + g.every,
                       date_bin(g.every, feature_platform.first_bar_as_of(%(symbol)s, %(no)s::bigint), g.origin),
                       %(no)s::bigint) AS e
         WHERE e.bucket = g.bucket) AS bits
  FROM given g;

-- skew_newest --
-- Whether a newer bucket than the served one existed as of the symbol's number, and whether the served one did not.
-- Where minutes were waiting, their rows may stand as they were from `waiting_no` on.
WITH given AS MATERIALIZED (
    SELECT %(bucket)s::timestamptz AS bucket, %(every)s::interval AS every, %(origin)s::timestamptz AS origin,
           %(no)s::bigint AS no, %(waiting_no)s::bigint AS waiting_no, %(waiting)s::tstzmultirange AS waiting
), known AS MATERIALIZED (
    SELECT DISTINCT date_bin(g.every, b.ts, g.origin) AS bucket
      FROM given g CROSS JOIN LATERAL feature_platform.bars_as_of(%(symbol)s, g.bucket, %(until)s, g.no) AS b
), earlier AS MATERIALIZED (
    SELECT DISTINCT date_bin(g.every, b.ts, g.origin) AS bucket
      FROM given g
     CROSS JOIN LATERAL feature_platform.bars_as_of(%(symbol)s, g.bucket, %(until)s, g.waiting_no) AS b
     WHERE g.waiting <> '{}'
), ended AS MATERIALIZED (
    SELECT DISTINCT date_bin(g.every, h.ts, g.origin) AS bucket
      FROM given g
      JOIN feature_platform.bar_history h ON h.symbol = %(symbol)s AND h.ts >= g.bucket AND h.ts < %(until)s AND h.gone
      JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
                                         AND r.no > g.waiting_no AND r.no <= g.no
)
SELECT EXISTS (SELECT FROM known k
                WHERE k.bucket > g.bucket
                  AND (NOT g.waiting @> k.bucket
                       OR k.bucket IN (TABLE earlier) AND k.bucket NOT IN (TABLE ended))) AS is_missing,
       g.bucket NOT IN (TABLE known)
       AND (NOT g.waiting @> g.bucket
            OR %(refresh_no)s::bigint < g.waiting_no AND g.bucket NOT IN (TABLE earlier)) AS is_extra
  FROM given g;

-- skew_last_check --
-- The last check of a sample of served rows, if it is younger than an hour.
SELECT rows, mismatch, missing, extra, not_kept, examples
  FROM feature_platform.skew_check
 WHERE at > feature_platform.clock() - interval '1 hour'
 ORDER BY at DESC LIMIT 1;

-- skew_unchecked_since --
-- The time of the last check, at most a day ago: rows that were served since then have not been in a sample.
SELECT greatest(max(at), feature_platform.clock() - interval '1 day') FROM feature_platform.skew_check;

-- skew_note --
-- Store the result of a check.
SELECT feature_platform.note_skew(%(result)s);
