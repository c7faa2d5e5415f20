-- Statements of read_features, latest and the plots; those of frames.py go over ADBC: parameters are $1, $2, …,
-- and braces hold identifiers.

-- ==== plot.py ====
-- plot_features --
-- Close and volume_z of one symbol over its last days.
SELECT bucket, last_close, volume_z
  FROM public.features_1m
 WHERE symbol = %(symbol)s
   AND bucket > (SELECT max(bucket) FROM public.features_1m
                 WHERE symbol = %(symbol)s) - make_interval(hours => 24 * %(days)s)
 ORDER BY bucket;

-- plot_window_bounds --
-- The minutes of a window in which a symbol can have rows: from its first minute to the last closed one.
SELECT greatest(%(start)s, (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = %(symbol)s ORDER BY f.bucket
                            LIMIT 1)),
       least(%(end)s, feature_platform.due_until());

-- plot_window --
-- Close and volume_z of one symbol in a window.
SELECT bucket, last_close, volume_z
  FROM public.features_1m
 WHERE symbol = %(symbol)s AND bucket >= %(start)s AND bucket < %(end)s
 ORDER BY bucket;


-- ==== frames.py ====
-- Sent over ADBC, whose parameters are $1, $2, …; identifiers stand in braces.

-- frames_unknown --
-- The symbols of these that have no row in a table, by one index look-up each. The table is read only for symbols that
-- ever had a bar, and only for their newest row, which is in the first chunk that is read.
SELECT wanted.symbol
  FROM unnest($1::text[]) WITH ORDINALITY AS wanted (symbol, number)
 WHERE CASE WHEN EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = wanted.symbol)
            THEN (SELECT true FROM {table} t WHERE t.symbol = wanted.symbol ORDER BY t.{time} DESC LIMIT 1) IS NULL
            ELSE true END
 ORDER BY wanted.number;

-- frames_known --
-- All symbols of a table.
SELECT symbol FROM {view};

-- frames_window --
-- Store the parameters of frames_read as settings of the transaction, because COPY has no parameters.
SELECT set_config('feature_platform.read_symbols', $1::text[]::text, true),
       set_config('feature_platform.read_start', $2::timestamptz::text, true),
       set_config('feature_platform.read_end', $3::timestamptz::text, true);

-- frames_read --
-- The rows of some symbols in a window, in order.
SELECT {columns}
  FROM {table}
 WHERE symbol = ANY (current_setting('feature_platform.read_symbols')::text[])
   AND {time} >= current_setting('feature_platform.read_start')::timestamptz
   AND {time} < current_setting('feature_platform.read_end')::timestamptz
 ORDER BY symbol, {time};

-- frames_latest --
-- The newest features of each of some symbols, or of all, by one index look-up each.
SELECT f.*
  FROM unnest(coalesce($1::text[], (SELECT array_agg(symbol) FROM feature_platform.feature_symbol))) AS wanted (symbol)
 CROSS JOIN LATERAL (SELECT symbol, bucket, {columns}
                       FROM public.features_1m f
                      WHERE f.symbol = wanted.symbol
                      ORDER BY bucket DESC
                      LIMIT 1) AS f
 ORDER BY f.symbol;
