-- Statements of the model service.

-- service_session --
-- Set the session of the service: a statement timeout, read only, times in UTC, and rows by an index in its order, so
-- that a part of a long range reads no more rows than it has.
SELECT set_config('statement_timeout', %(statement_timeout)s, false),
    set_config('default_transaction_read_only', 'on', false),
       set_config('timezone', 'UTC', false), set_config('enable_bitmapscan', 'off', false),
       set_config('plan_cache_mode', 'force_generic_plan', false);

-- service_log_session --
-- Set the session that writes the log of serves: a statement timeout, and no wait for the disk.
SELECT set_config('statement_timeout', %(statement_timeout)s, false), set_config('synchronous_commit', 'off', false);

-- service_log --
-- Store rows of the log of serves.
COPY feature_platform.served (view, version, symbol, bucket, refresh_no, symbol_no, waiting, waiting_no, values,
                              served_at) FROM STDIN (FORMAT binary);

-- service_latest --
-- The newest row of each of some symbols, with the number of the refresh that gave it its values; by the same snapshot
-- the number of the symbol's last refresh, the buckets from this one on that a refresh has put back (NULL: none), and
-- the symbol's number before these; and the seconds since the end of the row's minute.
SELECT f.symbol, f.bucket, f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z, f.vwap_gap,
       f.parkinson_vol, f.refresh_no, greatest(n.no, f.refresh_no) AS symbol_no, w.waiting, w.waiting_no,
       extract(epoch FROM feature_platform.clock() - f.bucket - interval '1 minute')::double precision AS age_seconds
  FROM unnest(%(symbols)s::text[]) AS requested (symbol)
 CROSS JOIN LATERAL (SELECT * FROM public.features_1m f
                      WHERE f.symbol = requested.symbol COLLATE "C" ORDER BY f.bucket DESC LIMIT 1) AS f
  LEFT JOIN feature_platform.symbol_number n ON n.symbol = f.symbol
 CROSS JOIN LATERAL (SELECT range_agg(l.buckets) * tstzmultirange(tstzrange(f.bucket, NULL)) AS waiting,
                            min(l.before_no) AS waiting_no
                       FROM feature_platform.dirty_log l
                      WHERE l.symbol = f.symbol AND l.before_no IS NOT NULL
                        AND l.buckets && tstzrange(f.bucket, NULL)) AS w;

-- service_page --
-- The knowledge that all parts of a page of one symbol show, by one snapshot: the number of the symbol's last refresh;
-- which refreshes the page shows (see page_knowledge); the buckets of the range that a refresh has put back (NULL:
-- none), and the symbol's number before these; the bucket of the row after the page, if there is one.
WITH latest AS MATERIALIZED (
    SELECT feature_platform.number_of(%(symbol)s) AS no
), known AS MATERIALIZED (
    SELECT latest.*, k.*
      FROM latest
     CROSS JOIN LATERAL feature_platform.page_knowledge(
           %(symbol)s, latest.no, %(as_of)s::timestamptz, %(symbol_no)s::bigint) AS k
)
SELECT known.no, known.upto, known.late, known.is_future, known.known_from, known.floor_no, known.kept_from,
       w.waiting, w.waiting_no,
       coalesce(
           (SELECT f.bucket FROM public.features_1m f
             WHERE known.upto >= known.no AND known.late = '{}'     -- then every stored row counts
               AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
             ORDER BY f.bucket OFFSET %(rows)s LIMIT 1),
           (SELECT p.bucket
              FROM ((SELECT f.bucket FROM public.features_1m f
                      WHERE NOT (known.upto >= known.no AND known.late = '{}')
                        AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
                        AND f.refresh_no <= known.upto AND f.refresh_no <> ALL (known.late)
                      ORDER BY f.bucket LIMIT %(rows)s + 1)
                    UNION ALL
                    (SELECT f.bucket FROM feature_platform.features_1m_history f
                      WHERE NOT (known.upto >= known.no AND known.late = '{}')
                        AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
                        AND f.since <= known.upto AND f.since <> ALL (known.late)
                        AND (f.until > known.upto OR f.until = ANY (known.late))
                      ORDER BY f.bucket LIMIT %(rows)s + 1)) AS p
             ORDER BY p.bucket OFFSET %(rows)s LIMIT 1))
  FROM known
 CROSS JOIN LATERAL (SELECT range_agg(l.buckets) * tstzmultirange(tstzrange(%(start)s, %(end)s)) AS waiting,
                            min(l.before_no) AS waiting_no
                       FROM feature_platform.dirty_log l
                      WHERE l.symbol = %(symbol)s AND l.before_no IS NOT NULL
                        AND l.buckets && tstzrange(%(start)s, %(end)s)) AS w;

-- service_rows --
-- Some rows of one symbol, from start to end, in the order of time, as of the refreshes up to a number except some.
-- Old versions are read only where a refresh of the symbol does not count. Each half has a limit of its own, so that
-- both are read by their index, in order.
SELECT r.*
  FROM ((SELECT f.symbol, f.bucket, f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z,
                f.vwap_gap, f.parkinson_vol, f.refresh_no
           FROM public.features_1m f
          WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
            AND f.refresh_no <= %(upto)s AND f.refresh_no <> ALL (%(late)s::bigint[])
          ORDER BY f.bucket LIMIT %(rows)s)
        UNION ALL
        (SELECT f.symbol, f.bucket, f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z,
                f.vwap_gap, f.parkinson_vol, f.since
           FROM feature_platform.features_1m_history f
          WHERE (feature_platform.number_of(%(symbol)s) > %(upto)s OR %(late)s::bigint[] <> '{}')
            AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
            AND f.since <= %(upto)s AND f.since <> ALL (%(late)s::bigint[])
            AND (f.until > %(upto)s OR f.until = ANY (%(late)s::bigint[]))
          ORDER BY f.bucket LIMIT %(rows)s)) AS r
 ORDER BY r.bucket LIMIT %(rows)s;

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
-- The feature views that can be read: number, name, version, seconds of a bucket, description, state, columns,
-- expressions, and since when the version is complete.
SELECT id, name, version, extract(epoch FROM every)::integer, description, state, columns, sources, built_at
  FROM feature_platform.feature_view WHERE served ORDER BY name;

