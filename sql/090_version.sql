-- Last: what a first set-up adds and a user may change or remove afterwards, and the record of this version.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM feature_platform.schema_version) THEN
        PERFORM public.add_features_1m_policy(if_not_exists => true);
    END IF;
END
$$;

-- Databases from before every stored moment was the platform's own time.
DO $$
DECLARE
    old record;
BEGIN
    FOR old IN
        SELECT a.attrelid::regclass AS tab, a.attname AS col
        FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
        WHERE d.adrelid IN ('public.ohlcv_1m'::regclass, 'public.ohlcv_1m_gaps'::regclass, 'feature_platform.dirty_log'::regclass,
                            'feature_platform.policy'::regclass, 'feature_platform.policy_run'::regclass)
          AND pg_get_expr(d.adbin, d.adrelid) = 'clock_timestamp()'
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT feature_platform.clock()', old.tab, old.col);
    END LOOP;
END
$$;

INSERT INTO feature_platform.schema_version (version) VALUES (3) ON CONFLICT DO NOTHING;
