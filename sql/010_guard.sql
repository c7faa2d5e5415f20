-- Reject databases that this version must not change. The set-up has changed nothing before this point.
DO $$
DECLARE
    this_version CONSTANT integer := current_setting('feature_platform.schema_number');
    known CONSTANT text[] := regexp_split_to_array(btrim(current_setting('feature_platform.schema_hashes'), E' \n'),
                                                   '\s+');
    found_version integer;
    found_hash text;
    foreign_table text;
BEGIN
    IF current_setting('server_version_num')::integer < 150000 THEN
        RAISE EXCEPTION 'feature_platform needs PostgreSQL 15 or newer, this server is %',
            current_setting('server_version')
            USING HINT = 'The database was not changed.';
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'feature_platform needs a database in UTF8, this one is in %',
            current_setting('server_encoding')
            USING HINT = 'The database was not changed. CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
    IF to_regclass('feature_platform.schema_version') IS NOT NULL THEN
        -- By to_jsonb, because the table of an older database has no column `hash`.
        SELECT v.version, to_jsonb(v) ->> 'hash' INTO found_version, found_hash
        FROM feature_platform.schema_version v ORDER BY v.version DESC LIMIT 1;
        IF found_version > this_version THEN
            RAISE EXCEPTION 'this database has schema version % of feature_platform, the code knows only up to %',
                found_version, this_version
                USING HINT = 'The database was not changed. Install a newer feature_platform.';
        ELSIF found_version = this_version AND found_hash <> ALL (known) THEN
            RAISE EXCEPTION 'this database has files of schema version % that the code does not know (hash %)',
                found_version, left(found_hash, 12)
                USING HINT = 'The database was not changed. Install a newer feature_platform.';
        END IF;
        RETURN;
    END IF;
    FOREACH foreign_table IN ARRAY ARRAY['public.ohlcv_1m', 'public.features_1m', 'public.ohlcv_1m_gaps'] LOOP
        IF to_regclass(foreign_table) IS NOT NULL THEN
            RAISE EXCEPTION '% exists here and was not made by feature_platform', foreign_table
                USING HINT = 'The database was not changed. Use another database, or move that table into another'
                    ' schema and copy its bars afterwards (docs/timescaledb.md)';
        END IF;
    END LOOP;
END
$$;

-- One role owns all objects that are made from here on: the owner of the schema, where it exists; in a new database
-- feature_platform_owner, where the user may act for it, else the user.
DO $$
DECLARE
    has_it CONSTANT text := (SELECT rolname FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner
                             WHERE nspname = 'feature_platform');
    owner CONSTANT text := coalesce(has_it, (SELECT rolname FROM pg_roles WHERE rolname = 'feature_platform_owner'));
    -- The schema of TimescaleDB's functions.
    extension CONSTANT regnamespace := (SELECT extnamespace::regnamespace FROM pg_extension
                                        WHERE extname = 'timescaledb');
    may_act_for CONSTANT text := CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER'
        ELSE 'SET' END;
