-- The parts for TimescaleDB: hypertables (any edition), columnstore and a database job (Community). The extension is
-- detected, never required, and never created here.

-- A symbol with a bar in the minute before usually also has one in this minute.
CREATE OR REPLACE FUNCTION feature_platform.newest_minute_is_awaited() RETURNS boolean
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    newest CONSTANT timestamptz := feature_platform.due_until(
        (SELECT end_offset FROM feature_platform.policy)) - interval '1 minute';
BEGIN
    RETURN EXISTS (
        SELECT FROM public.features_1m before
        WHERE before.bucket = newest - interval '1 minute'
          AND NOT EXISTS (SELECT FROM public.features_1m f WHERE f.symbol = before.symbol AND f.bucket = newest));
END
$$;
COMMENT ON FUNCTION feature_platform.newest_minute_is_awaited() IS
    'Whether a symbol that has a row of the minute before has none of the newest minute that is due.';

-- The procedure of the database job, called once a schedule_interval. Each slice is its own transaction.
CREATE OR REPLACE PROCEDURE feature_platform.run_policy(job_id integer DEFAULT NULL, config jsonb DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
DECLARE
    run_id bigint;
    horizon bigint := feature_platform.dirty_horizon();
    more boolean := true;
    problem text;
    began CONSTANT timestamptz := clock_timestamp();
    -- The wait lets the row of the newest minute appear in this run instead of the next. The bars of a minute are
    -- committed in the first seconds after it; 20 s cover a slow exchange. Half of a short schedule remains for the
    -- next run.
    wait_until CONSTANT timestamptz := began + least(interval '20 seconds',
        (SELECT make_interval(secs => extract(epoch FROM schedule_interval) / 2) FROM feature_platform.policy));
BEGIN
    IF NOT feature_platform.claim_runner('job') THEN
        RAISE NOTICE 'the refresh policy is being run by another session';
        RETURN;
    END IF;
    run_id := feature_platform.policy_begin('job');
    COMMIT;
    WHILE more OR problem IS NULL AND clock_timestamp() < wait_until
        AND feature_platform.newest_minute_is_awaited() LOOP
        IF NOT more THEN
            COMMIT;     -- so that the sleep holds no snapshot
            -- Each pause is longer than the one before: where a symbol stays quiet, the 25 queries cost less than 1 %
            -- of a core with 1,000 symbols.
            PERFORM pg_sleep(least(1, greatest(0.1, extract(epoch FROM clock_timestamp() - began) / 5)));
            horizon := feature_platform.dirty_horizon();
        END IF;
        BEGIN
            more := feature_platform.policy_step(run_id, horizon);
        EXCEPTION WHEN OTHERS THEN
            problem := SQLERRM;
            more := false;
        END;
        COMMIT;
        IF problem IS NULL THEN     -- a transaction of its own: the rows of features_1m are readable before
            PERFORM feature_platform.note_known();
            COMMIT;
            BEGIN
                more := feature_platform.view_step(run_id) OR more;
            EXCEPTION WHEN OTHERS THEN
                problem := SQLERRM;
                more := false;
            END;
            COMMIT;
            PERFORM feature_platform.note_known();
            COMMIT;
        END IF;
    END LOOP;
    PERFORM feature_platform.policy_end(run_id, problem);
    UPDATE feature_platform.runner SET pid = NULL WHERE runner = 'job';    -- the session may be a user's, and continue
    COMMIT;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'the refresh policy failed: %', problem;   -- so that TimescaleDB also counts the job as failed
    END IF;
END
$$;
COMMENT ON PROCEDURE feature_platform.run_policy(integer, jsonb) IS 'One run of the refresh policy, as a database job.';

-- The job is found by its procedure, not by the policy's job_id, which delete_job() or a restored dump may have made
-- stale.
CREATE OR REPLACE FUNCTION feature_platform.schedule_job() RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    p feature_platform.policy;
    job record;
    -- Just after the start of a minute, when the rows of the minute before become due. At second 0, an early timer
    -- would start in the minute before. The database's jobs run by the wall clock, also where the platform's clock is
    -- simulated.
    start CONSTANT timestamptz := feature_platform.bucket_of(clock_timestamp()) + interval '0.1 seconds';
BEGIN
    IF feature_platform.timescaledb() <> 'community' THEN
        UPDATE feature_platform.policy SET job_id = NULL WHERE policy.job_id IS NOT NULL;
        RETURN;
    END IF;
    SELECT * INTO p FROM feature_platform.policy;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT j.* INTO job FROM timescaledb_information.jobs j
    WHERE j.proc_schema = 'feature_platform' AND j.proc_name = 'run_policy' AND pg_has_role(j.owner, 'USAGE')
    ORDER BY j.job_id LIMIT 1;
    IF NOT FOUND THEN
        EXECUTE format('SELECT %s.add_job(''feature_platform.run_policy'', $1, initial_start => $2,
                                          fixed_schedule => true,
                                          job_name => ''feature_platform: refresh policy of features_1m'')',
                       feature_platform.timescaledb_schema())
        INTO job USING p.schedule_interval, start;
        UPDATE feature_platform.policy SET job_id = job.add_job;
        RETURN;
    END IF;
    IF (job.schedule_interval, job.fixed_schedule, job.initial_start - feature_platform.bucket_of(job.initial_start))
       IS DISTINCT FROM (p.schedule_interval, true, interval '0.1 seconds') THEN
        EXECUTE format('SELECT %s.alter_job($1, schedule_interval => $2, initial_start => $3, next_start => $3,
                                            fixed_schedule => true,
                                            job_name => ''feature_platform: refresh policy of features_1m'')',
                       feature_platform.timescaledb_schema())
        USING job.job_id, p.schedule_interval, start;
    END IF;
    UPDATE feature_platform.policy SET job_id = job.job_id WHERE policy.job_id IS DISTINCT FROM job.job_id;
