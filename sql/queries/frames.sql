-- Statements of read_features, latest and the plots.

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
-- Sent over ADBC, whose parameters are $1, $2, …; identifiers stand in braces, and so do values that a hypertable needs
-- to exclude chunks while it plans: a parameter or a setting has no value then, and planning costs 2 ms a chunk in each
-- new session.

-- frames_unknown --
-- The symbols of these that never had a bar.
SELECT wanted.symbol
  FROM unnest($1::text[]) WITH ORDINALITY AS wanted (symbol, number)
 WHERE NOT EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = wanted.symbol)
 ORDER BY wanted.number;

-- frames_without_rows --
-- The symbols of these that have no row since a time in a table, by one index look-up each. The table is read only for
-- symbols that ever had a bar.
SELECT wanted.symbol
  FROM unnest($1::text[]) WITH ORDINALITY AS wanted (symbol, number)
 WHERE CASE WHEN EXISTS (SELECT FROM feature_platform.known_symbol k WHERE k.symbol = wanted.symbol)
            THEN (SELECT true FROM {table} t
                   WHERE t.symbol = wanted.symbol AND t.{time} >= {since} ORDER BY t.{time} DESC LIMIT 1) IS NULL
            ELSE true END
 ORDER BY wanted.number;

-- frames_known --
-- All symbols of a table.
SELECT symbol FROM {view};

-- frames_ever --
-- All symbols that ever had a bar.
SELECT DISTINCT symbol FROM feature_platform.known_symbol;

-- frames_read --
-- The rows of some symbols in a window, in order.
SELECT {columns}
  FROM {table}
 WHERE symbol = ANY ({symbols}::text[]) AND {time} >= {start} AND {time} < {end}
 ORDER BY symbol, {time};

-- frames_views --
-- Every table of features that can be read, with its columns; features_1m is the last one.
SELECT name, columns FROM feature_platform.readable_view ORDER BY name = 'features_1m', name;

-- frames_latest --
-- The newest features of each of some symbols, of those that have one since a time, by one index look-up each.
SELECT f.*
  FROM unnest($1::text[]) AS wanted (symbol)
 CROSS JOIN LATERAL (SELECT {columns}
                       FROM {table} f
                      WHERE f.symbol = wanted.symbol AND f.bucket >= {since}
                      ORDER BY bucket DESC
                      LIMIT 1) AS f
 ORDER BY f.symbol;
