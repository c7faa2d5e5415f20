-- The edition of TimescaleDB, on which triggers, tables and jobs depend.

CREATE OR REPLACE FUNCTION feature_platform.timescaledb() RETURNS text
    LANGUAGE sql STABLE
    RETURN CASE WHEN NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN 'none'
                WHEN current_setting('timescaledb.license', true) = 'timescale' THEN 'community'
                ELSE 'apache' END;
COMMENT ON FUNCTION feature_platform.timescaledb() IS
    'The edition of TimescaleDB in this database: none, apache or community.';

-- The schema of the extension's functions, chosen by CREATE EXTENSION ... SCHEMA; NULL without the extension.
CREATE OR REPLACE FUNCTION feature_platform.timescaledb_schema() RETURNS regnamespace
    LANGUAGE sql STABLE
    RETURN (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'timescaledb');
COMMENT ON FUNCTION feature_platform.timescaledb_schema() IS
    'The schema of TimescaleDB''s functions; NULL without the extension.';
