-- The refresh policy, which is like TimescaleDB's policy of a continuous aggregate. A database job (TimescaleDB
-- Community) or the platform's worker runs it, both by the same calls: begin, step ... step, end. Between two runs,
-- commits wake the worker for single steps; these count with the run before.

CREATE TABLE IF NOT EXISTS feature_platform.policy (
    only_one          boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    start_offset      interval    NOT NULL CHECK (start_offset > end_offset),
    end_offset        interval    NOT NULL CHECK (end_offset >= '0'),
    schedule_interval interval    NOT NULL CHECK (schedule_interval >= '1 second'),
    job_id            integer,    -- the database job that runs it, where there is one
    changed_at        timestamptz NOT NULL DEFAULT feature_platform.clock()
);
COMMENT ON TABLE feature_platform.policy IS 'The refresh policy of features_1m; empty where there is none.';

CREATE TABLE IF NOT EXISTS feature_platform.policy_run (
    id           bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    runner       text        NOT NULL,      -- 'job' or 'worker'
    started_at   timestamptz NOT NULL DEFAULT feature_platform.clock(),
    finished_at  timestamptz,               -- NULL while it runs
    slices       integer     NOT NULL DEFAULT 0,
    rows_written bigint      NOT NULL DEFAULT 0,
    error        text,
    -- Wake-ups by commits after this run and before the next one; their slices and rows are counted above, too.
    wakes        integer     NOT NULL DEFAULT 0,
    woken_at     timestamptz
);
CREATE INDEX IF NOT EXISTS policy_run_started_idx ON feature_platform.policy_run (started_at);
CREATE INDEX IF NOT EXISTS policy_run_failed_idx ON feature_platform.policy_run (id) WHERE error IS NOT NULL;
COMMENT ON TABLE feature_platform.policy_run IS
    'Recent runs of the refresh policy, kept for a week unless the retention has another age.';

-- The session of each kind of runner that runs the policy. A worker keeps its claim from run to run; the claim ends
-- with its session. It is a row and not an advisory lock, because every session can take an advisory lock.
CREATE TABLE IF NOT EXISTS feature_platform.runner (
    runner   text CONSTRAINT runner_pkey PRIMARY KEY,     -- 'job' or 'worker'
    datid    oid,       -- the session as pg_stat_activity shows it; NULL where there is none
    usesysid oid,
    pid      integer
);
COMMENT ON TABLE feature_platform.runner IS 'The session that runs the policy, of each kind of runner.';

CREATE OR REPLACE FUNCTION feature_platform.claim_runner(runner text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO feature_platform.runner (runner) VALUES (claim_runner.runner) ON CONFLICT DO NOTHING;
    PERFORM FROM feature_platform.runner r WHERE r.runner = claim_runner.runner FOR UPDATE;
    IF EXISTS (SELECT FROM feature_platform.runner r
               JOIN pg_stat_activity a ON (a.datid, a.usesysid, a.pid) = (r.datid, r.usesysid, r.pid)
               WHERE r.runner = claim_runner.runner AND a.pid <> pg_backend_pid()) THEN
        RETURN false;
    END IF;
    UPDATE feature_platform.runner r SET datid = a.datid, usesysid = a.usesysid, pid = a.pid
    FROM pg_stat_activity a WHERE a.pid = pg_backend_pid() AND r.runner = claim_runner.runner;
    RETURN true;
END
$$;
COMMENT ON FUNCTION feature_platform.claim_runner(text) IS
    'Makes this session the one that runs the policy, unless another of the kind does.';

CREATE OR REPLACE FUNCTION public.add_features_1m_policy(
    start_offset interval DEFAULT '1 hour', end_offset interval DEFAULT '1 minute',
    schedule_interval interval DEFAULT '1 minute', if_not_exists boolean DEFAULT false)
    RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM feature_platform.policy) THEN
        IF if_not_exists THEN
            PERFORM feature_platform.schedule_job();    -- the job may have been deleted
            RETURN;
        END IF;
        RAISE EXCEPTION 'features_1m has a refresh policy already'
            USING HINT = 'alter_features_1m_policy() changes it, remove_features_1m_policy() removes it.';
    END IF;
    PERFORM feature_platform.check_policy(start_offset, end_offset, schedule_interval);
    INSERT INTO feature_platform.policy (start_offset, end_offset, schedule_interval)
    VALUES (add_features_1m_policy.start_offset, add_features_1m_policy.end_offset,
            add_features_1m_policy.schedule_interval);
    PERFORM feature_platform.schedule_job();
