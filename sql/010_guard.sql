-- Refuse a database that this version must not touch; nothing has been changed yet when one of these is raised.
-- Set-ups that run at once wait for each other here, until the end of the transaction.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(hashtextextended('feature_platform.schema', 0)); END $$;

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
        CREATE SCHEMA feature_platform;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS feature_platform.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
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
