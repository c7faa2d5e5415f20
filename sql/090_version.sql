-- Last: what a first set-up adds and a user may change or remove afterwards, and the record of this version.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM feature_platform.schema_version) THEN
        PERFORM public.add_features_1m_policy(if_not_exists => true);
    END IF;
END
$$;

INSERT INTO feature_platform.schema_version (version) VALUES (1) ON CONFLICT DO NOTHING;
