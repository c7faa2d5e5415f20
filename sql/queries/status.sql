-- Statements of status, top and health.

-- ==== status.py ====
-- status_symbols --
-- Each symbol's first and last bar, newest feature row and dirty rows, by index.
SELECT s.symbol, ends.first_bar, ends.last_bar, ends.last_feature,
       coalesce(d.rows_dirty, 0) AS rows_dirty, d.marked_at AS dirty_since,
       feature_platform.clock() - (ends.last_feature + interval '1 minute') AS lag
  FROM (SELECT symbol FROM feature_platform.bar_symbol UNION SELECT symbol FROM feature_platform.feature_symbol) AS s
 CROSS JOIN LATERAL (
       SELECT (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first_bar,
              (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1) AS last_bar,
              (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC
               LIMIT 1) AS last_feature
 ) AS ends
  LEFT JOIN feature_platform.dirty d ON d.symbol = s.symbol
 ORDER BY s.symbol;

-- status_runners --
-- The kinds of runners of the policy whose session exists now.
SELECT r.runner
  FROM feature_platform.runner r
  JOIN pg_stat_activity a ON (a.datid, a.usesysid, a.pid) = (r.datid, r.usesysid, r.pid)
 ORDER BY r.runner;

-- status_counts --
-- The numbers of bars and feature rows of each symbol; reads all keys of both tables.
SELECT symbol, coalesce(b.bars, 0) AS bars, coalesce(f.features, 0) AS features
  FROM (SELECT symbol, count(*) AS bars FROM public.ohlcv_1m GROUP BY symbol) AS b
  FULL JOIN (SELECT symbol, count(*) AS features FROM public.features_1m GROUP BY symbol) AS f USING (symbol);

-- status_policy --
-- The refresh policy, its last run, its last error, and the number of dirty rows.
SELECT start_offset, end_offset, schedule_interval, runs_in, last_runner, last_start, last_duration, running,
       last_rows_written, last_slices, rows_dirty, oldest_dirty_age, last_error, last_error_at, next_run, last_wakes,
           last_wake, problem
  FROM feature_platform.policy_status;


-- status_views --
-- The versions of feature views: name, version, whether it is served, state, error, symbols with dirty buckets, age of
-- the oldest mark.
SELECT v.name, v.version, v.served, v.state, v.error, count(s.symbol) AS symbols_dirty,
       feature_platform.clock() - min(s.marked_at) AS dirty_age
  FROM feature_platform.feature_view v
  LEFT JOIN feature_platform.view_symbol s
    ON s.view = v.id AND s.dirty <> '{}' AND s.dirty && tstzrange(NULL, feature_platform.view_due(v.every, v.origin))
 GROUP BY v.id ORDER BY v.name, v.version;


-- ==== top.py ====
-- top_open_minutes --
-- The number of minutes in open gaps by symbol, by the index of open gaps.
SELECT symbol, sum(extract(epoch FROM end_ts - start_ts) / 60)::bigint AS minutes
  FROM public.ohlcv_1m_gaps g
 WHERE state = 'open' AND NOT EXISTS (SELECT FROM feature_platform.heartbeat h WHERE h.symbol = g.symbol
                                      AND h.state = 'not_recorded')
 GROUP BY symbol;


-- ==== health.py ====
-- health_worker --
-- The fault of the worker; no row if it has none, or if there is no policy.
SELECT 'no worker is running: ' || coalesce('the last run of the policy began '
                                            || round(extract(epoch FROM now.at - newest.started_at)) || ' s ago',
                                            'none has run here within 7 days') AS problem
  FROM feature_platform.policy p
 CROSS JOIN feature_platform.clock() AS now (at)
  LEFT JOIN LATERAL (SELECT r.started_at FROM feature_platform.policy_run r WHERE r.runner = 'worker'
                        AND r.started_at > now.at - interval '7 days' ORDER BY r.started_at DESC LIMIT 1) AS newest
                            ON true
 WHERE greatest(newest.started_at, p.changed_at) < now.at - 2 * p.schedule_interval - interval '1 minute';

-- health_recorder --
-- The fault of the recorder; no row if it has written a heartbeat within a minute, with any state of its streams.
SELECT coalesce('no recorder is running: its last heartbeat was '
                || round(extract(epoch FROM now.at - newest.beat_at)) || ' s ago',
                'no recorder has ever run here') AS problem
  FROM feature_platform.clock() AS now (at)
 CROSS JOIN (SELECT max(h.beat_at) AS beat_at FROM feature_platform.heartbeat h) AS newest
 WHERE newest.beat_at >= now.at - interval '1 minute' IS NOT TRUE;

-- health_daemon --
-- The fault of Dagster's daemon, in Dagster's own database: its parts without a heartbeat within five minutes.
SELECT 'the daemon is not running: no heartbeat within 5 minutes of ' || string_agg(part, ', ' ORDER BY part) AS problem
  FROM unnest(ARRAY['SENSOR', 'SCHEDULER', 'QUEUED_RUN_COORDINATOR', 'MONITORING']) AS part
 WHERE NOT EXISTS (SELECT FROM daemon_heartbeats h WHERE h.daemon_type = part
                   AND h.timestamp > (now() AT TIME ZONE 'UTC') - interval '5 minutes')
HAVING count(*) > 0;
