-- Refuse a database that this version must not touch; nothing has been changed yet when one of these is raised.
-- Set-ups that run at once wait for each other here, until the end of the transaction.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(hashtextextended('feature_platform.schema', 0)); END $$;

DO $$
DECLARE
    this_version CONSTANT integer := 1;     -- keep equal to 090_version.sql
    found_version integer;
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
    ELSIF to_regclass('public.ohlcv_1m') IS NOT NULL OR to_regclass('public.features_1m') IS NOT NULL THEN
        RAISE EXCEPTION 'public.% exists here and was not made by feature_platform',
            CASE WHEN to_regclass('public.ohlcv_1m') IS NOT NULL THEN 'ohlcv_1m' ELSE 'features_1m' END
            USING HINT = 'Nothing was changed. Use another database, or rename that table and copy its bars in afterwards.';
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS feature_platform;

CREATE TABLE IF NOT EXISTS feature_platform.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE feature_platform.schema_version IS 'Which versions of the schema were set up here, and when.';

-- The one clock of the platform: whether a minute is closed or a row due is decided by this, nowhere else.
CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN clock_timestamp();
COMMENT ON FUNCTION feature_platform.clock() IS 'Now, as everything in the platform sees it.';

-- The minute a moment lies in. Immutable and written out, so that an index can use it.
CREATE OR REPLACE FUNCTION feature_platform.bucket_of(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN date_bin('1 minute', moment, '1970-01-01 00:00:00+00');
COMMENT ON FUNCTION feature_platform.bucket_of(timestamptz) IS 'The UTC start of the minute that a moment lies in.';