END
$$;
COMMENT ON FUNCTION public.add_features_1m_policy(interval, interval, interval, boolean) IS
    'Keeps features_1m refreshed: every schedule_interval, rows as old as end_offset, the last start_offset first.';

CREATE OR REPLACE FUNCTION public.alter_features_1m_policy(
    start_offset interval DEFAULT NULL, end_offset interval DEFAULT NULL, schedule_interval interval DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p feature_platform.policy;
BEGIN
    SELECT * INTO p FROM feature_platform.policy FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'features_1m has no refresh policy' USING HINT = 'add_features_1m_policy() adds one.';
    END IF;
    p.start_offset := coalesce(alter_features_1m_policy.start_offset, p.start_offset);
    p.end_offset := coalesce(alter_features_1m_policy.end_offset, p.end_offset);
    p.schedule_interval := coalesce(alter_features_1m_policy.schedule_interval, p.schedule_interval);
    PERFORM feature_platform.check_policy(p.start_offset, p.end_offset, p.schedule_interval);
    UPDATE feature_platform.policy AS o
    SET start_offset = p.start_offset, end_offset = p.end_offset, schedule_interval = p.schedule_interval,
        changed_at = feature_platform.clock();
    PERFORM feature_platform.schedule_job();
END
$$;
COMMENT ON FUNCTION public.alter_features_1m_policy(interval, interval, interval) IS
    'Changes the refresh policy; NULL leaves a value as it is.';

CREATE OR REPLACE FUNCTION public.remove_features_1m_policy(if_exists boolean DEFAULT false)
    RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM feature_platform.policy) AND NOT if_exists THEN
        RAISE EXCEPTION 'features_1m has no refresh policy' USING HINT = 'add_features_1m_policy() adds one.';
    END IF;
    PERFORM feature_platform.unschedule_job();
    DELETE FROM feature_platform.policy;
END
$$;
COMMENT ON FUNCTION public.remove_features_1m_policy(boolean) IS
    'Removes the refresh policy; features_1m then changes only by refresh_features_1m().';

CREATE OR REPLACE FUNCTION feature_platform.check_policy(start_offset interval, end_offset interval,
                                                         schedule_interval interval)
    RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    IF start_offset IS NULL OR end_offset IS NULL OR schedule_interval IS NULL THEN
        RAISE EXCEPTION 'a refresh policy needs start_offset, end_offset and schedule_interval, none may be NULL'
            USING HINT = 'Rows older than start_offset are repaired too, after the newer ones.';
    ELSIF end_offset < '0' OR end_offset >= start_offset THEN
        RAISE EXCEPTION 'end_offset must be at least 0 and less than start_offset, got end_offset % and start_offset %',
            end_offset, start_offset;
    ELSIF schedule_interval < '1 second' THEN
        RAISE EXCEPTION 'schedule_interval must be at least 1 second, got %', schedule_interval;
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.check_policy(interval, interval, interval) IS
    'Rejects a policy with values out of range.';

