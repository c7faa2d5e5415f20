-- Ways around the triggers on ohlcv_1m: settings of a table, a role or the database that let bars or rows change
-- unrecorded, or hide them. The checks bars_table and features_table report each.
CREATE OR REPLACE FUNCTION feature_platform.hazards(of_table regclass) RETURNS TABLE (what text, problem text)
    LANGUAGE plpgsql STABLE STRICT
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_chunks CONSTANT boolean := feature_platform.timescaledb() <> 'none';
BEGIN
    RETURN QUERY
    SELECT 'session_replication_role',
           format('is replica for %s, so that no trigger fires: ALTER %s RESET session_replication_role',
                  concat_ws(' in ', 'role ' || s.setrole::regrole, 'database ' || d.datname),
                  CASE WHEN s.setrole <> 0 THEN 'ROLE ' || s.setrole::regrole
                      || coalesce(' IN DATABASE ' || quote_ident(d.datname), '')
                       ELSE 'DATABASE ' || quote_ident(d.datname) END)
    FROM pg_db_role_setting s
    CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
    LEFT JOIN pg_database d ON d.oid = s.setdatabase
    LEFT JOIN pg_roles r ON r.oid = s.setrole
    WHERE c.setting ILIKE 'session_replication_role=replica' AND (s.setdatabase = 0 OR d.datname = current_database());

    IF current_setting('session_replication_role') = 'replica' THEN
        RETURN QUERY SELECT 'session_replication_role',
            'is replica in this session, so that no trigger fires: is it set in postgresql.conf?';
    END IF;

    RETURN QUERY
    SELECT 'rule ' || r.rulename, format('rewrites statements on the table: DROP RULE %I ON %s', r.rulename, of_table)
    FROM pg_rewrite r WHERE r.ev_class = of_table;

    RETURN QUERY
    SELECT 'row level security', format('hides rows from some roles: ALTER TABLE %s DISABLE ROW LEVEL SECURITY',
                                        of_table)
    FROM pg_class c WHERE c.oid = of_table AND c.relrowsecurity;

    RETURN QUERY
    SELECT format('trigger %s of %s', t.tgname, t.tgrelid::regclass),
           format('is disabled or fires only for replicas: ALTER TABLE %s ENABLE TRIGGER %I', t.tgrelid::regclass,
                  t.tgname)
    FROM pg_inherits i JOIN pg_trigger t ON t.tgrelid = i.inhrelid
    WHERE i.inhparent = of_table AND NOT t.tgisinternal AND t.tgenabled IN ('D', 'R');

    IF NOT has_chunks THEN
        RETURN QUERY
        SELECT 'table ' || i.inhrelid::regclass,
               format('inherits from %s, and its rows change unrecorded: ALTER TABLE %s NO INHERIT %s', of_table,
                      i.inhrelid::regclass, of_table)
        FROM pg_inherits i WHERE i.inhparent = of_table;
        RETURN;
    END IF;

    -- Dynamic SQL, because the relations of TimescaleDB exist only with the extension.
    RETURN QUERY EXECUTE $sql$
        SELECT 'job ' || j.job_id,
            'is a retention policy of TimescaleDB, which drops chunks unrecorded: SELECT remove_retention_policy('
               || quote_literal($1::text) || '), then set_features_1m_retention(), which keeps features right'
        FROM timescaledb_information.jobs j
        WHERE j.proc_name = 'policy_retention' AND to_regclass(format('%I.%I', j.hypertable_schema,
                                                                      j.hypertable_name)) = $1
        UNION ALL
        SELECT 'table ' || c.oid::regclass, 'was a chunk of ' || $1
            || ' and is detached, its rows are gone unrecorded: attach it again, '
               || 'or insert its rows into ' || $1 || ' and drop it; set_features_1m_retention() is the way to delete'
        FROM _timescaledb_catalog.hypertable h
        JOIN pg_class c ON c.relname ~ ('^' || h.associated_table_prefix || '_[0-9]+_chunk$') AND c.relkind = 'r'
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = h.associated_schema_name
        WHERE to_regclass(format('%I.%I', h.schema_name, h.table_name)) = $1
          AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND i.inhparent = $1)
    $sql$ USING of_table;
END
$$;
COMMENT ON FUNCTION feature_platform.hazards(regclass) IS
    'Settings that let rows of a table change unrecorded or hide them, each with its remedy.';
