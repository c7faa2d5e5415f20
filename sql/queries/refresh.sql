-- Statements of refreshes and of the worker.

-- ==== refresh.py ====
-- refresh_read_committed --
-- Make each statement of a slice see all commits before it, independent of the database's default.
SET default_transaction_isolation = 'read committed';

-- refresh_bounds --
-- A refresh window with the engine's rounding, as text because its ends may be infinite.
SELECT coalesce(feature_platform.bucket_from(%(start)s), '-infinity')::text AS window_lo,
       least(coalesce(feature_platform.bucket_from(%(end)s), 'infinity'),
             feature_platform.due_until())::text AS window_hi;

-- refresh_mark_window --
-- Mark all rows of a window dirty.
SELECT feature_platform.mark_window(%(window_lo)s::timestamptz, %(window_hi)s::timestamptz);

-- refresh_todo --
-- The newest mark, and about the number of dirty minutes in a window.
SELECT feature_platform.dirty_horizon() AS horizon,
       coalesce(sum(extract(epoch FROM upper(r) - lower(r)))::bigint / 60, 0) AS minutes
  FROM feature_platform.dirty d
 CROSS JOIN unnest(d.buckets * tstzmultirange(tstzrange(
           %(window_lo)s::timestamptz, greatest(%(window_lo)s::timestamptz, %(window_hi)s::timestamptz)))) AS r;

-- refresh_slice --
-- Bring one slice of a window up to date.
SELECT symbols, minutes, rows_written, more
  FROM feature_platform.refresh_slice(%(window_lo)s::timestamptz, %(window_hi)s::timestamptz, %(horizon)s);

-- refresh_known --
-- Note since when the rows of committed refreshes are known, in a transaction of its own.
SELECT feature_platform.note_known();


-- ==== worker.py ====
-- worker_session --
-- Wait only briefly for locks: a worker that waits cannot be stopped.
SET lock_timeout = '2s';

-- worker_claim --
-- Become the one worker of this database, until the end of the session.
SELECT feature_platform.claim_runner('worker');

-- worker_look --
-- The newest mark, committed or not, and the transactions that are running. The snapshot is older than the mark.
SELECT feature_platform.dirty_horizon() AS mark,
       ARRAY(SELECT xid::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS xid) AS running;

-- worker_any_due --
-- Whether a later mark than this one has due rows.
SELECT EXISTS (
    SELECT FROM feature_platform.dirty_log l
     WHERE l.id > %(after)s AND lower(l.buckets) < feature_platform.due_until(p.end_offset))
  FROM feature_platform.policy p;

-- worker_next_run --
-- The seconds until the run after the one that began at a time, negative when it is late; the exclusive end of the due
-- rows; the seconds until more rows are due. No row where there is no policy. The epoch is divided into intervals of
-- schedule_interval, and a run starts five seconds after the start of each, so that the last minute is closed then.
SELECT extract(epoch FROM date_bin(step, %(began)s, '1970-01-01 00:00:05+00')
               + step - now.at)::double precision AS next_run,
       due.until AS due, extract(epoch FROM due.until + greatest(end_offset,
                                                                 '1 minute') - now.at)::double precision AS next_due
  FROM feature_platform.policy
 CROSS JOIN LATERAL make_interval(secs => extract(epoch FROM schedule_interval)) AS step -- months cannot be binned
 CROSS JOIN LATERAL feature_platform.due_until(end_offset) AS due (until)
 CROSS JOIN feature_platform.clock() AS now (at);

-- worker_wake --
-- Refresh one slice of the due rows, after a run; return whether there is more.
SELECT feature_platform.policy_step(%(run_id)s, feature_platform.dirty_horizon(), woken => true);


-- ==== policy.py ====
-- policy_begin --
-- Begin a run of the policy; return its id, the newest mark that it processes, and the time.
SELECT feature_platform.policy_begin(%(runner)s) AS run_id, feature_platform.dirty_horizon() AS horizon,
       feature_platform.clock() AS began;

-- policy_step --
-- Refresh one slice of a run; return whether there is more.
SELECT feature_platform.policy_step(%(run_id)s, %(horizon)s);

-- policy_views --
-- Refresh one slice of the feature views; return whether there is more.
SELECT feature_platform.view_step(%(run_id)s);

-- policy_end --
-- End a run.
SELECT feature_platform.policy_end(%(run_id)s, %(error)s);

-- policy_run --
-- The slices, rows, duration and wake-ups of a run; zeros if it was deleted meanwhile.
SELECT coalesce(max(slices), 0), coalesce(max(rows_written), 0), coalesce(max(finished_at - started_at), '0'),
       coalesce(max(wakes), 0)
  FROM feature_platform.policy_run WHERE id = %(run_id)s;
