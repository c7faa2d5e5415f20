-- Statements of the model service.

-- service_session --
-- Set the session of the service: a statement timeout, read only, times in UTC.
SELECT set_config('statement_timeout', %(statement_timeout)s, false),
    set_config('default_transaction_read_only', 'on', false),
       set_config('timezone', 'UTC', false);

-- service_latest --
-- The newest row of each of some symbols, and the seconds since the end of its minute.
SELECT f.symbol, f.bucket, f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z, f.vwap_gap,
       f.parkinson_vol,
       extract(epoch FROM feature_platform.clock() - f.bucket - interval '1 minute')::double precision AS age_seconds
  FROM unnest(%(symbols)s::text[]) AS requested (symbol)
 CROSS JOIN LATERAL (SELECT * FROM public.features_1m f
                      WHERE f.symbol = requested.symbol COLLATE "C" ORDER BY f.bucket DESC LIMIT 1) AS f;

-- service_rows --
-- Some rows of one symbol, from start to end, in the order of time.
SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket LIMIT %(rows)s;

-- service_next_start --
-- The minute of the row after a number of rows from start to end; no row if there is none.
SELECT bucket
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket OFFSET %(rows)s LIMIT 1;

-- service_symbol_is_known --
-- Whether a symbol has feature rows; the table is read only for symbols that ever had a bar.
SELECT CASE WHEN EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = %(symbol)s)
            THEN (SELECT true FROM public.features_1m f
                   WHERE f.symbol = %(symbol)s ORDER BY f.bucket DESC LIMIT 1) IS NOT NULL
            ELSE false END;

-- service_known_symbols --
-- The symbols that have feature rows, for an error to propose the nearest.
SELECT symbol FROM feature_platform.feature_symbol LIMIT 5000;

-- service_symbols --
-- Every symbol that has feature rows, its first and last row, and the seconds since the end of the last row's minute.
SELECT s.symbol, ends.first, ends.last,
       extract(epoch FROM feature_platform.clock() - ends.last - interval '1 minute')::double precision AS age_seconds
  FROM feature_platform.feature_symbol s
 CROSS JOIN LATERAL (
       SELECT (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1) AS first,
              (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC
               LIMIT 1) AS last
 ) AS ends
 ORDER BY s.symbol;

-- service_dirty --
-- The number of dirty rows, and the seconds since the oldest mark.
SELECT coalesce(sum(rows_dirty), 0)::bigint,
       coalesce(extract(epoch FROM feature_platform.clock() - min(marked_at)), 0)::double precision
  FROM feature_platform.dirty;

-- service_gaps --
-- The minutes of the last 24 hours without a bar, by state, by the index of gaps.
WITH day AS MATERIALIZED (
    SELECT at - interval '24 hours' AS since, at AS until FROM feature_platform.clock() AS now (at)
), gap AS (
    SELECT g.state, extract(epoch FROM least(g.end_ts, day.until) - greatest(g.start_ts, day.since)) / 60 AS minutes
      FROM day CROSS JOIN feature_platform.gap_watermark w
     CROSS JOIN LATERAL (
           (SELECT g.* FROM public.ohlcv_1m_gaps g -- the one that may reach into the day
             WHERE g.symbol = w.symbol AND g.state <> 'filled' AND g.start_ts < day.since ORDER BY g.start_ts DESC
                 LIMIT 1)
           UNION ALL
           SELECT g.* FROM public.ohlcv_1m_gaps g
            WHERE g.symbol = w.symbol AND g.state <> 'filled' AND g.start_ts >= day.since
                AND g.start_ts < day.until) AS g
     WHERE g.end_ts > day.since
)
SELECT s.state, coalesce(sum(gap.minutes), 0)::double precision
  FROM unnest('{open,quiet,unavailable,not_recorded}'::text[]) AS s (state)
  LEFT JOIN gap ON gap.state = s.state
 GROUP BY s.state ORDER BY s.state;

-- service_policy --
-- Whether there is a policy, and its last run: its begin, its duration in seconds, the rows that it wrote.
SELECT EXISTS (SELECT FROM feature_platform.policy), extract(epoch FROM run.started_at)::double precision,
       extract(epoch FROM run.finished_at - run.started_at)::double precision, run.rows_written
  FROM (VALUES (1)) AS one
  LEFT JOIN LATERAL (SELECT * FROM feature_platform.policy_run r ORDER BY r.id DESC LIMIT 1) AS run ON true;

-- service_policy_runs --
-- The number of runs by outcome, of the last thousand runs and the last hour.
SELECT o.outcome, count(r.id)
  FROM unnest('{ok,failed,unfinished}'::text[]) AS o (outcome)
  LEFT JOIN (SELECT id, started_at,
                    CASE WHEN error IS NOT NULL THEN 'failed' WHEN finished_at IS NULL THEN 'unfinished'
                        ELSE 'ok' END AS outcome
               FROM feature_platform.policy_run ORDER BY id DESC LIMIT 1000) AS r
         ON r.outcome = o.outcome AND r.started_at > feature_platform.clock() - interval '1 hour'
 GROUP BY o.outcome ORDER BY o.outcome;

-- service_views --
-- The feature views that can be read: name, version, seconds of a bucket, description, state, columns, expressions.
SELECT name, version, extract(epoch FROM every)::integer, description, state, columns, sources
  FROM feature_platform.feature_view WHERE served ORDER BY name;

-- service_view_latest --
-- The newest row of each of some symbols in a view, and the seconds since the end of its bucket.
SELECT f.symbol, f.bucket, {columns},
       extract(epoch FROM feature_platform.clock() - f.bucket - %(width)s::interval)::double precision AS age_seconds
  FROM unnest(%(symbols)s::text[]) AS requested (symbol)
 CROSS JOIN LATERAL (SELECT * FROM {view} f
                      WHERE f.symbol = requested.symbol COLLATE "C" ORDER BY f.bucket DESC LIMIT 1) AS f;

-- service_view_rows --
-- Some rows of one symbol in a view, from start to end, in the order of time.
SELECT f.symbol, f.bucket, {columns}
  FROM {view} f
 WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
 ORDER BY f.bucket LIMIT %(rows)s;

-- service_view_next_start --
-- The bucket of the row after a number of rows of a view from start to end; no row if there is none.
SELECT f.bucket
  FROM {view} f
 WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
 ORDER BY f.bucket OFFSET %(rows)s LIMIT 1;

-- service_view_states --
-- One row for each view that can be read: the lag in seconds, the number of dirty buckets, the seconds since the oldest
-- mark, the built part (0 to 1), and 1 if the view has failed.
SELECT v.name, extract(epoch FROM feature_platform.view_lag(v))::double precision, s.dirty,
       coalesce(extract(epoch FROM s.dirty_age), 0)::double precision,
       CASE WHEN s.buckets > 0 THEN 1 - s.unbuilt::double precision / s.buckets ELSE 1 END,
       (v.state = 'failed')::integer
  FROM feature_platform.feature_view v
 CROSS JOIN LATERAL feature_platform.view_progress(v) AS s
 WHERE v.served ORDER BY v.name;

-- service_recorder --
-- The last state of each symbol's stream, and the seconds since its heartbeat and since its last update.
SELECT symbol, state, extract(epoch FROM feature_platform.clock() - beat_at)::double precision AS beat_age,
       extract(epoch FROM feature_platform.clock() - update_at)::double precision AS update_age, rejected
  FROM feature_platform.heartbeat
 ORDER BY symbol;
