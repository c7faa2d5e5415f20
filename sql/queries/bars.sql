-- Statements that store bars: imports, backfills, the recorder's repairs.

-- bars_store --
-- Store the bars of one symbol that are new or differ from the stored ones; count both. Equal rows are not even locked.
WITH incoming AS (
    SELECT '1970-01-01 00:00+00'::timestamptz + us * interval '1 microsecond' AS ts, open, high, low, close, vol
      FROM unnest(%(ts)s::bigint[], %(open)s::double precision[], %(high)s::double precision[],
                  %(low)s::double precision[],
                  %(close)s::double precision[], %(vol)s::double precision[]) AS bar (us, open, high, low, close, vol)
), changed AS (
    INSERT INTO public.ohlcv_1m AS b (symbol, ts, open, high, low, close, vol, source, inserted_at)
    SELECT %(symbol)s, i.ts, i.open, i.high, i.low, i.close, i.vol, %(source)s, (SELECT feature_platform.clock())
      FROM incoming i
      LEFT JOIN public.ohlcv_1m o
             ON o.symbol = %(symbol)s AND o.ts = i.ts
            AND o.ts BETWEEN %(first)s::timestamptz AND %(last)s::timestamptz
     WHERE o.symbol IS NULL
        OR (o.open, o.high, o.low, o.close, o.vol) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.vol)
     ORDER BY i.ts
    ON CONFLICT (symbol, ts) DO UPDATE
       SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
           vol = excluded.vol, source = excluded.source, inserted_at = excluded.inserted_at
     WHERE (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM
           (excluded.open, excluded.high, excluded.low, excluded.close, excluded.vol)
    RETURNING b.xmax = 0 AS is_new
)
SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM changed;
