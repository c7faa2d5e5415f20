-- To version 2: databases of version 1. Each statement does nothing where there is nothing to do.

-- Functions whose parameters have changed since: the old ones would stay beside the new ones.
DROP FUNCTION IF EXISTS feature_platform.gap_failed(text, timestamptz, timestamptz, text, integer);
DROP FUNCTION IF EXISTS feature_platform.policy_step(bigint, bigint);

-- Version 1 stored the wall clock's time, version 2 the platform's own.
DO $$
DECLARE
    old record;
BEGIN
    FOR old IN
        SELECT a.attrelid::regclass AS tab, a.attname AS col
        FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
        WHERE d.adrelid IN (to_regclass('public.ohlcv_1m'), to_regclass('public.ohlcv_1m_gaps'),
                            to_regclass('feature_platform.dirty_log'), to_regclass('feature_platform.policy'),
                            to_regclass('feature_platform.policy_run'))
          AND pg_get_expr(d.adbin, d.adrelid) = 'clock_timestamp()'
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT feature_platform.clock()', old.tab, old.col);
    END LOOP;
END
$$;