CREATE OR REPLACE FUNCTION feature_platform.policy_begin(runner text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    run_id bigint;
BEGIN
    -- There is one run of a kind at a time, so an unfinished run was interrupted. Its work stayed dirty.
    UPDATE feature_platform.policy_run r
    SET finished_at = feature_platform.clock(), error = 'the run was interrupted'
    WHERE r.finished_at IS NULL AND r.runner = policy_begin.runner;
    DELETE FROM feature_platform.policy_run r
    WHERE r.started_at < feature_platform.clock() - (SELECT k.runs FROM feature_platform.retention k);
    INSERT INTO feature_platform.policy_run (runner) VALUES (policy_begin.runner) RETURNING id INTO run_id;
    RETURN run_id;
END
$$;
COMMENT ON FUNCTION feature_platform.policy_begin(text) IS 'Begins a run of the policy; returns its id.';

-- Whether the next run of the policy is due, so that this one ends.
CREATE OR REPLACE FUNCTION feature_platform.run_is_over(run_id bigint) RETURNS boolean
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM feature_platform.policy_run r CROSS JOIN feature_platform.policy p
                   WHERE r.id = run_id AND r.started_at + p.schedule_interval <= feature_platform.clock());
END;
COMMENT ON FUNCTION feature_platform.run_is_over(bigint) IS 'Whether the run after this one is due.';

-- Refresh one slice of a run in the caller's transaction: of the last start_offset where rows are dirty there, else of
-- older rows, so that a bulk import never delays the live minute. Return whether there is more for this run. A run ends
-- when all is done or, at the end of a slice, when the next run is due. `woken`: a commit after the run caused this
-- step.
CREATE OR REPLACE FUNCTION feature_platform.policy_step(run_id bigint, horizon bigint, woken boolean DEFAULT false)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Rows of a slice. A bar that arrives meanwhile waits for the slice, and has to be readable within a second.
    short CONSTANT bigint := 20000;
    p feature_platform.policy;
    live_from timestamptz;
    due timestamptz;
    slice record;
    more boolean;
BEGIN
    SELECT * INTO p FROM feature_platform.policy;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a policy step needs READ COMMITTED, this transaction is %',
            upper(current_setting('transaction_isolation'));
    END IF;
    due := feature_platform.due_until(p.end_offset);
    live_from := least(feature_platform.bucket_from(feature_platform.clock() - p.start_offset), due);
    -- The live window includes all marks up to now; older ranges only the marks from before the run, so that a run
    -- ends.
    SELECT * INTO slice
    FROM feature_platform.refresh_slice(
        live_from, due, feature_platform.dirty_horizon(), slice_rows => short, newest_first => true);
    IF slice.symbols = 0 AND NOT slice.more THEN
        SELECT * INTO slice FROM feature_platform.refresh_slice('-infinity', live_from, horizon, slice_rows => short);
        more := slice.more;
    ELSE
        more := slice.more OR EXISTS (
            SELECT FROM feature_platform.dirty_log l
            WHERE l.id <= horizon AND lower(l.buckets) < live_from
              AND (NOT l.reach_known OR l.buckets && tstzrange(NULL, live_from)));
    END IF;
    UPDATE feature_platform.policy_run r
    SET slices = r.slices + sign(slice.symbols)::integer, rows_written = r.rows_written + slice.rows_written,
        wakes = r.wakes + woken::integer, woken_at = CASE WHEN woken THEN feature_platform.clock() ELSE r.woken_at END
    WHERE r.id = run_id AND slice.symbols > 0;
    RETURN more AND NOT feature_platform.run_is_over(run_id);
END
$$;
COMMENT ON FUNCTION feature_platform.policy_step(bigint, bigint, boolean) IS
    'Refreshes one slice of a run of the policy; returns whether there is more.';

CREATE OR REPLACE FUNCTION feature_platform.policy_end(run_id bigint, error text DEFAULT NULL) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE feature_platform.policy_run r SET finished_at = feature_platform.clock(), error = policy_end.error
        WHERE r.id = run_id;
END;
COMMENT ON FUNCTION feature_platform.policy_end(bigint, text) IS
    'Ends a run of the policy, with the error that ended it if one did.';
