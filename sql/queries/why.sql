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

-- why_absent --
-- Why a bucket has no row: the time now, whether and until when the bucket is open, the first bucket that the retention
-- keeps, whether the bucket has bars, and the first bar of the symbol.
SELECT c.now, g.hi > c.now AS is_open, to_char(g.hi AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS closes,
       CASE WHEN g.lo < kept.since THEN kept.since END AS kept_since,
       EXISTS (SELECT FROM public.ohlcv_1m b
                WHERE b.symbol = %(symbol)s AND b.ts >= g.lo AND b.ts < g.hi) AS has_bars,
       (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = %(symbol)s ORDER BY b.ts LIMIT 1) AS first_bar
  FROM (SELECT %(bucket)s::timestamptz AS lo, %(bucket)s::timestamptz + %(every)s::interval AS hi) AS g
 CROSS JOIN (SELECT feature_platform.clock() AS now) AS c
  LEFT JOIN feature_platform.feature_view v ON v.id = %(view_id)s::integer
 CROSS JOIN LATERAL (SELECT CASE WHEN v.id IS NULL THEN feature_platform.features_from()
                                 ELSE feature_platform.view_from(v, feature_platform.features_from()) END AS since
                    ) AS kept;

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
-- The versions of the bars behind a row, the newest bars first: since which refresh each is known, and the time of it.
-- These are of the bars that changed, came late (after the row was made, `made`) or wait for a refresh, at most `show`,
-- and of the other bars of the bucket where all fit. The counts are in each line; `ts` is NULL where no bar is listed.
--
-- A version is known since the end of the one before it, or since the bar began after that. bars_as_of has the rule.
WITH span AS MATERIALIZED (
    SELECT s.lo, %(bucket)s::timestamptz + %(every)s::interval AS hi, feature_platform.history_from() AS history_from,
           feature_platform.bucket_of(s.lo) AS first_minute,
           -- While a TRUNCATE waits for its refresh, no row shows since when a new bar is known.
           CASE WHEN EXISTS (SELECT FROM feature_platform.dirty_log l
                              WHERE l.symbol = %(symbol)s AND l.removed AND NOT l.replaced AND NOT l.reach_known
                                AND upper(l.changed) >= '10000-01-01 00:00:00+00')
                THEN 9223372036854775807
                ELSE coalesce((SELECT k.no FROM feature_platform.knowledge_floor k WHERE k.symbol = %(symbol)s), 0)
                END AS begins
      FROM (SELECT {start}(%(symbol)s, %(bucket)s::timestamptz) AS lo) AS s
), version AS MATERIALIZED (
    SELECT h.ts, h.id, h.gone, coalesce(r.no, 9223372036854775807) AS until     -- no refresh has taken its mark yet
      FROM span
      JOIN feature_platform.bar_history h ON h.symbol = %(symbol)s AND h.ts >= span.lo AND h.ts < span.hi
      LEFT JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
), entry AS MATERIALIZED (
    SELECT k.ts, feature_platform.bucket_of(k.ts) AS bucket, k.no FROM span
      JOIN feature_platform.bar_known k ON k.symbol = %(symbol)s AND k.ts >= span.first_minute AND k.ts < span.hi
), created AS MATERIALIZED (
    SELECT v.bucket, greatest(min(v.since), span.begins) AS no
      FROM span
     CROSS JOIN LATERAL (
           SELECT f.bucket, f.refresh_no AS since FROM public.features_1m f
            WHERE f.symbol = %(symbol)s AND f.bucket >= span.lo AND f.bucket < span.hi
            UNION ALL
           SELECT h.bucket, h.since FROM feature_platform.features_1m_history h
            WHERE h.symbol = %(symbol)s AND h.bucket >= span.lo AND h.bucket < span.hi AND h.until > span.begins) AS v
     GROUP BY v.bucket, span.begins
), began AS MATERIALIZED (
    SELECT e.ts, e.no FROM entry e
     UNION ALL
    -- The creation of the row, unless another bar of the minute created it, or this bar came again.
    SELECT c.bucket, c.no
      FROM created c
      LEFT JOIN (SELECT v.ts, min(v.until) AS no FROM version v WHERE v.gone GROUP BY v.ts) AS ended
        ON ended.ts = c.bucket
      LEFT JOIN (SELECT e.bucket, min(e.no) AS no FROM entry e GROUP BY e.bucket) AS noted ON noted.bucket = c.bucket
     WHERE c.no < coalesce(ended.no, 9223372036854775807)
       AND coalesce(ended.no, 9223372036854775807) <= coalesce(noted.no, 9223372036854775807)
), life AS (
    SELECT v.ts, v.id, v.gone, v.until FROM version v
     UNION ALL
    SELECT b.ts, NULL, false, 9223372036854775807
      FROM span CROSS JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = %(symbol)s AND b.ts >= span.lo
                                       AND b.ts < span.hi OFFSET 0) AS b
), turn AS (
    SELECT l.ts, l.id, l.until, coalesce(max(l.until) OVER earlier, 0) AS changed,
           coalesce(max(l.until) FILTER (WHERE l.gone) OVER earlier, 0) AS ended
      FROM life l
    WINDOW earlier AS (PARTITION BY l.ts ORDER BY l.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), known AS (
    SELECT t.ts, t.id, t.until,
           CASE WHEN min(b.no) IS NOT NULL THEN greatest(t.changed, min(b.no))
                WHEN t.ts < (SELECT s.history_from FROM span s) AND t.changed = 0 THEN 0    -- not kept any more
                ELSE 9223372036854775807 END AS no
      FROM turn t LEFT JOIN began b ON b.ts = t.ts AND b.no >= t.ended
     GROUP BY t.ts, t.id, t.until, t.changed
), used AS MATERIALIZED (
    -- A refresh has used the others never, and will not.
    SELECT k.*, k.id IS NOT NULL AND lead(k.no) OVER (PARTITION BY k.ts ORDER BY k.id) IS DISTINCT FROM k.until AS gone
      FROM known k WHERE k.no < k.until OR k.id IS NULL
), bar AS MATERIALIZED (
    SELECT u.ts, bool_or(u.id IS NOT NULL OR u.no > greatest(%(made)s::bigint, span.begins)) AS is_changed
      FROM used u CROSS JOIN span GROUP BY u.ts
), total AS MATERIALIZED (
    SELECT count(*) FILTER (WHERE b.is_changed) AS changed, count(*) FILTER (WHERE NOT b.is_changed) AS unchanged,
           min(b.ts) FILTER (WHERE NOT b.is_changed) AS first, max(b.ts) FILTER (WHERE NOT b.is_changed) AS last
      FROM bar b WHERE b.is_changed OR b.ts >= %(bucket)s::timestamptz
), listed AS MATERIALIZED (
    SELECT b.ts FROM bar b CROSS JOIN total t
     WHERE b.is_changed OR b.ts >= %(bucket)s::timestamptz AND t.changed + t.unchanged <= %(show)s
     ORDER BY b.ts DESC LIMIT %(show)s
), shown AS (
    SELECT u.ts, u.id, u.gone, nullif(u.no, 9223372036854775807) AS no, nullif(u.until, 9223372036854775807) AS until
      FROM used u WHERE u.ts IN (TABLE listed)
), valued AS (
    SELECT s.*, v.open, v.high, v.low, v.close, v.vol, v.source, v.inserted_at
      FROM shown s
     CROSS JOIN LATERAL (
           SELECT b.open, b.high, b.low, b.close, b.vol, b.source, b.inserted_at FROM public.ohlcv_1m b
            WHERE s.id IS NULL AND b.symbol = %(symbol)s AND b.ts = s.ts
            UNION ALL
           SELECT h.open, h.high, h.low, h.close, h.vol, h.source, h.inserted_at FROM feature_platform.bar_history h
            WHERE h.symbol = %(symbol)s AND h.ts = s.ts AND h.id = s.id) AS v
)
SELECT t.changed, t.unchanged, t.first, t.last, k.ts, k.open, k.high, k.low, k.close, k.vol, k.source, k.inserted_at,
       k.no, r.known_by, k.until, k.gone, g.known_by AS until_known, k.id IS NULL AS is_stored
  FROM total t
  LEFT JOIN valued k ON true
  LEFT JOIN feature_platform.refresh r ON r.no = k.no
  LEFT JOIN feature_platform.refresh g ON g.no = k.until
 ORDER BY k.ts DESC, k.id DESC NULLS FIRST;
