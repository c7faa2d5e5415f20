-- The rolling verification: a pass over all history, slice by slice, that compares every stored row with the bars
-- within seven days. Its position is stored here, so that a pass continues where the last process stopped.
CREATE TABLE IF NOT EXISTS feature_platform.verification (
    only_one    boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    started_at  timestamptz NOT NULL DEFAULT feature_platform.clock(),     -- start of the current pass
    symbol      text COLLATE "C" NOT NULL DEFAULT '',     -- symbol of the next slice, or the one before it
    next_ts     timestamptz NOT NULL DEFAULT '-infinity', -- first minute of the next slice
    minutes     bigint      NOT NULL DEFAULT 0,           -- minutes verified in this pass
    wrong       boolean     NOT NULL DEFAULT false,       -- the next slice had mismatches; it is repeated
    finished_at timestamptz                               -- end of the last pass
);
COMMENT ON TABLE feature_platform.verification IS 'The position of the rolling verification of all history.';
INSERT INTO feature_platform.verification DEFAULT VALUES ON CONFLICT DO NOTHING;

-- The minutes of a symbol that have rows or should have them: from its first bar or stored row to its last.
CREATE OR REPLACE FUNCTION feature_platform.symbol_span(of_symbol text, OUT first_ts timestamptz,
                                                        OUT end_ts timestamptz)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT greatest(least(
               (SELECT feature_platform.bucket_of(b.ts) FROM public.ohlcv_1m b WHERE b.symbol = of_symbol ORDER BY b.ts
                LIMIT 1),
               (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = of_symbol ORDER BY f.bucket LIMIT 1)),
               feature_platform.features_from()),
           greatest(
               least((SELECT feature_platform.bucket_of(b.ts) + interval '1 minute' FROM public.ohlcv_1m b
                      WHERE b.symbol = of_symbol ORDER BY b.ts DESC LIMIT 1), feature_platform.due_until()),
               (SELECT f.bucket + interval '1 minute' FROM public.features_1m f WHERE f.symbol = of_symbol
                ORDER BY f.bucket DESC LIMIT 1));
END;
COMMENT ON FUNCTION feature_platform.symbol_span(text) IS
    'The minutes of a symbol that have rows or should have them: [first_ts, end_ts).';

-- Move the position of the rolling verification, unless another session has moved it. Symbol '': the pass is complete.
CREATE OR REPLACE FUNCTION feature_platform.verification_move(
    from_symbol text, from_ts timestamptz, to_symbol text, to_ts timestamptz, verified bigint, is_wrong boolean)
        RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE feature_platform.verification v
    SET symbol = to_symbol, next_ts = to_ts, wrong = is_wrong,
        minutes = CASE WHEN to_symbol = '' THEN 0 ELSE v.minutes + verified END,
        started_at = CASE WHEN to_symbol = '' THEN feature_platform.clock() ELSE v.started_at END,
        finished_at = CASE WHEN to_symbol = '' THEN feature_platform.clock() ELSE v.finished_at END
    WHERE v.symbol = from_symbol AND v.next_ts = from_ts;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION feature_platform.verification_move(text, timestamptz, text, timestamptz, bigint, boolean) IS
    'Moves the position of the rolling verification.';
