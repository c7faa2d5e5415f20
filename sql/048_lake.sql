-- The record of changes that the lake needs. The lake is a copy of bars and features as Delta tables.
-- See docs/lake.md.
--
-- A sync first commits `recorded_until`, and then reads rows. A transaction that changes an earlier row and commits
-- after that read has recorded the days of the row here. Changes of later rows are not recorded, so a new minute costs
-- nothing.
CREATE TABLE IF NOT EXISTS feature_platform.lake_table (
    name           text        NOT NULL CONSTRAINT lake_table_pkey PRIMARY KEY,
    location       text        NOT NULL,    -- the lake that has it
    view           integer,                 -- the version of the feature view whose rows it has
    table_id       uuid        NOT NULL DEFAULT gen_random_uuid(),      -- distinguishes it from other databases
    table_version  bigint,                  -- the newest version of it that a sync wrote, NULL before the first
    recorded_until timestamptz NOT NULL DEFAULT '-infinity',    -- changes of rows before it are in lake_change
    mirrored_until timestamptz NOT NULL DEFAULT '-infinity',    -- the lake has the rows before it
    synced_at      timestamptz
);
COMMENT ON TABLE feature_platform.lake_table IS 'The tables of the lake, and until when each has rows.';

CREATE TABLE IF NOT EXISTS feature_platform.lake_change (
    name   text             NOT NULL,
    symbol text COLLATE "C" NOT NULL,
    id     bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
    days   datemultirange   NOT NULL,   -- UTC days of rows that changed after a sync read them
    CONSTRAINT lake_change_pkey PRIMARY KEY (name, symbol, id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE feature_platform.lake_change IS 'Days of each symbol that the next sync of the lake writes again.';

-- The UTC days of some times, before `until`; no bar is older than 1970.
CREATE OR REPLACE FUNCTION feature_platform.days_of(times tstzmultirange, until timestamptz) RETURNS datemultirange
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (SELECT coalesce(range_agg(daterange(
                       (lower(r) AT TIME ZONE 'UTC')::date,
                       ((upper(r) - interval '1 microsecond') AT TIME ZONE 'UTC')::date, '[]')), '{}')
            FROM unnest(times * tstzmultirange(tstzrange('1970-01-01 00:00:00+00', until))) AS r);
COMMENT ON FUNCTION feature_platform.days_of(tstzmultirange, timestamptz) IS
    'The UTC days of some times, before an end.';

-- Days whose rows in the lake may differ from the database: recorded ones, and those of changed bars that no refresh
-- has processed yet.
CREATE OR REPLACE VIEW feature_platform.lake_waiting AS
SELECT c.name, c.symbol, c.days FROM feature_platform.lake_change c
UNION ALL
SELECT t.name, l.symbol, feature_platform.days_of(l.changed, t.mirrored_until)
  FROM feature_platform.lake_table t
  JOIN feature_platform.dirty_log l ON l.changed && tstzrange(NULL, t.mirrored_until)
 WHERE t.name = 'ohlcv_1m';
COMMENT ON VIEW feature_platform.lake_waiting IS 'Days whose rows in the lake may differ from the database.';

-- Record the days of rows that were stored or deleted, in the transaction that did it. The lock separates it from a
-- change of `recorded_until`, as take_marks separates the refresh from changes of the list of views.
CREATE OR REPLACE FUNCTION feature_platform.record_lake_changes(
    of_table text, symbols text[], times tstzmultirange[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    until timestamptz;
BEGIN
    LOCK TABLE feature_platform.view_lock IN ROW SHARE MODE;
    until := (SELECT t.recorded_until FROM feature_platform.lake_table t WHERE t.name = of_table);
    IF until IS NOT NULL THEN
        INSERT INTO feature_platform.lake_change (name, symbol, days)
        SELECT of_table, c.symbol, feature_platform.days_of(c.times, until)
        FROM unnest(symbols, times) AS c (symbol, times)
        WHERE c.times && tstzrange(NULL, until);
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.record_lake_changes(text, text[], tstzmultirange[]) IS
    'Records the days of rows that changed, for the next sync of the lake.';

-- Record all days of a symbol, for all tables of the lake.
CREATE OR REPLACE FUNCTION feature_platform.record_lake_symbol(of_symbol text) RETURNS void
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT count(feature_platform.record_lake_changes(
                t.name, ARRAY[of_symbol], ARRAY[tstzmultirange(tstzrange(NULL, NULL))]))
            FROM feature_platform.lake_table t);
COMMENT ON FUNCTION feature_platform.record_lake_symbol(text) IS
    'Records all days of a symbol, for all tables of the lake.';

-- Have all changes of rows before `until` recorded. Transactions that change rows and have not seen this are over when
-- the lock is granted. A sync calls it in a transaction of its own, and commits before it reads rows.
CREATE OR REPLACE FUNCTION feature_platform.record_lake_until(of_table text, until timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '2s'
AS $$
BEGIN
    LOCK TABLE feature_platform.view_lock IN EXCLUSIVE MODE;
    UPDATE feature_platform.lake_table t SET recorded_until = greatest(t.recorded_until, until)
    WHERE t.name = of_table;
END
$$;
COMMENT ON FUNCTION feature_platform.record_lake_until(text, timestamptz) IS
    'Has all changes of rows before a time recorded for the lake.';
