-- The roles, one for each kind of service, so that each connects with no more rights than it needs. Roles belong to the
-- server: the databases on it share them. 085_rights.sql grants the rights of each role, database by database.
--
-- A user without the right to create roles can still set up the database, and then owns it. An administrator can run
-- this file at any time; the next set-up grants the missing rights.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY '{owner,recorder,refresher,orchestrator,reader}'::text[] LOOP
        role := 'feature_platform_' || role;
        BEGIN
            -- A role without a password cannot log in. TimescaleDB runs its jobs only as roles with LOGIN.
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I %s', role, CASE WHEN role = 'feature_platform_owner' THEN 'LOGIN'
                               ELSE 'NOLOGIN' END);
            END IF;
            CONTINUE WHEN role <> 'feature_platform_reader';
            -- Readers leave connections for the other roles: the server's usual limit is 100. An administrator may
            -- set another limit. A reader of an older version has none.
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = role AND rolconnlimit = -1) THEN
                ALTER ROLE feature_platform_reader CONNECTION LIMIT 40;
            END IF;
            -- No session of a reader stays in a transaction for long, because the refresh reads past the dead rows
            -- that a transaction keeps. An administrator may set other times, or 0 for no limit.
            IF NOT EXISTS (SELECT FROM pg_roles, unnest(rolconfig) AS setting
                           WHERE rolname = role AND setting LIKE 'idle_in_transaction_session_timeout=%') THEN
                ALTER ROLE feature_platform_reader SET idle_in_transaction_session_timeout = '10min';
                IF current_setting('server_version_num')::integer >= 170000 THEN
                    ALTER ROLE feature_platform_reader SET transaction_timeout = '1h';
                END IF;
            END IF;
        EXCEPTION
            -- The right is missing, or the set-up of another database has just created or changed the role
            -- ("tuple concurrently updated" is an internal error).
            WHEN insufficient_privilege OR duplicate_object OR unique_violation OR internal_error THEN
                NULL;
        END;
    END LOOP;
END
$$;
