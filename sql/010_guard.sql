-- Reject a database that this version must not touch; nothing has been changed yet when one of these is raised.
DO $$
DECLARE
    this_version CONSTANT integer := 3;     -- keep equal to 090_version.sql
    found_version integer;
    foreign_table text;
BEGIN
    IF current_setting('server_version_num')::integer < 150000 THEN
        RAISE EXCEPTION 'feature_platform needs PostgreSQL 15 or newer, this server is %', current_setting('server_version')
            USING HINT = 'Nothing was changed.';
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'feature_platform needs a database in UTF8, this one is in %', current_setting('server_encoding')
            USING HINT = 'Nothing was changed. CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
    IF to_regclass('feature_platform.schema_version') IS NOT NULL THEN
        SELECT max(version) INTO found_version FROM feature_platform.schema_version;
        IF found_version > this_version THEN
            RAISE EXCEPTION 'this database has schema version % of feature_platform, the code knows only up to %',
                found_version, this_version
                USING HINT = 'Nothing was changed. Install a newer feature_platform.';
        END IF;
        RETURN;
    END IF;
    FOREACH foreign_table IN ARRAY ARRAY['public.ohlcv_1m', 'public.features_1m', 'public.ohlcv_1m_gaps'] LOOP
        IF to_regclass(foreign_table) IS NOT NULL THEN
            RAISE EXCEPTION '% exists here and was not made by feature_platform', foreign_table
                USING HINT = 'Nothing was changed. Use another database, or move that table into another schema and copy its bars afterwards (docs/timescaledb.md)';
        END IF;
    END LOOP;
END
$$;

-- All that is made from here on belongs to one role: to that which has the schema already; on a new database to
-- feature_platform_owner, where the user may act for it, else to the user.
DO $$
DECLARE
    has_it CONSTANT text := (SELECT rolname FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner WHERE nspname = 'feature_platform');
    owner CONSTANT text := coalesce(has_it, (SELECT rolname FROM pg_roles WHERE rolname = 'feature_platform_owner'));
    -- Where TimescaleDB's functions are.
    extension CONSTANT regnamespace := (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'timescaledb');
    may_act_for CONSTANT text := CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END;
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
        CREATE SCHEMA feature_platform;     -- waits for the end of another first set-up
    END IF;
EXCEPTION
    WHEN unique_violation OR duplicate_schema OR internal_error THEN
        -- Two first set-ups at once: both grant, or both create. PostgreSQL's own code for the former is internal_error.
        IF SQLSTATE = 'XX000' AND SQLERRM NOT LIKE 'tuple concurrently %' THEN
            RAISE;
        END IF;
        RAISE EXCEPTION 'another set-up of this database has just ended'
            USING ERRCODE = 'lock_not_available', HINT = 'Nothing was changed. Set up again.';
END
$$;

-- All locks that the set-up needs, before it changes anything, so that it never holds some while it waits for others for long:
-- an idle transaction of a reader keeps no writer waiting longer than these two seconds. Set-ups that run at once wait for each
-- other here, too.
--
-- The first lock may take 1.2 s, which is also long enough for PostgreSQL to cancel an autovacuum. All others together may take
-- 0.8 s: less than the server's deadlock_timeout, so a cycle of waiting sessions ends here before it makes a writer fail. A set-up
-- that failed begins with the table that it waited for (the setting feature_platform.lock_first).
DO $$
DECLARE
    this_version CONSTANT integer := 3;     -- keep equal to 090_version.sql
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
    is_upgrade := (SELECT max(v.version) FROM feature_platform.schema_version v) IS DISTINCT FROM this_version;
    FOR tab IN
        SELECT c.oid, c.relname::text AS name, c.oid::regclass::text AS qualified, c.relkind,
               CASE WHEN c.relname IN ('ohlcv_1m', 'features_1m') AND NOT is_upgrade THEN 'SHARE ROW EXCLUSIVE' ELSE 'ACCESS EXCLUSIVE' END AS mode
        FROM pg_class c
        WHERE (c.relnamespace = 'feature_platform'::regnamespace AND c.relkind IN ('r', 'v'))
           OR c.oid IN (to_regclass('public.ohlcv_1m'), to_regclass('public.features_1m'), to_regclass('public.ohlcv_1m_gaps'))
        ORDER BY c.relname <> first, c.relname <> 'ohlcv_1m', c.relname
    LOOP
        PERFORM set_config('lock_timeout', left_ms || 'ms', true);
        IF tab.relkind = 'v' THEN       -- LOCK TABLE would lock all tables behind the view as well
            EXECUTE format('ALTER VIEW %s OWNER TO %s', tab.qualified, owner);
        ELSE
            EXECUTE format('LOCK TABLE %s IN %s MODE', tab.qualified, tab.mode);
        END IF;
        began := coalesce(began, clock_timestamp());
        left_ms := greatest(1, 800 - extract(epoch FROM clock_timestamp() - began) * 1000)::integer;
    END LOOP;
    PERFORM set_config('lock_timeout', '2s', true);
    IF (SELECT max(v.version) FROM feature_platform.schema_version v) > this_version THEN
        RAISE EXCEPTION 'this database has just been set up by a newer feature_platform'
            USING HINT = 'Nothing was changed. Install a newer feature_platform.';
    END IF;
