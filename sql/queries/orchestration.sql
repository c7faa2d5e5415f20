-- Statements of Dagster's assets, sensors and schedules.

-- window_bars --
-- The numbers of each symbol's bars and minutes without a bar in a window, up to the last closed minute; for a symbol
-- that is no longer recorded, up to its last recorded minute.
WITH span AS MATERIALIZED (
    SELECT %(start)s::timestamptz AS lo, least(%(end)s::timestamptz, feature_platform.due_until()) AS hi
)
SELECT s.symbol, has.bars, greatest(expected.minutes - has.minutes, 0) AS missing, gap.open, gap.quiet, gap.unavailable,
       coalesce(greatest(extract(epoch FROM recorded.hi - has.last - interval '1 minute'), 0),
                0)::double precision AS lag,
       last.close AS last_close
  FROM span CROSS JOIN feature_platform.bar_symbol s
 CROSS JOIN LATERAL (SELECT least(span.hi, (SELECT feature_platform.bucket_of(h.state_at)
                                            FROM feature_platform.heartbeat h
                                             WHERE h.symbol = s.symbol AND h.state = 'not_recorded')) AS hi) AS recorded
 CROSS JOIN LATERAL (SELECT count(*) AS bars, count(DISTINCT feature_platform.bucket_of(b.ts)) AS minutes,
                            feature_platform.bucket_of(max(b.ts)) AS last
                       FROM public.ohlcv_1m b WHERE b.symbol = s.symbol AND b.ts >= span.lo AND b.ts < span.hi) AS has
 CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b WHERE b.symbol = s.symbol
                     ORDER BY b.ts LIMIT 1) AS first
 CROSS JOIN LATERAL (SELECT (extract(epoch FROM recorded.hi - greatest(span.lo,
     first.bucket)) / 60)::bigint AS minutes) AS expected
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(part.minutes) FILTER (WHERE g.state = 'open'), 0)::bigint AS open,
              coalesce(sum(part.minutes) FILTER (WHERE g.state = 'quiet'), 0)::bigint AS quiet,
              coalesce(sum(part.minutes) FILTER (WHERE g.state = 'unavailable'), 0)::bigint AS unavailable
         FROM public.ohlcv_1m_gaps g
        CROSS JOIN LATERAL (SELECT extract(epoch FROM least(g.end_ts, span.hi) - greatest(g.start_ts,
            span.lo)) / 60 AS minutes) AS part
        WHERE g.symbol = s.symbol AND g.state <> 'filled' AND g.start_ts < span.hi AND g.end_ts > span.lo) AS gap
  LEFT JOIN LATERAL (SELECT b.close FROM public.ohlcv_1m b WHERE b.symbol = s.symbol AND b.ts >= span.lo
                     AND b.ts < span.hi
                      ORDER BY b.ts DESC LIMIT 1) AS last ON true
 ORDER BY missing DESC, s.symbol;

-- window_features --
-- The numbers of each symbol's rows, NULLs and minutes without a row in a window, up to the last closed minute; for a
-- symbol that is no longer recorded, up to its last recorded minute.
WITH span AS MATERIALIZED (
    SELECT %(start)s::timestamptz AS lo, least(%(end)s::timestamptz, feature_platform.due_until()) AS hi
)
SELECT s.symbol, has.rows, has.null_log_return, has.null_volume_z,
       greatest((extract(epoch FROM recorded.hi - greatest(span.lo, first.bucket)) / 60)::bigint - has.rows,
                0) AS missing,
       has.spikes, coalesce(greatest(extract(epoch FROM recorded.hi - has.last - interval '1 minute'), 0),
                            0)::double precision AS lag,
       has.volatility
  FROM span CROSS JOIN feature_platform.feature_symbol s
 CROSS JOIN LATERAL (SELECT least(span.hi, (SELECT feature_platform.bucket_of(h.state_at)
                                            FROM feature_platform.heartbeat h
                                             WHERE h.symbol = s.symbol AND h.state = 'not_recorded')) AS hi) AS recorded
 CROSS JOIN LATERAL (SELECT count(*) AS rows, count(*) FILTER (WHERE f.log_return IS NULL) AS null_log_return,
                            count(*) FILTER (WHERE f.volume_z IS NULL) AS null_volume_z,
                            count(*) FILTER (WHERE f.volume_z > 3) AS spikes, max(f.bucket) AS last,
                            sqrt(sum(f.log_return ^ 2)) AS volatility
                       FROM public.features_1m f WHERE f.symbol = s.symbol AND f.bucket >= span.lo
                           AND f.bucket < span.hi) AS has
 CROSS JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket
                     LIMIT 1) AS first
 ORDER BY missing DESC, s.symbol;

