-- To version 2: databases of version 1. Each statement does nothing where there is nothing to do.

-- Version 1 had no recorder and counted no wake-ups. ALTER TABLE waits for all readers of a table also where the
-- column exists, and a writer may wait for it in a circle.
DO $$
DECLARE
    new record;
BEGIN
    FOR new IN
        SELECT c.tab, c.col, c.definition FROM (VALUES
            ('public.ohlcv_1m_gaps', 'feed', 'text'),
            ('feature_platform.policy_run', 'wakes', 'integer NOT NULL DEFAULT 0'),
            ('feature_platform.policy_run', 'woken_at', 'timestamptz')
        ) AS c (tab, col, definition)
        WHERE to_regclass(c.tab) IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = to_regclass(c.tab) AND a.attname = c.col AND NOT a.attisdropped)
    LOOP
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', new.tab, new.col, new.definition);
    END LOOP;
END
$$;

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