BEGIN
    BEGIN
        IF NOT pg_has_role(owner, may_act_for) THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', owner);
        END IF;
        -- A copy or a restored dump of a database does not have the rights to the database itself.
        IF NOT has_database_privilege(owner, current_database(), 'CREATE') THEN
            EXECUTE format('GRANT CREATE ON DATABASE %I TO %I', current_database(), owner);
        END IF;
        IF NOT has_schema_privilege(owner, 'public', 'CREATE') THEN
            EXECUTE format('GRANT USAGE, CREATE ON SCHEMA public TO %I', owner);
        END IF;
        IF NOT has_schema_privilege(owner, extension, 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', extension, owner);
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            NULL;
    END;
    IF pg_has_role(owner, may_act_for) AND has_schema_privilege(owner, 'public', 'CREATE')
       AND (has_it IS NOT NULL OR has_database_privilege(owner, current_database(), 'CREATE')) THEN
        PERFORM set_config('role', owner, true);
    END IF;
    IF has_it IS NULL THEN
        CREATE SCHEMA feature_platform;     -- waits until a concurrent first set-up has ended
    END IF;
EXCEPTION
    WHEN unique_violation OR duplicate_schema OR internal_error THEN
        -- Two concurrent first set-ups both grant or both create. PostgreSQL reports concurrent grants as
        -- internal_error.
        IF SQLSTATE = 'XX000' AND SQLERRM NOT LIKE 'tuple concurrently %' THEN
            RAISE;
        END IF;
        RAISE EXCEPTION 'another set-up of this database has just ended'
            USING ERRCODE = 'lock_not_available', HINT = 'The database was not changed. Set up again.';
END
$$;

-- Take all locks of the set-up before it changes anything, within 2 s, so that it never holds some of them for long
-- while it waits for others: an idle transaction of a reader delays writers by at most 2 s. Concurrent set-ups also
-- wait for each other here.
--
-- The first lock may take 1.2 s, which is long enough for PostgreSQL to cancel an autovacuum. All other locks together
-- may take 0.8 s. That is less than the server's deadlock_timeout, so a cycle of waiting sessions ends here before it
-- makes a writer fail. The tables that transactions of the platform use first are locked first, so that a transaction
-- that has begun can end. A retry begins with a large table if the last attempt waited for it (the setting
-- feature_platform.lock_first).
DO $$
DECLARE
    this_version CONSTANT integer := current_setting('feature_platform.schema_number');
    known CONSTANT text[] := regexp_split_to_array(btrim(current_setting('feature_platform.schema_hashes'), E' \n'),
                                                   '\s+');
    found record;
    first CONSTANT text := coalesce(nullif(current_setting('feature_platform.lock_first', true), ''), 'ohlcv_1m');
    owner CONSTANT text := (SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'feature_platform');
    began timestamptz;
    is_upgrade boolean;
    left_ms integer := 1200;
    tab record;
BEGIN
    IF to_regclass('feature_platform.schema_version') IS NULL THEN
        RETURN;
    END IF;
    SELECT v.version, to_jsonb(v) ->> 'hash' AS hash INTO found
    FROM feature_platform.schema_version v ORDER BY v.version DESC LIMIT 1;
    is_upgrade := (found.version, found.hash) IS DISTINCT FROM (this_version, known[cardinality(known)]);
    FOR tab IN
        SELECT c.oid, c.relname::text AS name, c.oid::regclass::text AS qualified, c.relkind,
               CASE WHEN c.relname IN ('ohlcv_1m', 'features_1m') AND NOT is_upgrade THEN 'SHARE ROW EXCLUSIVE'
                   ELSE 'ACCESS EXCLUSIVE' END AS mode
        FROM pg_class c
        WHERE (c.relnamespace = 'feature_platform'::regnamespace AND c.relkind IN ('r', 'v'))
           OR c.oid IN (to_regclass('public.ohlcv_1m'), to_regclass('public.features_1m'),
                        to_regclass('public.ohlcv_1m_gaps'))
        ORDER BY c.relname <> first OR first NOT IN ('features_1m', 'ohlcv_1m_gaps'),
                 array_position(ARRAY['ohlcv_1m', 'retention', 'dirty_log', 'refresh', 'mutex'], c.relname::text),
                 c.relname <> first, c.relname
    LOOP
        PERFORM set_config('lock_timeout', left_ms || 'ms', true);
        IF tab.relkind = 'v' THEN       -- LOCK TABLE would also lock all tables that the view reads
            EXECUTE format('ALTER VIEW %s OWNER TO %s', tab.qualified, owner);
        ELSE
            EXECUTE format('LOCK TABLE %s IN %s MODE', tab.qualified, tab.mode);
        END IF;
        began := coalesce(began, clock_timestamp());
        left_ms := greatest(1, 800 - extract(epoch FROM clock_timestamp() - began) * 1000)::integer;
    END LOOP;
    PERFORM set_config('lock_timeout', '2s', true);
    SELECT v.version, to_jsonb(v) ->> 'hash' AS hash INTO found
    FROM feature_platform.schema_version v ORDER BY v.version DESC LIMIT 1;
    IF found.version > this_version OR found.version = this_version AND found.hash <> ALL (known) THEN
        RAISE EXCEPTION 'this database has just been set up by a newer feature_platform'
            USING HINT = 'The database was not changed. Install a newer feature_platform.';
    END IF;
EXCEPTION
    WHEN lock_not_available THEN
        RAISE EXCEPTION '% is in use by %', tab.qualified, coalesce(
                (SELECT string_agg(DISTINCT format('session %s%s', l.pid, ' of ' || a.usename), ', ')
                 FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                 WHERE l.relation = tab.oid AND l.granted AND l.pid <> pg_backend_pid()
                   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())),
                       'another session')
            USING ERRCODE = 'lock_not_available', TABLE = tab.name,
                  HINT = 'The database was not changed. Set up again when the transactions of these sessions'
                      ' have ended.';
END
$$;

CREATE TABLE IF NOT EXISTS feature_platform.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    hash       text
);

COMMENT ON TABLE feature_platform.schema_version IS 'The versions of the schema that were set up here, and when.';

-- Rows that serialize sessions. Readers cannot lock them, since a row lock needs a right to write.
CREATE TABLE IF NOT EXISTS feature_platform.mutex (
    name text CONSTRAINT mutex_pkey PRIMARY KEY
);
COMMENT ON TABLE feature_platform.mutex IS
    'Rows that a session locks before work that only one session at a time may do.';
INSERT INTO feature_platform.mutex (name) VALUES ('gaps') ON CONFLICT DO NOTHING;