END
$$;
COMMENT ON FUNCTION feature_platform.schedule_job() IS
    'Adds the database job of the policy where it is missing, and updates its schedule.';

CREATE OR REPLACE FUNCTION feature_platform.unschedule_job() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF feature_platform.timescaledb() = 'community' THEN
        EXECUTE format('SELECT %s.delete_job(job_id) FROM timescaledb_information.jobs
                        WHERE proc_schema = ''feature_platform'' AND proc_name = ''run_policy''
                            AND pg_has_role(owner, ''USAGE'')',
                       feature_platform.timescaledb_schema());
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.unschedule_job() IS 'Removes the database job of the policy, where there is one.';

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
COMMENT ON FUNCTION feature_platform.next_job_start(integer) IS
    'The next start of the database job of the policy; NULL without a job.';

CREATE OR REPLACE FUNCTION feature_platform.job_problem(job_id integer) RETURNS text
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    is_scheduled boolean;
BEGIN
    IF job_id IS NULL THEN
        RETURN NULL;
    ELSIF feature_platform.timescaledb() <> 'community' THEN
        RETURN format('database job %s cannot run without TimescaleDB Community: run `feature-platform db apply`,'
                      ' then the worker runs the policy', job_id);
    END IF;
    EXECUTE 'SELECT scheduled FROM timescaledb_information.jobs
             WHERE job_id = $1 AND proc_schema = ''feature_platform''
                 AND proc_name = ''run_policy''' INTO is_scheduled USING job_id;
    RETURN CASE WHEN is_scheduled IS NULL
                THEN format('database job %s does not exist any more: SELECT alter_features_1m_policy() adds it again',
                            job_id)
                WHEN NOT is_scheduled
                THEN format('database job %s is paused: SELECT %s.alter_job(%1$s, scheduled => true) resumes it',
                            job_id,
                            feature_platform.timescaledb_schema()) END;
END
$$;
COMMENT ON FUNCTION feature_platform.job_problem(integer) IS
    'Why the database job of the policy cannot run, and the remedy; NULL where it can.';

-- TimescaleDB rejects transition tables of DELETE on a columnstore, and supports row triggers there: one mark a bar.
CREATE OR REPLACE FUNCTION feature_platform.mark_dirty_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO feature_platform.bar_history (symbol, ts, open, high, low, close, vol, source, inserted_at, mark, gone)
    SELECT OLD.symbol, OLD.ts, OLD.open, OLD.high, OLD.low, OLD.close, OLD.vol, OLD.source, OLD.inserted_at, m.mark,
           true
    FROM feature_platform.mark_minutes(ARRAY[OLD.symbol], ARRAY[OLD.ts], ARRAY[OLD.ts], ARRAY[true], true) AS m
    WHERE OLD.ts >= feature_platform.history_from();
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION feature_platform.mark_dirty_row() FROM PUBLIC;
COMMENT ON FUNCTION feature_platform.mark_dirty_row() IS
    'Row trigger of ohlcv_1m on TimescaleDB Community: marks the minute of a deleted bar, and keeps its version.';

-- Make the tables of a view's version hypertables, where there is TimescaleDB, as features_1m is one.
CREATE OR REPLACE FUNCTION feature_platform.make_view_hypertables(of_view integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    edition CONSTANT text := feature_platform.timescaledb();
    made record;
BEGIN
    IF edition = 'none' THEN
        RETURN;
    END IF;
    FOR made IN SELECT c.oid::regclass::text AS name FROM pg_class c
                WHERE c.relnamespace = 'feature_views'::regnamespace
                  AND c.relname IN ('v' || of_view || '_rows', 'v' || of_view || '_inner') LOOP
        EXECUTE format('SELECT %1$s.create_hypertable(%2$L::regclass, %1$s.by_range(''bucket'', interval ''7 days''),
                                                      create_default_indexes => false)',
                       feature_platform.timescaledb_schema(), made.name);
        IF edition = 'community' THEN
            EXECUTE format('ALTER TABLE %s SET (timescaledb.enable_columnstore, timescaledb.segmentby = ''symbol'',
                                                timescaledb.orderby = ''bucket'')', made.name);
            EXECUTE format('CALL %s.add_columnstore_policy(%L, after => interval ''14 days'')',
                           feature_platform.timescaledb_schema(), made.name);
        END IF;
    END LOOP;
    FOR made IN SELECT p.oid::regprocedure::text AS name FROM pg_proc p
                WHERE p.pronamespace = 'feature_views'::regnamespace
                  AND p.proname IN ('v' || of_view || '_range', 'v' || of_view || '_step') LOOP
        EXECUTE format('ALTER FUNCTION %s SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0', made.name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.make_view_hypertables(integer) IS
    'Makes the tables of a view''s version hypertables, where there is TimescaleDB.';

DO $$
DECLARE
    edition CONSTANT text := feature_platform.timescaledb();
    tab record;
BEGIN
    IF edition = 'community' THEN
        CREATE OR REPLACE TRIGGER ohlcv_1m_deleted AFTER DELETE ON public.ohlcv_1m
            FOR EACH ROW EXECUTE FUNCTION feature_platform.mark_dirty_row();
    ELSIF edition = 'none' THEN
        RETURN;
    END IF;
    -- Slices bound the work already. Without the extension, only a superuser may set an unknown parameter.
    ALTER FUNCTION feature_platform.refresh_symbols(text[], tstzrange, bigint)
        SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
    ALTER FUNCTION feature_platform.delete_rows_without_bars(regclass, regclass, text, tstzrange, interval, bigint)
        SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
    ALTER FUNCTION feature_platform.delete_old_view_rows(timestamptz, bigint)
        SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
    ALTER FUNCTION feature_platform.retention_step(bigint)
        SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
    FOR tab IN SELECT t.*, h.compression_enabled
               FROM (VALUES ('ohlcv_1m', 'ts'), ('features_1m', 'bucket')) AS t (name, time_column)
               LEFT JOIN timescaledb_information.hypertables h ON h.hypertable_schema = 'public'
                   AND h.hypertable_name = t.name
    LOOP
        IF tab.compression_enabled IS NULL THEN
            -- create_hypertable() truncates the table after it has moved the bars into chunks: no bar is lost, so no
            -- mark is due.
            DROP TRIGGER ohlcv_1m_truncated ON public.ohlcv_1m;
            EXECUTE format('SELECT %1$s.create_hypertable(%2$L::regclass, %1$s.by_range(%3$L, interval ''7 days''),
                                                          create_default_indexes => false, migrate_data => true)',
                           feature_platform.timescaledb_schema(), 'public.' || tab.name, tab.time_column);
            CREATE TRIGGER ohlcv_1m_truncated AFTER TRUNCATE ON public.ohlcv_1m
                FOR EACH STATEMENT EXECUTE FUNCTION feature_platform.mark_dirty_truncate();
        END IF;
        -- This includes hypertables of the Apache edition. A columnstore whose policy was removed stays as it is.
        IF edition = 'community' AND tab.compression_enabled IS NOT TRUE THEN
            EXECUTE format('ALTER TABLE public.%I SET (timescaledb.enable_columnstore, timescaledb.segmentby = %L,'
                           ' timescaledb.orderby = %L)',
                           tab.name, 'symbol', tab.time_column);
            EXECUTE format('CALL %s.add_columnstore_policy(%L, after => interval %L)',
                           feature_platform.timescaledb_schema(),
                           'public.' || tab.name, '14 days');
        END IF;
    END LOOP;
END
$$;

-- The policy may be older than the extension, and the job may be missing, have an old schedule, or be of another
-- edition.
DO $$ BEGIN PERFORM feature_platform.schedule_job(); END $$;
