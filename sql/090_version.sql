-- The last file: the policy, which only a first set-up adds, since a user may change or remove it; and the record of
-- this version.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM feature_platform.schema_version) THEN
        PERFORM public.add_features_1m_policy(if_not_exists => true);
    END IF;
END
$$;

INSERT INTO feature_platform.schema_version AS v (version, hash)
SELECT current_setting('feature_platform.schema_number')::integer, hashes[cardinality(hashes)]
FROM regexp_split_to_array(btrim(current_setting('feature_platform.schema_hashes'), E' \n'), '\s+') AS hashes
ON CONFLICT (version) DO UPDATE SET hash = excluded.hash, applied_at = excluded.applied_at
WHERE v.hash IS DISTINCT FROM excluded.hash;
