-- The roles, one for each kind of service, so that each connects with no more rights than it needs. Roles belong to the
-- server: the databases on it share them. What each may do is granted, database by database, in 085_rights.sql.
--
-- A user who may not create roles sets the database up all the same, and owns it; an administrator can run this file at any
-- time, and the next set-up grants what is missing.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY '{owner,recorder,refresher,orchestrator,reader}'::text[] LOOP
        role := 'feature_platform_' || role;
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role);
        BEGIN
            -- Nobody enters by a role without a password. TimescaleDB runs its jobs only as roles with LOGIN.
            EXECUTE format('CREATE ROLE %I %s', role, CASE WHEN role = 'feature_platform_owner' THEN 'LOGIN' ELSE 'NOLOGIN' END);
            -- Readers leave connections to the others: 100 is the server's usual limit. An administrator may set another number.
            IF role = 'feature_platform_reader' THEN
                ALTER ROLE feature_platform_reader CONNECTION LIMIT 40;
            END IF;
        EXCEPTION
            WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
                NULL;   -- not ours to create, or created just now by the set-up of another database
        END;
    END LOOP;
END
$$;
