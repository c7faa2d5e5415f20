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