EXCEPTION
    WHEN lock_not_available THEN
        RAISE EXCEPTION '% is in use by %', tab.qualified, coalesce(
                (SELECT string_agg(DISTINCT format('session %s%s', l.pid, ' of ' || a.usename), ', ')
                 FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                 WHERE l.relation = tab.oid AND l.granted AND l.pid <> pg_backend_pid()
                   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())), 'another session')
            USING ERRCODE = 'lock_not_available', TABLE = tab.name,
                  HINT = 'Nothing was changed. Set up again when the transactions of these sessions have ended.';
END
$$;

CREATE TABLE IF NOT EXISTS feature_platform.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Rows that sessions lock where only one of them may go on. Readers cannot: a row lock needs a right to write.
CREATE TABLE IF NOT EXISTS feature_platform.mutex (
    name text CONSTRAINT mutex_pkey PRIMARY KEY
);
COMMENT ON TABLE feature_platform.mutex IS 'Rows to lock where one session at a time may go on.';
INSERT INTO feature_platform.mutex (name) VALUES ('gaps') ON CONFLICT DO NOTHING;

COMMENT ON TABLE feature_platform.schema_version IS 'Which versions of the schema were set up here, and when.';

-- What a clock that runs at another speed tells when the wall clock tells `moment`. `setting` is START@SINCExSPEED, as in
-- 2026-03-01T00:00Z@2026-11-25T13:30Zx60: the one told START when the wall clock told SINCE, and runs so many times as fast.
CREATE OR REPLACE FUNCTION feature_platform.simulated_clock(setting text, moment timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts CONSTANT text[] := regexp_match(setting,
        '^\s*([0-9]{4}-[^@]*(?:Z|[+-][0-9]{2}:[0-9]{2}))\s*@\s*([0-9]{4}-[^@]*(?:Z|[+-][0-9]{2}:[0-9]{2}))\s*x\s*([0-9]+(?:\.[0-9]+)?)\s*$');
BEGIN
    IF parts IS NULL OR parts[3]::double precision NOT BETWEEN 0.001 AND 10000 THEN
        RAISE EXCEPTION 'feature_platform.clock is set to %, which is no clock', quote_literal(setting)
            USING HINT = 'RESET it for the wall clock, or write START@SINCExSPEED, as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60.';
    END IF;
    -- Not interval * speed: that makes days of it, which are not all 24 hours long.
    RETURN parts[1]::timestamptz + make_interval(secs => extract(epoch FROM moment - parts[2]::timestamptz)::double precision * parts[3]::double precision);
END
$$;
COMMENT ON FUNCTION feature_platform.simulated_clock(text, timestamptz) IS 'What a clock of another speed tells at a moment of the wall clock''s.';

-- The time of a session whose setting feature_platform.clock is set. Only a database that was set up as simulated follows it: the
-- engine's functions run with their owner's rights, and must not believe their callers' clocks. Rejected rather than ignored: a
-- process with a clock of its own would go on by another time than its database.
CREATE OR REPLACE FUNCTION feature_platform.session_clock(moment timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (SELECT o.simulated FROM feature_platform.database_origin o) IS NOT TRUE THEN
        RAISE EXCEPTION 'feature_platform.clock is set, and this database was not set up as a simulated one'
            USING HINT = 'RESET feature_platform.clock, or unset FEATURE_PLATFORM_CLOCK of the process.';
    END IF;
    RETURN feature_platform.simulated_clock(current_setting('feature_platform.clock'), moment);
END
$$;
COMMENT ON FUNCTION feature_platform.session_clock(timestamptz) IS 'The time of a session that has a clock of its own, in a simulated database.';

-- The platform's time when the wall clock tells `moment`: the same, unless this is a simulated database and the session has a
-- clock of another speed in its setting feature_platform.clock, as the platform's processes have where FEATURE_PLATFORM_CLOCK is set.
CREATE OR REPLACE FUNCTION feature_platform.clock_at(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN current_setting('feature_platform.clock', true) <> ''
                THEN feature_platform.session_clock(moment) ELSE moment END;
COMMENT ON FUNCTION feature_platform.clock_at(timestamptz) IS 'The platform''s time at a moment of the wall clock''s.';

-- The one clock of the platform: whether a minute is closed or a row due is decided by this, nowhere else. It is inlined, and reads
-- a table only in sessions that have a clock.
CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN CASE WHEN current_setting('feature_platform.clock', true) <> ''
                THEN feature_platform.session_clock(clock_timestamp())
                ELSE clock_timestamp() END;
COMMENT ON FUNCTION feature_platform.clock() IS 'Now, as everything in the platform sees it.';

-- The minute a moment lies in. Immutable and written out, so that an index can use it.
CREATE OR REPLACE FUNCTION feature_platform.bucket_of(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN date_bin('1 minute', moment, '1970-01-01 00:00:00+00');
COMMENT ON FUNCTION feature_platform.bucket_of(timestamptz) IS 'The UTC start of the minute that a moment lies in.';
