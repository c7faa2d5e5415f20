-- The dirty minutes of each symbol: the marked minutes up to its last bar or row. The view does not look up the few
-- rows that a mark reaches beyond a day, and counts minutes without bars; rows_dirty is exact on gapless data.
CREATE OR REPLACE VIEW feature_platform.dirty AS
SELECT d.symbol, d.buckets, d.marked_at,
       (SELECT coalesce(sum(extract(epoch FROM upper(r) - lower(r)) / 60), 0)::bigint
        FROM unnest(d.buckets) AS r) AS rows_dirty
FROM (
    SELECT l.symbol, min(l.marked_at) AS marked_at,
           range_agg(l.buckets) * tstzmultirange(tstzrange(feature_platform.features_from(), NULL)
               * tstzrange(NULL, least(
               feature_platform.due_until(),
               interval '1 minute' + greatest(
                   (SELECT feature_platform.bucket_of(b.ts)
                    FROM public.ohlcv_1m b WHERE b.symbol = l.symbol ORDER BY b.ts DESC LIMIT 1),
                   (SELECT f.bucket
                    FROM public.features_1m f WHERE f.symbol = l.symbol ORDER BY f.bucket DESC LIMIT 1))))) AS buckets
    FROM feature_platform.dirty_log l
    WHERE lower(l.buckets) < feature_platform.due_until()
    GROUP BY l.symbol
) AS d
WHERE d.buckets <> '{}';
COMMENT ON VIEW feature_platform.dirty IS
    'Closed minutes whose rows are dirty, by symbol, and the time of the oldest mark.';

-- The policy in one row: its settings, its last run, the number of dirty rows. No row where there is no policy.
CREATE OR REPLACE VIEW feature_platform.policy_status AS
SELECT p.start_offset, p.end_offset, p.schedule_interval,
       CASE WHEN p.job_id IS NULL THEN 'worker' ELSE 'database job ' || p.job_id END AS runs_in,
       run.runner AS last_runner, run.started_at AS last_start,
       CASE WHEN alive.running THEN feature_platform.clock() ELSE run.finished_at END - run.started_at AS last_duration,
       alive.running,
       run.rows_written AS last_rows_written, run.slices AS last_slices,
       coalesce(dirty.rows_dirty, 0)::bigint AS rows_dirty,
       feature_platform.clock() - dirty.marked_at AS oldest_dirty_age,
       failed.error AS last_error, failed.started_at AS last_error_at,
       CASE WHEN job.problem IS NULL
            THEN coalesce(feature_platform.next_job_start(p.job_id),
                          run.started_at + p.schedule_interval) END AS next_run,
       run.wakes AS last_wakes, run.woken_at AS last_wake, job.problem
FROM feature_platform.policy p
CROSS JOIN LATERAL feature_platform.job_problem(p.job_id) AS job (problem)
LEFT JOIN LATERAL (SELECT * FROM feature_platform.policy_run r ORDER BY r.id DESC LIMIT 1) AS run ON true
CROSS JOIN LATERAL (
    -- A killed run has no end either, but its session has ended.
    SELECT run.id IS NOT NULL AND run.finished_at IS NULL AND EXISTS (
        SELECT FROM feature_platform.runner s
        JOIN pg_stat_activity a ON (a.datid, a.usesysid, a.pid) = (s.datid, s.usesysid, s.pid)
        WHERE s.runner = run.runner) AS running
) AS alive
LEFT JOIN LATERAL (SELECT * FROM feature_platform.policy_run r WHERE r.error IS NOT NULL ORDER BY r.id DESC
                   LIMIT 1) AS failed ON true
CROSS JOIN LATERAL (SELECT sum(d.rows_dirty) AS rows_dirty, min(d.marked_at) AS marked_at
                    FROM feature_platform.dirty d) AS dirty;
COMMENT ON VIEW feature_platform.policy_status IS
    'The refresh policy: its settings, last run, last error, number of dirty rows, and the reason where it cannot run.';