-- service_view_latest --
-- The newest row of each of some symbols in a view, as service_latest.
SELECT f.symbol, f.bucket, {columns}, f.refresh_no, greatest(s.no, f.refresh_no) AS symbol_no, w.waiting,
       CASE WHEN w.waiting IS NOT NULL THEN coalesce(s.before_no, s.no) END AS waiting_no,
       extract(epoch FROM feature_platform.clock() - f.bucket - %(width)s::interval)::double precision AS age_seconds
  FROM unnest(%(symbols)s::text[]) AS requested (symbol)
 CROSS JOIN LATERAL (SELECT * FROM {view} f
                      WHERE f.symbol = requested.symbol COLLATE "C" ORDER BY f.bucket DESC LIMIT 1) AS f
  LEFT JOIN feature_platform.view_symbol s ON s.view = %(id)s AND s.symbol = f.symbol
 CROSS JOIN LATERAL (SELECT nullif(s.dirty * tstzmultirange(tstzrange(f.bucket, NULL)), '{{}}') AS waiting) AS w;

-- service_view_page --
-- The knowledge that all parts of a page of one symbol in a view show, as service_page.
WITH latest AS MATERIALIZED (
    SELECT coalesce(s.no, 0) AS no, coalesce(s.before_no, s.no) AS before_no,
           nullif(s.dirty * tstzmultirange(tstzrange(%(start)s, %(end)s)), '{{}}') AS waiting
      FROM (VALUES (1)) AS one
      LEFT JOIN feature_platform.view_symbol s ON s.view = %(id)s AND s.symbol = %(symbol)s
), known AS MATERIALIZED (
    SELECT latest.*, k.*
      FROM latest
     CROSS JOIN LATERAL feature_platform.page_knowledge(
           %(symbol)s, latest.no, %(as_of)s::timestamptz, %(symbol_no)s::bigint) AS k
)
SELECT known.no, known.upto, known.late, known.is_future, known.known_from, known.floor_no, known.kept_from,
       known.waiting, CASE WHEN known.waiting IS NOT NULL THEN known.before_no END,
       coalesce(
           (SELECT f.bucket FROM {view} f
             WHERE known.upto >= known.no AND known.late = '{{}}'     -- then every stored row counts
               AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
             ORDER BY f.bucket OFFSET %(rows)s LIMIT 1),
           (SELECT p.bucket
              FROM ((SELECT f.bucket FROM {view} f
                      WHERE NOT (known.upto >= known.no AND known.late = '{{}}')
                        AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
                        AND f.refresh_no <= known.upto AND f.refresh_no <> ALL (known.late)
                      ORDER BY f.bucket LIMIT %(rows)s + 1)
                    UNION ALL
                    (SELECT f.bucket FROM {versions} f
                      WHERE f.until IS NOT NULL AND NOT (known.upto >= known.no AND known.late = '{{}}')
                        AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
                        AND f.since <= known.upto AND f.since <> ALL (known.late)
                        AND (f.until > known.upto OR f.until = ANY (known.late))
                      ORDER BY f.bucket LIMIT %(rows)s + 1)) AS p
             ORDER BY p.bucket OFFSET %(rows)s LIMIT 1))
  FROM known;

-- service_view_rows --
-- Some rows of one symbol in a view, as service_rows.
SELECT r.*
  FROM ((SELECT f.symbol, f.bucket, {columns}, f.refresh_no
           FROM {view} f
          WHERE f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
            AND f.refresh_no <= %(upto)s AND f.refresh_no <> ALL (%(late)s::bigint[])
          ORDER BY f.bucket LIMIT %(rows)s)
        UNION ALL
        (SELECT f.symbol, f.bucket, {columns}, f.since
           FROM {versions} f
          WHERE f.until IS NOT NULL
            AND (%(late)s::bigint[] <> '{{}}'
                 OR (SELECT s.no FROM feature_platform.view_symbol s
                      WHERE s.view = %(id)s AND s.symbol = %(symbol)s) > %(upto)s)
            AND f.symbol = %(symbol)s AND f.bucket >= %(start)s AND f.bucket < %(end)s
            AND f.since <= %(upto)s AND f.since <> ALL (%(late)s::bigint[])
            AND (f.until > %(upto)s OR f.until = ANY (%(late)s::bigint[]))
          ORDER BY f.bucket LIMIT %(rows)s)) AS r
 ORDER BY r.bucket LIMIT %(rows)s;

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

-- service_skew --
-- The last check of served rows: the rows that were compared and those that were wrong, and the seconds since then.
SELECT rows, mismatch, missing, extra, extract(epoch FROM feature_platform.clock() - at)::double precision
  FROM feature_platform.skew_check ORDER BY at DESC LIMIT 1;

-- service_recorder --
-- The last state of each symbol's stream, and the seconds since its heartbeat and since its last update.
SELECT symbol, state, extract(epoch FROM feature_platform.clock() - beat_at)::double precision AS beat_age,
       extract(epoch FROM feature_platform.clock() - update_at)::double precision AS update_age, rejected
  FROM feature_platform.heartbeat
 ORDER BY symbol;
