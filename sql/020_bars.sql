-- The bars, written by the recorder, imports and backfills. One row a minute is usual; several rows in a minute are
-- allowed.
CREATE TABLE IF NOT EXISTS public.ohlcv_1m (
    symbol      text COLLATE "C"  NOT NULL,
    ts          timestamptz       NOT NULL,
    open        double precision  NOT NULL,
    high        double precision  NOT NULL,
    low         double precision  NOT NULL,
    close       double precision  NOT NULL,
    vol         double precision  NOT NULL,
    source      text              NOT NULL DEFAULT 'stream',
    inserted_at timestamptz       NOT NULL DEFAULT feature_platform.clock(),
    CONSTRAINT ohlcv_1m_pkey PRIMARY KEY (symbol, ts),
    CONSTRAINT ohlcv_1m_symbol_check CHECK (symbol <> ''),
    CONSTRAINT ohlcv_1m_ts_check CHECK (ts >= '1970-01-01 00:00:00+00' AND ts < '10000-01-01 00:00:00+00'),
    -- In PostgreSQL NaN is greater than every number, so the upper bounds reject both NaN and infinity. The bounds are
    -- far outside of real prices and keep every product and square of the features inside double precision: no accepted
    -- bar can make a refresh fail.
    CONSTRAINT ohlcv_1m_price_check CHECK (
        low >= 1e-100 AND high <= 1e100
        AND high >= greatest(open, close, low) AND low <= least(open, close, high)),
    CONSTRAINT ohlcv_1m_vol_check CHECK (vol = 0 OR (vol >= 1e-100 AND vol <= 1e100)),
    CONSTRAINT ohlcv_1m_source_check CHECK (source IN ('stream', 'rest', 'import'))
);

-- Empty where every minute has one row. A refresh looks here for further rows inside the minutes of a range.
CREATE INDEX IF NOT EXISTS ohlcv_1m_inside_minute_idx ON public.ohlcv_1m (symbol, ts)
    WHERE ts <> date_bin('1 minute', ts, '1970-01-01 00:00:00+00');

COMMENT ON TABLE public.ohlcv_1m IS 'One-minute OHLCV bars, as the exchange published them.';
COMMENT ON COLUMN public.ohlcv_1m.symbol IS 'The symbol, as ccxt writes it, e.g. BTC/USDT.';
COMMENT ON COLUMN public.ohlcv_1m.ts IS 'Open time of the bar.';
COMMENT ON COLUMN public.ohlcv_1m.open IS 'First price, in the quote currency.';
COMMENT ON COLUMN public.ohlcv_1m.high IS 'Highest price, in the quote currency.';
COMMENT ON COLUMN public.ohlcv_1m.low IS 'Lowest price, in the quote currency.';
COMMENT ON COLUMN public.ohlcv_1m.close IS 'Last price, in the quote currency.';
COMMENT ON COLUMN public.ohlcv_1m.vol IS 'Traded volume, in the base currency.';
COMMENT ON COLUMN public.ohlcv_1m.source IS 'The origin of the row: stream, rest or import.';
COMMENT ON COLUMN public.ohlcv_1m.inserted_at IS 'The time at which the bar was stored with these values.';

-- The limits of a symbol: 1 to 200 characters, none of them a control character, and no space of any kind at the ends.
CREATE OR REPLACE FUNCTION feature_platform.is_symbol(symbol text) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN symbol <> '' AND length(symbol) <= 200
       AND symbol !~ ('[\u0001-\u001F\u007F-\u009F]'
                      '|^[\u0020\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]'
                      '|[\u0020\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]$');
COMMENT ON FUNCTION feature_platform.is_symbol(text) IS 'Whether a text can be a symbol.';

-- Every symbol that ever had a bar. Its row is written in the transaction of its first bar, and only forget_symbol()
-- deletes it. Writers only INSERT here, so they never wait: two concurrent first writers leave two rows of a symbol,
-- which do no harm. The limits of a symbol are checked here and not in each bar: a check of each bar would cost a fifth
-- of an import's time.
CREATE TABLE IF NOT EXISTS feature_platform.known_symbol (
    symbol text COLLATE "C" NOT NULL,
    id     bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT known_symbol_pkey PRIMARY KEY (symbol, id),
    CONSTRAINT known_symbol_check CHECK (feature_platform.is_symbol(symbol))
);
COMMENT ON TABLE feature_platform.known_symbol IS 'Every symbol that ever had a bar; some of them more than once.';

-- Every symbol that has bars: the known symbols that have a newest bar. Steps through the index of the bars would need
-- no table, but on a hypertable each step reads every chunk; the newest bar is in the first chunk that is read.
CREATE OR REPLACE VIEW feature_platform.bar_symbol AS
SELECT k.symbol
FROM (SELECT DISTINCT symbol FROM feature_platform.known_symbol) AS k
WHERE (SELECT true FROM public.ohlcv_1m b WHERE b.symbol = k.symbol ORDER BY b.ts DESC LIMIT 1)
ORDER BY k.symbol;
COMMENT ON VIEW feature_platform.bar_symbol IS 'Every symbol that has bars.';
