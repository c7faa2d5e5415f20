-- Statements of make dev and make demo.

-- demo_any_bar --
-- A row if there is any bar.
SELECT FROM public.ohlcv_1m LIMIT 1;

-- demo_newest --
-- The newest feature rows of each symbol.
SELECT f.*
  FROM feature_platform.feature_symbol s
 CROSS JOIN LATERAL (SELECT symbol, bucket, last_close, log_return, volume_z, vwap_gap, parkinson_vol
                       FROM public.features_1m f
                      WHERE f.symbol = s.symbol ORDER BY f.bucket DESC LIMIT %(rows)s) AS f
 ORDER BY f.bucket DESC, f.symbol
 LIMIT %(rows)s;


-- ==== live_past.py ====
-- demo_set_clock --
-- Set the clock of the session, in a simulated database.
SELECT set_config('feature_platform.clock', %(clock)s, false);

-- demo_store --
-- Store one bar, or correct it.
INSERT INTO public.ohlcv_1m AS b (symbol, ts, open, high, low, close, vol)
VALUES (%(symbol)s, %(ts)s, %(open)s, %(high)s, %(low)s, %(close)s, %(vol)s)
ON CONFLICT (symbol, ts) DO UPDATE SET vol = excluded.vol;

-- demo_refresh --
-- Refresh all features.
CALL refresh_features_1m(NULL, NULL);