-- newest_minutes --
-- The newest closed minute of each table.
WITH now AS MATERIALIZED (
    SELECT feature_platform.bucket_of(feature_platform.clock()) AS minute
)
SELECT (SELECT max(last.minute)
          FROM now CROSS JOIN feature_platform.bar_symbol s
         CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS minute FROM public.ohlcv_1m b
                              WHERE b.symbol = s.symbol AND b.ts < now.minute ORDER BY b.ts DESC
                                  LIMIT 1) AS last) AS ohlcv_1m,
       (SELECT f.bucket FROM public.features_1m f
         WHERE f.bucket < (SELECT minute FROM now) ORDER BY f.bucket DESC LIMIT 1) AS features_1m;

-- whole_days --
-- The days of these UTC days that have rows, no open gap and no dirty minute, newest first.
SELECT day.first
  FROM unnest(%(days)s::timestamptz[]) AS day (first)
 WHERE EXISTS (SELECT FROM public.features_1m f WHERE f.bucket >= day.first AND f.bucket < day.first
               + interval '24 hours')
   AND NOT EXISTS (SELECT FROM public.ohlcv_1m_gaps g
                    WHERE g.state = 'open' AND g.start_ts < day.first + interval '24 hours' AND g.end_ts > day.first)
   AND NOT EXISTS (SELECT FROM feature_platform.dirty_log l
                    WHERE l.buckets && tstzrange(day.first, day.first + interval '24 hours'))
 ORDER BY day.first DESC;

-- due_days --
-- UTC days with open gaps that may be requested now, newest first, of the symbols of gaps_due. `identity` changes when
-- one of the gaps is requested, and when one is found; not when an outage that continues makes its gap longer.
SELECT g.day, count(*) AS gaps, array_agg(DISTINCT g.symbol ORDER BY g.symbol) AS symbols,
       sum(extract(epoch FROM g.end_ts - g.start_ts) / 60)::bigint AS minutes,
       md5(string_agg(concat_ws('|', g.symbol, extract(epoch FROM g.gap_start), extract(epoch FROM g.found_at),
                                g.attempts, extract(epoch FROM g.next_attempt_at)),
                      ',' ORDER BY g.symbol, g.gap_start)) AS identity
  FROM feature_platform.due_gaps(%(symbols)s) AS g
 GROUP BY g.day ORDER BY g.day DESC;

-- bar_symbols --
-- Every symbol that has bars.
SELECT symbol FROM feature_platform.bar_symbol;

-- recheck_gaps --
-- Make the next ticks account for all history again.
SELECT feature_platform.recheck_gaps();

-- apply_retention --
-- Delete the rows that are older than the retention.
CALL feature_platform.apply_retention();

-- recording_began --
-- The time of the first heartbeat of a recorder; NULL if none has ever run.
SELECT min(first_at) FROM feature_platform.heartbeat;

-- policy_set --
-- Add the policy, or change it; return the action. An empty text does not change a value, and is the default value in a
-- new policy.
WITH wanted AS MATERIALIZED (
    SELECT nullif(%(start_offset)s::text, '')::interval AS start_offset,
           nullif(%(end_offset)s::text, '')::interval AS end_offset,
           nullif(%(schedule_interval)s::text, '')::interval AS schedule_interval
)
SELECT CASE WHEN EXISTS (SELECT FROM feature_platform.policy)
            THEN (SELECT CASE WHEN coalesce(w.start_offset, w.end_offset, w.schedule_interval) IS NULL THEN 'kept'
                  ELSE 'changed' END
                    FROM wanted w CROSS JOIN public.alter_features_1m_policy(w.start_offset, w.end_offset,
                        w.schedule_interval))
            ELSE (SELECT 'added'
                    FROM wanted w CROSS JOIN public.add_features_1m_policy(
                             coalesce(w.start_offset, '1 hour'), coalesce(w.end_offset, '1 minute'),
                                 coalesce(w.schedule_interval, '1 minute'))) END;

