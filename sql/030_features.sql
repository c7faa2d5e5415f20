-- The features: one row for each symbol and closed minute that has bars. Only a refresh writes here.
CREATE TABLE IF NOT EXISTS public.features_1m (
    symbol        text COLLATE "C" NOT NULL,
    bucket        timestamptz      NOT NULL,
    last_close    double precision,
    vol           double precision,
    log_return    double precision,
    n_1d          integer,
    ma_vol_1d     double precision,
    std_vol_1d    double precision,
    volume_z      double precision,
    vwap_gap      double precision,
    parkinson_vol double precision,
    refresh_no    bigint           NOT NULL DEFAULT 0,
    CONSTRAINT features_1m_pkey PRIMARY KEY (symbol, bucket),
    CONSTRAINT features_1m_bucket_check CHECK (bucket = date_bin('1 minute', bucket, '1970-01-01 00:00:00+00'))
);
CREATE INDEX IF NOT EXISTS features_1m_bucket_idx ON public.features_1m (bucket DESC);

COMMENT ON TABLE public.features_1m IS
    'Features of each closed minute, always equal to their definition over the bars of ohlcv_1m.';
COMMENT ON COLUMN public.features_1m.symbol IS 'The symbol, as in ohlcv_1m.';
COMMENT ON COLUMN public.features_1m.bucket IS 'UTC start of the minute.';
COMMENT ON COLUMN public.features_1m.last_close IS 'Close of the last row of the minute, in the quote currency.';
COMMENT ON COLUMN public.features_1m.vol IS 'Volume of the minute, in the base currency.';
COMMENT ON COLUMN public.features_1m.log_return IS
    'ln(last_close / last_close of the previous existing minute); NULL on the first.';
COMMENT ON COLUMN public.features_1m.n_1d IS 'Minutes that exist in (bucket - 1 day, bucket].';
COMMENT ON COLUMN public.features_1m.ma_vol_1d IS
    'Mean of vol over (bucket - 1 day, bucket]; NULL during the first day of the symbol.';
COMMENT ON COLUMN public.features_1m.std_vol_1d IS
    'Population standard deviation of vol over the same window; NULL during the first day.';
COMMENT ON COLUMN public.features_1m.volume_z IS
    '(vol - ma_vol_1d) / std_vol_1d; NULL during the first day and where std_vol_1d = 0.';
COMMENT ON COLUMN public.features_1m.vwap_gap IS
    'last_close - sum(p*vol)/sum(vol) of the minute, p = (open+high+low+close)/4; last_close - avg(p) where nothing '
    'was traded.';
COMMENT ON COLUMN public.features_1m.parkinson_vol IS
    '0.5 * ln(max(high)/min(low))^2 (after Parkinson 1980, J. Business 53(1), 61-65).';
COMMENT ON COLUMN public.features_1m.refresh_no IS
    'The refresh that gave the row these values; 0: before refreshes had numbers.';

-- Every symbol that has feature rows, found as in bar_symbol: only symbols that have or had bars have rows.
CREATE OR REPLACE VIEW feature_platform.feature_symbol AS
SELECT k.symbol
FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS k
WHERE (SELECT true FROM public.features_1m f WHERE f.symbol = k.symbol ORDER BY f.bucket DESC LIMIT 1)
ORDER BY k.symbol;
COMMENT ON VIEW feature_platform.feature_symbol IS 'Every symbol that has feature rows.';

-- Every symbol in either table, found without known_symbol by one index probe for each symbol and chunk. Proofs use it;
-- ticks do not, because of its cost.
CREATE OR REPLACE VIEW feature_platform.stored_symbol AS
WITH RECURSIVE bar AS (
    (SELECT symbol FROM public.ohlcv_1m ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT b.symbol FROM public.ohlcv_1m b WHERE b.symbol > w.symbol ORDER BY b.symbol LIMIT 1)
    FROM bar w WHERE w.symbol IS NOT NULL
), feature AS (
    (SELECT symbol FROM public.features_1m ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT f.symbol FROM public.features_1m f WHERE f.symbol > w.symbol ORDER BY f.symbol LIMIT 1)
    FROM feature w WHERE w.symbol IS NOT NULL
)
SELECT symbol FROM bar WHERE symbol IS NOT NULL
UNION
SELECT symbol FROM feature WHERE symbol IS NOT NULL;
COMMENT ON VIEW feature_platform.stored_symbol IS
    'Every symbol in ohlcv_1m or features_1m, found in the tables themselves.';

-- Add symbols that no trigger has recorded: those of a database of before known_symbol, or of writes with disabled
-- triggers.
CREATE OR REPLACE FUNCTION feature_platform.find_symbols() RETURNS void
    LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO feature_platform.known_symbol (symbol)
    SELECT s.symbol FROM feature_platform.stored_symbol s
    WHERE NOT EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = s.symbol);
END;
COMMENT ON FUNCTION feature_platform.find_symbols() IS 'Adds every symbol of the tables to known_symbol.';
