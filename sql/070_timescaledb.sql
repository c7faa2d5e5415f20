-- All that differs where TimescaleDB is: hypertables (any edition), columnstore and a database job (Community). The
-- extension is detected, never required, and never created here.

CREATE OR REPLACE FUNCTION feature_platform.timescaledb() RETURNS text
    LANGUAGE sql STABLE
    RETURN CASE WHEN NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN 'none'
                WHEN current_setting('timescaledb.license', true) = 'timescale' THEN 'community'
                ELSE 'apache' END;
COMMENT ON FUNCTION feature_platform.timescaledb() IS 'Which TimescaleDB this database has: none, apache or community.';

-- What the database job calls, once a schedule_interval. Each slice is a transaction of its own.
CREATE OR REPLACE PROCEDURE feature_platform.run_policy(job_id integer DEFAULT NULL, config jsonb DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
DECLARE
    run_id bigint;
    horizon bigint := feature_platform.dirty_horizon();
    more boolean := true;
    problem text;
BEGIN
    IF NOT pg_try_advisory_lock(hashtextextended('feature_platform.job', 0)) THEN
        RAISE NOTICE 'the refresh policy is being run by another session';
        RETURN;
    END IF;
    run_id := feature_platform.policy_begin('job');
    COMMIT;
    WHILE more LOOP
        BEGIN
            more := feature_platform.policy_step(run_id, horizon);
        EXCEPTION WHEN OTHERS THEN
            problem := SQLERRM;
            more := false;
        END;
        COMMIT;
    END LOOP;
    PERFORM feature_platform.policy_end(run_id, problem);
    PERFORM pg_advisory_unlock(hashtextextended('feature_platform.job', 0));
    COMMIT;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'the refresh policy failed: %', problem;   -- so that TimescaleDB counts the job as failed, too
    END IF;
END
$$;
COMMENT ON PROCEDURE feature_platform.run_policy(integer, jsonb) IS 'One run of the refresh policy, as a database job.';

CREATE OR REPLACE FUNCTION feature_platform.schedule_job() RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    p feature_platform.policy;
    extension CONSTANT regnamespace := (SELECT extnamespace FROM pg_extension WHERE extname = 'timescaledb');
BEGIN
    IF feature_platform.timescaledb() <> 'community' THEN
        RETURN;
    END IF;
    SELECT * INTO p FROM feature_platform.policy;
    IF p.job_id IS NULL THEN
        -- Five seconds into the minute: what that minute closed is due, and its bars had a moment to arrive. The database's
        -- jobs go by the wall clock, whatever the platform's tells.
        EXECUTE format('UPDATE feature_platform.policy SET job_id = %s.add_job(''feature_platform.run_policy'', schedule_interval,
                            initial_start => feature_platform.bucket_of(clock_timestamp()) + interval ''5 seconds'', fixed_schedule => true)', extension);
    ELSE
        EXECUTE format('SELECT %s.alter_job($1, schedule_interval => $2)', extension) USING p.job_id, p.schedule_interval;
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.schedule_job() IS 'Makes the database job follow the policy, where there are jobs.';

CREATE OR REPLACE FUNCTION feature_platform.unschedule_job() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF feature_platform.timescaledb() = 'community' THEN
        EXECUTE format('SELECT %s.delete_job(job_id) FROM feature_platform.policy WHERE job_id IS NOT NULL',
                       (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'timescaledb'));
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.unschedule_job() IS 'Removes the database job of the policy, where there are jobs.';

CREATE OR REPLACE FUNCTION feature_platform.next_job_start(job_id integer) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    next_start timestamptz;
BEGIN
    IF job_id IS NOT NULL AND feature_platform.timescaledb() = 'community' THEN
        EXECUTE 'SELECT next_start FROM timescaledb_information.jobs WHERE job_id = $1' INTO next_start USING job_id;
    END IF;
    RETURN CASE WHEN isfinite(next_start) THEN feature_platform.clock_at(next_start) END;
END
$$;
COMMENT ON FUNCTION feature_platform.next_job_start(integer) IS 'When the database job of the policy runs next, where there are jobs.';

-- TimescaleDB refuses transition tables of DELETE where there is a columnstore, and runs row triggers there: one mark a bar.
CREATE OR REPLACE FUNCTION feature_platform.mark_dirty_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM feature_platform.mark_minutes(ARRAY[OLD.symbol], ARRAY[OLD.ts], ARRAY[OLD.ts], ARRAY[true]);
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION feature_platform.mark_dirty_row() FROM PUBLIC;
COMMENT ON FUNCTION feature_platform.mark_dirty_row() IS 'Row trigger of ohlcv_1m on TimescaleDB Community: records what a DELETE makes dirty.';

DO $$
DECLARE
    edition CONSTANT text := feature_platform.timescaledb();
    tab record;
BEGIN
    IF edition = 'community' THEN
        CREATE OR REPLACE TRIGGER ohlcv_1m_deleted AFTER DELETE ON public.ohlcv_1m
            FOR EACH ROW EXECUTE FUNCTION feature_platform.mark_dirty_row();
    ELSE
        CREATE OR REPLACE TRIGGER ohlcv_1m_deleted AFTER DELETE ON public.ohlcv_1m
            REFERENCING OLD TABLE AS old_rows
            FOR EACH STATEMENT EXECUTE FUNCTION feature_platform.mark_dirty();
    END IF;
    IF edition = 'none' THEN
        RETURN;
    END IF;
    -- A slice is bounded already. Only here, for elsewhere nobody but a superuser may set what is not known.
    ALTER FUNCTION feature_platform.refresh_symbols(text[], tstzrange, bigint)
        SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
    ALTER FUNCTION feature_platform.retention_step(bigint)
        SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
    FOR tab IN SELECT * FROM (VALUES ('ohlcv_1m', 'ts'), ('features_1m', 'bucket')) AS t (name, time_column)
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM timescaledb_information.hypertables
                              WHERE hypertable_schema = 'public' AND hypertable_name = tab.name);
        -- Bars that are moved into chunks are truncated where they were: nothing is lost, and nothing is to be marked.
        DROP TRIGGER ohlcv_1m_truncated ON public.ohlcv_1m;
        PERFORM create_hypertable(format('public.%I', tab.name)::regclass, by_range(tab.time_column, interval '7 days'),
                                  create_default_indexes => false, migrate_data => true);
        CREATE TRIGGER ohlcv_1m_truncated AFTER TRUNCATE ON public.ohlcv_1m
            FOR EACH STATEMENT EXECUTE FUNCTION feature_platform.mark_dirty_truncate();
        IF edition = 'community' THEN
            EXECUTE format('ALTER TABLE public.%I SET (timescaledb.enable_columnstore, timescaledb.segmentby = %L, timescaledb.orderby = %L)',
                           tab.name, 'symbol', tab.time_column);
            EXECUTE format('CALL add_columnstore_policy(%L, after => interval %L)', 'public.' || tab.name, '14 days');
        END IF;
    END LOOP;
    -- A policy from before there was TimescaleDB here.
    IF edition = 'community' AND EXISTS (SELECT FROM feature_platform.policy WHERE job_id IS NULL) THEN
        PERFORM feature_platform.schedule_job();
    END IF;
END
$$;
