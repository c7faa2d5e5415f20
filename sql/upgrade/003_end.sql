-- To version 3, after the triggers and their functions have been replaced.

-- Version 2 notified the worker, and recorded late changes only.
DROP FUNCTION IF EXISTS feature_platform.wake_refresher(timestamptz);
DROP TABLE IF EXISTS feature_platform.late_change;

-- Databases without known_symbol, or without its check. The set-up holds the lock of ohlcv_1m, so no new symbol can
-- appear meanwhile.
DO $$
DECLARE
    bad text;
BEGIN
    -- Of symbols that were renamed since, only the old name is left.
    DELETE FROM feature_platform.known_symbol k
    WHERE NOT feature_platform.is_symbol(k.symbol)
      AND NOT EXISTS (SELECT FROM feature_platform.stored_symbol s WHERE s.symbol = k.symbol);
    bad := (SELECT string_agg(quote_literal(left(s.symbol, 40)), ', ' ORDER BY s.symbol)
            FROM (SELECT symbol FROM feature_platform.stored_symbol
                  WHERE NOT feature_platform.is_symbol(symbol) ORDER BY symbol LIMIT 5) AS s);
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'ohlcv_1m has bars of symbols that are no longer accepted: %', bad
            USING HINT = 'The database was not changed. A symbol has at most 200 characters, no control characters and'
                ' no spaces at its ends: rename these (UPDATE public.ohlcv_1m SET symbol = ...) and refresh, both with'
                ' the version that is installed, then set up again.';
    END IF;
    PERFORM feature_platform.find_symbols();
    IF NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = 'feature_platform.known_symbol'::regclass AND conname = 'known_symbol_check') THEN
        ALTER TABLE feature_platform.known_symbol
            ADD CONSTRAINT known_symbol_check CHECK (feature_platform.is_symbol(symbol));
    END IF;
END
$$;
