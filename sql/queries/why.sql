-- Statements of why: the bars and refreshes behind one row.

-- why_views --
-- The names of all relations of features.
SELECT name FROM feature_platform.readable_view ORDER BY name;

-- why_row --
-- The versions of a row, the newest first: the refreshes that made and replaced it, and since when they are known. The
-- stored row has no `until`.
SELECT v.since, made.known_by AS known_by, v.until, gone.known_by AS gone_by,
       ARRAY[{columns}]::double precision[] AS values
  FROM {versions} v
  LEFT JOIN feature_platform.refresh made ON made.no = v.since
  LEFT JOIN feature_platform.refresh gone ON gone.no = v.until
 WHERE v.symbol = %(symbol)s AND v.bucket = %(bucket)s
 ORDER BY v.until DESC NULLS FIRST;

-- why_sources --
-- The bars that a row is computed from, by source: their number, first and last time.
WITH span AS MATERIALIZED (
    SELECT {start}(%(symbol)s, %(bucket)s::timestamptz) AS lo, %(bucket)s::timestamptz + %(every)s::interval AS hi
)
SELECT b.source, count(*) AS bars, min(b.ts) AS first, max(b.ts) AS last
  FROM span CROSS JOIN LATERAL (SELECT * FROM public.ohlcv_1m b
                                 WHERE b.symbol = %(symbol)s AND b.ts >= span.lo AND b.ts < span.hi OFFSET 0) AS b
 GROUP BY b.source ORDER BY b.source;

-- why_bars --
-- The versions of the bars in the bucket of a row, and of those before it that changed or became known after the row
-- was made (`made`), the newest bars first: since which refresh each is known, and the time of it.
WITH span AS MATERIALIZED (
    SELECT {start}(%(symbol)s, %(bucket)s::timestamptz) AS lo, %(bucket)s::timestamptz + %(every)s::interval AS hi
), version AS MATERIALIZED (
    SELECT h.ts, h.id, h.open, h.high, h.low, h.close, h.vol, h.source, h.inserted_at, h.gone, r.no AS until
      FROM span
      JOIN feature_platform.bar_history h ON h.symbol = %(symbol)s AND h.ts >= span.lo AND h.ts < span.hi
      LEFT JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
), entry AS MATERIALIZED (
    SELECT k.ts, k.no FROM span
      JOIN feature_platform.bar_known k ON k.symbol = %(symbol)s AND k.ts >= span.lo AND k.ts < span.hi
), floor AS MATERIALIZED (
    SELECT coalesce(max(k.no), 0) AS no FROM feature_platform.knowledge_floor k WHERE k.symbol = %(symbol)s
), created AS MATERIALIZED (
    SELECT v.bucket, greatest(min(v.since), (SELECT f.no FROM floor f)) AS no
      FROM span
     CROSS JOIN LATERAL (
           SELECT f.bucket, f.refresh_no AS since FROM public.features_1m f
            WHERE f.symbol = %(symbol)s AND f.bucket >= span.lo AND f.bucket < span.hi
            UNION ALL
           SELECT h.bucket, h.since FROM feature_platform.features_1m_history h
            WHERE h.symbol = %(symbol)s AND h.bucket >= span.lo AND h.bucket < span.hi
              AND h.until > (SELECT f.no FROM floor f)) AS v
     GROUP BY v.bucket
), shown AS MATERIALIZED (
    SELECT key.ts FROM (
        SELECT b.ts FROM public.ohlcv_1m b
         WHERE b.symbol = %(symbol)s AND b.ts >= %(bucket)s::timestamptz AND b.ts < (SELECT hi FROM span)
         UNION SELECT v.ts FROM version v
         UNION SELECT e.ts FROM entry e WHERE e.no > %(made)s::bigint
         UNION SELECT c.bucket FROM created c WHERE c.no > %(made)s::bigint
            AND NOT EXISTS (SELECT FROM entry e WHERE e.ts = c.bucket)) AS key
     ORDER BY key.ts DESC LIMIT %(show)s + 1
), life AS (
    SELECT v.* FROM version v WHERE v.ts IN (TABLE shown)
     UNION ALL
    SELECT b.ts, NULL, b.open, b.high, b.low, b.close, b.vol, b.source, b.inserted_at, false, NULL
      FROM public.ohlcv_1m b WHERE b.symbol = %(symbol)s AND b.ts IN (TABLE shown)
), since AS (
    SELECT l.*, lag(l.until) OVER by_change AS changed_by, lag(l.gone) OVER by_change AS came_again
      FROM life l WINDOW by_change AS (PARTITION BY l.ts ORDER BY l.id)
), known AS (
    SELECT s.*,
           -- A version is known since the end of the one before it. The first one, and a bar that came again, have an
           -- entry of their own. Without one, the first one at the start of a minute without other bars is as old as
           -- the row of the minute. The others wait for a refresh.
           CASE WHEN NOT s.came_again THEN s.changed_by
                ELSE coalesce((SELECT min(e.no) FROM entry e
                                WHERE e.ts = s.ts AND e.no >= coalesce(s.changed_by, 0)
                                  AND e.no <= coalesce(s.until, 9223372036854775807)),
                              (SELECT c.no FROM created c
                                WHERE c.bucket = s.ts AND s.came_again IS NULL
                                  AND NOT EXISTS (SELECT FROM entry e
                                                   WHERE e.ts > s.ts AND e.ts < s.ts + interval '1 minute'))) END AS no
      FROM since s
)
SELECT k.ts, k.open, k.high, k.low, k.close, k.vol, k.source, k.inserted_at, k.no, r.known_by, k.until, k.gone,
       g.known_by AS until_known, k.id IS NULL AS is_stored
  FROM known k
  LEFT JOIN feature_platform.refresh r ON r.no = k.no
  LEFT JOIN feature_platform.refresh g ON g.no = k.until
 WHERE k.no IS NULL OR k.until IS NULL OR k.no < k.until   -- else no refresh has used it
 ORDER BY k.ts DESC, k.id DESC NULLS FIRST;
