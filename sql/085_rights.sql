-- The rights of each role. A right that is not granted here is revoked: a new table or function needs a line here
-- before a service can use it, and a test checks all of them.
--
-- Functions that write are SECURITY DEFINER: their callers need no right to the tables that they write, so only the
-- engine writes features, marks and gaps. Grants to other roles than these stay unchanged.
DO $$
DECLARE
    ours CONSTANT text[] := '{recorder,refresher,orchestrator,reader}';
    present CONSTANT text[] := (SELECT array_agg(r.rolname ORDER BY o.place)
                                FROM unnest(ours) WITH ORDINALITY AS o (name, place)
                                JOIN pg_roles r ON r.rolname = 'feature_platform_' || o.name);
    list text;
    made record;
    right_of record;
BEGIN
    FOR made IN
        SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END AS kind, p.oid::regprocedure::text AS name
        FROM pg_proc p
        WHERE p.pronamespace = 'feature_platform'::regnamespace
           OR (p.pronamespace = 'public'::regnamespace
               AND (p.proname LIKE '%features\_1m%' OR p.proname = 'refresh_feature_view')
               AND p.proowner = (SELECT nspowner FROM pg_namespace WHERE nspname = 'feature_platform'))
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text
        FROM pg_class c
        WHERE (c.relnamespace = 'feature_platform'::regnamespace AND c.relkind IN ('r', 'v', 'S'))
           OR c.oid IN ('public.ohlcv_1m'::regclass, 'public.features_1m'::regclass, 'public.ohlcv_1m_gaps'::regclass)
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM PUBLIC', made.kind, made.name);
        IF present IS NOT NULL THEN
            list := (SELECT string_agg(quote_ident(role), ', ') FROM unnest(present) AS role);
            EXECUTE format('REVOKE ALL ON %s %s FROM %s', made.kind, made.name, list);
        END IF;
    END LOOP;

    -- Functions that only compute; defaults of ohlcv_1m call them with the rights of each writer.
    GRANT EXECUTE ON FUNCTION feature_platform.clock, feature_platform.clock_at, feature_platform.session_clock,
        feature_platform.simulated_clock,
        feature_platform.bucket_of, feature_platform.bucket_from TO PUBLIC;

    FOR right_of IN SELECT * FROM (VALUES
        -- All roles: compare the schema's version and read the clock.
        (ours, 'USAGE ON SCHEMA feature_platform'),
        (ours, 'SELECT ON feature_platform.schema_version, feature_platform.database_origin'),
        (ours, 'EXECUTE ON FUNCTION feature_platform.due_until, feature_platform.timescaledb'),

        -- Writers of bars, without the right to delete them: bars, and the exchange's answers for missing minutes.
        ('{recorder,orchestrator}', 'SELECT, INSERT, UPDATE ON public.ohlcv_1m'),
        ('{recorder,orchestrator}', 'SELECT ON public.ohlcv_1m_gaps, feature_platform.bar_symbol,
                    feature_platform.known_at_close'),
        ('{recorder,orchestrator}', 'EXECUTE ON FUNCTION feature_platform.find_gaps, feature_platform.gap_answered,
                    feature_platform.gap_failed, feature_platform.minutes_to_account, feature_platform.due_gaps,
                    feature_platform.claim_exchange, feature_platform.flag_known_at_close'),

        -- The recorder: heartbeats and outages.
        ('{recorder}', 'SELECT, INSERT, UPDATE, DELETE ON feature_platform.heartbeat, feature_platform.feed_outage'),

        -- Refreshers: the engine's functions, which alone write features_1m.
        ('{refresher,orchestrator}', 'EXECUTE ON PROCEDURE public.refresh_features_1m, public.refresh_feature_view'),
        ('{refresher,orchestrator}', 'EXECUTE ON FUNCTION feature_platform.view_slice, feature_platform.view_step,
                    feature_platform.serve_complete_views'),
        ('{refresher,orchestrator}', 'EXECUTE ON FUNCTION feature_platform.mark_window, feature_platform.refresh_slice,
                    feature_platform.note_known,
                    feature_platform.claim_runner, feature_platform.policy_begin, feature_platform.policy_step,
                    feature_platform.policy_end'),

        -- The orchestrator: the accounting, the policy and the retention, beside the rights above.
        ('{orchestrator}', 'EXECUTE ON FUNCTION feature_platform.recheck_gaps, feature_platform.verification_move,
                    feature_platform.note_skew,
                    public.add_features_1m_policy, public.alter_features_1m_policy, public.remove_features_1m_policy,
                    public.set_features_1m_retention, feature_platform.retention_step'),
        ('{orchestrator}', 'EXECUTE ON PROCEDURE feature_platform.apply_retention'),

        -- The orchestrator also writes the lake.
        ('{orchestrator}', 'INSERT, UPDATE, DELETE ON feature_platform.lake_table'),
        ('{orchestrator}', 'DELETE ON feature_platform.lake_change'),
        ('{orchestrator}', 'EXECUTE ON FUNCTION feature_platform.record_lake_changes,
                    feature_platform.record_lake_until'),

        -- Readers: all tables, which verify also needs.
        ('{reader,refresher,orchestrator}', 'SELECT ON public.ohlcv_1m, public.features_1m, public.ohlcv_1m_gaps,
                    feature_platform.bar_symbol, feature_platform.feature_symbol, feature_platform.stored_symbol,
                    feature_platform.known_symbol, feature_platform.gap_watermark,
                    feature_platform.bar_change, feature_platform.changed_minutes, feature_platform.gap_beginning,
                    feature_platform.answered_gap,
                    feature_platform.verification,
                    feature_platform.dirty_log, feature_platform.dirty,
                    feature_platform.refresh, feature_platform.symbol_number, feature_platform.known_at_close,
                    feature_platform.features_1m_history, feature_platform.features_1m_versions,
                    feature_platform.symbol_state, feature_platform.features_1m_state,
                    feature_platform.retention, feature_platform.policy,
                    feature_platform.policy_run, feature_platform.runner, feature_platform.policy_status,
                    feature_platform.heartbeat,
                    feature_platform.feed_outage, feature_platform.feature_view, feature_platform.view_symbol,
                    feature_platform.view_change, feature_platform.readable_view, feature_platform.served,
                    feature_platform.skew_check, feature_platform.knowledge_floor,
                    feature_platform.bar_history, feature_platform.bar_refresh, feature_platform.bar_known,
                    feature_platform.lake_table, feature_platform.lake_change, feature_platform.lake_waiting'),
        -- The model service, which is a reader, writes the log of its answers.
        ('{reader}', 'INSERT ON feature_platform.served'),
        -- The functions of verify, and the state of the views.
        ('{reader,refresher,orchestrator}', 'USAGE ON SCHEMA feature_views'),
        ('{reader,refresher,orchestrator}', 'EXECUTE ON FUNCTION feature_platform.plain_before,
                    feature_platform.plain_pair, feature_platform.plain_ema, feature_platform.view_due,
                    feature_platform.view_from, feature_platform.view_lag, feature_platform.view_progress,
                    feature_platform.view_slice_rows, feature_platform.view_span,
                    feature_platform.view_values'),
        -- The functions of skew and why.
        ('{reader,refresher,orchestrator}', 'EXECUTE ON FUNCTION feature_platform.bars_as_of,
                    feature_platform.bucket_before_as_of, feature_platform.first_bar_as_of,
                    feature_platform.history_from, feature_platform.row_created,
                    feature_platform.features_1m_start, feature_platform.bucket_before,
                    feature_platform.features_1m_plain_as_of, feature_platform.features_1m_plain_from_as_of'),
        ('{reader,refresher,orchestrator}', 'EXECUTE ON FUNCTION feature_platform.dirty_horizon,
                    feature_platform.known_at, feature_platform.number_of, feature_platform.page_knowledge,
                    feature_platform.known_rows_at,
                    feature_platform.known_rows_after, feature_platform.known_rows_of,
                    feature_platform.days_of,
                    feature_platform.features_from, feature_platform.next_job_start, feature_platform.job_problem,
                    feature_platform.timescaledb_schema,
                    feature_platform.gaps_between, feature_platform.minutes_to_account, feature_platform.hazards,
                    feature_platform.symbol_span')
    ) AS r (roles, what)
    LOOP
        list := (SELECT string_agg(quote_ident(role), ', ') FROM unnest(present) AS role
                 WHERE role = ANY (SELECT 'feature_platform_' || name FROM unnest(right_of.roles::text[]) AS name));
        IF list IS NOT NULL THEN
            EXECUTE format('GRANT %s TO %s', right_of.what, list);
        END IF;
    END LOOP;
    PERFORM feature_platform.grant_view_rights(v.id) FROM feature_platform.feature_view v;
    IF cardinality(present) IS DISTINCT FROM cardinality(ours) THEN
        RAISE NOTICE 'not all of the roles exist, nor may this user create them'
            USING HINT = 'Have an administrator run 005_roles.sql, then set up again: that grants their rights.';
    END IF;
END
$$;
