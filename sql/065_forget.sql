-- Delete bars, feature rows, gaps, marks, state and heartbeat of one symbol. Only the owner may call it, since it
-- deletes bars.
--
-- A concurrent refresh may still store rows of bars that it has read. Therefore the marks of the deleted bars stay: the
-- next refresh processes them and deletes such rows, and the next tick of the accounting processes the record of the
-- changed minutes.
CREATE OR REPLACE FUNCTION feature_platform.forget_symbol(forgotten text, OUT bars bigint, OUT features bigint)
    LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM feature_platform.dirty_log WHERE symbol = forgotten;
    DELETE FROM public.ohlcv_1m WHERE symbol = forgotten;
    GET DIAGNOSTICS bars = ROW_COUNT;
    DELETE FROM public.features_1m WHERE symbol = forgotten;
    GET DIAGNOSTICS features = ROW_COUNT;
    DELETE FROM feature_platform.features_1m_history WHERE symbol = forgotten;
    DELETE FROM feature_platform.symbol_number WHERE symbol = forgotten;
    DELETE FROM feature_platform.known_at_close WHERE symbol = forgotten;
    DELETE FROM feature_platform.bar_history WHERE symbol = forgotten;
    DELETE FROM feature_platform.bar_refresh WHERE symbol = forgotten;
    DELETE FROM feature_platform.bar_known WHERE symbol = forgotten;
    DELETE FROM feature_platform.served WHERE symbol = forgotten;
    -- A service may still log rows that it has served.
    INSERT INTO feature_platform.knowledge_floor AS f (symbol, no, forgotten_at)
    SELECT forgotten, coalesce(max(r.no), 0) + 1, feature_platform.clock() FROM feature_platform.refresh r
    ON CONFLICT ON CONSTRAINT knowledge_floor_pkey DO UPDATE
    SET no = excluded.no, forgotten_at = excluded.forgotten_at;
    PERFORM feature_platform.forget_view_rows(forgotten);
    PERFORM feature_platform.record_lake_symbol(forgotten);
    DELETE FROM public.ohlcv_1m_gaps WHERE symbol = forgotten;
    DELETE FROM feature_platform.gap_watermark WHERE symbol = forgotten;
    DELETE FROM feature_platform.symbol_state WHERE symbol = forgotten;
    DELETE FROM feature_platform.features_1m_state WHERE symbol = forgotten;
    DELETE FROM feature_platform.heartbeat WHERE symbol = forgotten;
    DELETE FROM feature_platform.known_symbol WHERE symbol = forgotten;
END
$$;
COMMENT ON FUNCTION feature_platform.forget_symbol(text) IS
    'Deletes all rows of one symbol; returns the numbers of bars and feature rows.';
