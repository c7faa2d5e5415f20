-- Deletes all of one symbol: bars, feature rows, gaps, marks, state and heartbeat. For the owner only: it deletes bars.
--
-- A refresh that runs meanwhile may still store rows of bars that it saw. So the marks that deleting the bars makes are left: the
-- next refresh takes them, and deletes such rows; the next accounting takes the record of the changed minutes.
CREATE OR REPLACE FUNCTION feature_platform.forget_symbol(forgotten text, OUT bars bigint, OUT features bigint)
    LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM feature_platform.dirty_log WHERE symbol = forgotten;
    DELETE FROM public.ohlcv_1m WHERE symbol = forgotten;
    GET DIAGNOSTICS bars = ROW_COUNT;
    DELETE FROM public.features_1m WHERE symbol = forgotten;
    GET DIAGNOSTICS features = ROW_COUNT;
    DELETE FROM public.ohlcv_1m_gaps WHERE symbol = forgotten;
    DELETE FROM feature_platform.gap_watermark WHERE symbol = forgotten;
    DELETE FROM feature_platform.symbol_state WHERE symbol = forgotten;
    DELETE FROM feature_platform.heartbeat WHERE symbol = forgotten;
    DELETE FROM feature_platform.known_symbol WHERE symbol = forgotten;
END
$$;
COMMENT ON FUNCTION feature_platform.forget_symbol(text) IS 'Deletes all of one symbol; returns how many bars and feature rows it had.';