-- policy_runs_since --
-- The work of the policy's runs that have ended since the last report: later runs, and later wake-ups of the run that
-- was reported last, with these rows and slices. Also the newest of these runs, with its rows and slices so far.
SELECT count(*) FILTER (WHERE id > %(last)s) AS runs,
       coalesce(sum(rows_written - CASE WHEN id = %(last)s THEN %(rows)s ELSE 0 END), 0)::bigint AS rows_written,
       coalesce(sum(slices - CASE WHEN id = %(last)s THEN %(slices)s ELSE 0 END), 0)::bigint AS slices,
       coalesce(max(extract(epoch FROM finished_at - started_at)) FILTER (WHERE id > %(last)s),
                0)::double precision AS longest_seconds,
       count(error) FILTER (WHERE id > %(last)s) AS failed, coalesce(max(id), %(last)s) AS last,
       coalesce((array_agg(rows_written ORDER BY id DESC))[1], 0) AS last_rows,
           coalesce((array_agg(slices ORDER BY id DESC))[1], 0) AS last_slices
  FROM feature_platform.policy_run WHERE id >= %(last)s AND finished_at IS NOT NULL;

-- policy_is_late --
-- Whether neither a worker nor a database job has begun a run for two intervals.
SELECT coalesce((SELECT max(r.started_at) FROM feature_platform.policy_run r WHERE r.runner IN ('worker', 'job')),
                p.changed_at)
       < feature_platform.clock() - 2 * p.schedule_interval
  FROM feature_platform.policy p;

-- view_newest_rows --
-- The newest row of each symbol in a view, and its age in seconds from the end of its bucket; the oldest first.
SELECT k.symbol, newest.bucket AS newest,
       extract(epoch FROM feature_platform.clock() - newest.bucket - v.every)::double precision AS lag
  FROM feature_platform.feature_view v
 CROSS JOIN feature_platform.bar_symbol k
  LEFT JOIN LATERAL (SELECT f.bucket FROM {view} f WHERE f.symbol = k.symbol ORDER BY f.bucket DESC LIMIT 1) AS newest
         ON true
 WHERE v.name = %(name)s AND v.served
 ORDER BY newest.bucket NULLS FIRST, k.symbol;

-- view_window --
-- The number of rows of each symbol in a window of a view; the symbols with the fewest rows first.
SELECT k.symbol, has.rows
  FROM feature_platform.bar_symbol k
 CROSS JOIN LATERAL (SELECT count(*) AS rows FROM {view} f
                      WHERE f.symbol = k.symbol AND f.bucket >= %(start)s AND f.bucket < %(end)s) AS has
 ORDER BY has.rows, k.symbol;

-- view_whole_days --
-- The days of these UTC days that have rows in a view, no open gap and no row that waits for a refresh, newest first.
-- A change that is not processed yet may reach every later row.
WITH served AS MATERIALIZED (
    SELECT v.id FROM feature_platform.feature_view v WHERE v.name = %(name)s AND v.served AND v.state <> 'failed'
), filled AS MATERIALIZED (
    SELECT day.first, tstzrange(day.first, day.first + interval '24 hours') AS span
      FROM served CROSS JOIN unnest(%(days)s::timestamptz[]) AS day (first)
     WHERE EXISTS (SELECT FROM {view} f WHERE f.bucket >= day.first AND f.bucket < day.first + interval '24 hours')
), waiting AS MATERIALIZED (
    SELECT coalesce(range_agg(s.dirty), '{{}}') AS rows,
           least((SELECT min(lower(n.changed)) FROM feature_platform.view_change n
                   WHERE n.id > coalesce((SELECT o.processed FROM feature_platform.view_symbol o
                                           WHERE o.view = (SELECT id FROM served) AND o.symbol = n.symbol), 0)),
                 (SELECT min(lower(l.buckets)) FROM feature_platform.dirty_log l)) AS changed_from
      FROM feature_platform.view_symbol s WHERE s.view = (SELECT id FROM served) AND s.dirty <> '{{}}'
)
SELECT filled.first
  FROM filled CROSS JOIN waiting
 WHERE NOT filled.span && waiting.rows
   AND NOT coalesce(upper(filled.span) > waiting.changed_from, false)
   AND NOT EXISTS (SELECT FROM public.ohlcv_1m_gaps g
                    WHERE g.state = 'open' AND g.start_ts < upper(filled.span) AND g.end_ts > filled.first)
 ORDER BY filled.first DESC;
