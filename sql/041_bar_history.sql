-- Bars as they were: everything that is needed to read the bars of a symbol as of the number of a refresh. Each table
-- is only added to; the retention deletes from them.

-- The versions of bars that an UPDATE or DELETE has replaced. The triggers of ohlcv_1m write them in the writer's
-- transaction, together with the mark of the change: the version ended with the refresh that took this mark. An INSERT
-- writes nothing.
CREATE TABLE IF NOT EXISTS feature_platform.bar_history (
    symbol      text COLLATE "C"  NOT NULL,
    ts          timestamptz       NOT NULL,
    -- Writers of one bar wait for each other, so the numbers are in the order of its changes.
    id          bigint            NOT NULL GENERATED ALWAYS AS IDENTITY,
    open        double precision  NOT NULL,
    high        double precision  NOT NULL,
    low         double precision  NOT NULL,
    close       double precision  NOT NULL,
    vol         double precision  NOT NULL,
    source      text              NOT NULL,
    inserted_at timestamptz       NOT NULL,
    mark        bigint            NOT NULL,     -- the mark of the change, in dirty_log or bar_refresh
    gone        boolean           NOT NULL,     -- whether the bar was deleted, or got another symbol or time
    CONSTRAINT bar_history_pkey PRIMARY KEY (symbol, ts, id)
);
COMMENT ON TABLE feature_platform.bar_history IS 'The versions of bars that an UPDATE or DELETE has replaced.';

-- The refresh that took a mark with versions of bars.
CREATE TABLE IF NOT EXISTS feature_platform.bar_refresh (
    symbol text COLLATE "C" NOT NULL,
    mark   bigint           NOT NULL,
    no     bigint           NOT NULL,
    last   timestamptz      NOT NULL,   -- the end of its minutes
    CONSTRAINT bar_refresh_pkey PRIMARY KEY (symbol, mark)
);
COMMENT ON TABLE feature_platform.bar_refresh IS 'The refreshes that took the marks of the versions in bar_history.';

-- The number of each symbol below which nothing can be answered: TRUNCATE keeps no versions.
CREATE TABLE IF NOT EXISTS feature_platform.knowledge_floor (
    symbol       text COLLATE "C" NOT NULL CONSTRAINT knowledge_floor_pkey PRIMARY KEY,
    no           bigint           NOT NULL,
    forgotten_at timestamptz      -- when the symbol was forgotten, with all versions of its rows
);
COMMENT ON TABLE feature_platform.knowledge_floor IS
    'The number of a symbol below which its past is not known any more.';

-- Since which refresh a bar is known. A bar has an entry where the row of features_1m of its minute does not show this:
-- it was used before its own row existed, it was deleted and came again, or its minute had several rows.
DO $$
BEGIN
    IF to_regclass('feature_platform.bar_known') IS NOT NULL THEN
        RETURN;
    END IF;
    CREATE TABLE feature_platform.bar_known (
        symbol text COLLATE "C" NOT NULL,
        ts     timestamptz      NOT NULL,
        no     bigint           NOT NULL,
        CONSTRAINT bar_known_pkey PRIMARY KEY (symbol, ts, no)
    );
    -- A database of before: rows have the number 0. The values that these symbols had then are not known.
    INSERT INTO feature_platform.bar_known (symbol, ts, no)
    SELECT b.symbol, b.ts, 0
    FROM (SELECT DISTINCT t.symbol, feature_platform.bucket_of(t.ts) AS bucket FROM public.ohlcv_1m t
          WHERE t.ts <> date_bin('1 minute', t.ts, '1970-01-01 00:00:00+00')) AS several
    JOIN public.ohlcv_1m b ON b.symbol = several.symbol AND b.ts >= several.bucket
                          AND b.ts < several.bucket + interval '1 minute';
    INSERT INTO feature_platform.knowledge_floor (symbol, no)
    SELECT k.symbol, 1 FROM feature_platform.bar_known k
    UNION SELECT l.symbol, 1 FROM feature_platform.dirty_log l
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON TABLE feature_platform.bar_known IS
    'Since which refresh bars are known, where the row of their minute does not show it.';
