-- Statements of feature views.

-- ==== views/catalog.py ====
-- views_owner --
-- The role that owns the platform's objects, and whether this user may act for it.
SELECT o.rolname AS owner, pg_has_role(o.oid, 'MEMBER') AS may_act
  FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner
 WHERE n.nspname = 'feature_platform';

-- views_lock --
-- Keep refreshes from reading the list of views until the end of the transaction.
LOCK TABLE feature_platform.view_lock IN EXCLUSIVE MODE;

-- views_versions --
-- The versions of all views, the served one of a name first.
SELECT id, name, version, every, origin, description, columns, sources, look_back, served, state
  FROM feature_platform.feature_view ORDER BY name, version;

-- views_name_taken --
-- Whether a relation of another kind has a view's name.
SELECT to_regclass(format('public.%%I', %(name)s::text)) IS NOT NULL
   AND NOT EXISTS (SELECT FROM feature_platform.feature_view v WHERE v.name = %(name)s);

-- views_add --
-- Add a version to the list.
INSERT INTO feature_platform.feature_view
    (name, version, every, origin, description, columns, sources, look_back, warm_up, has_inner, has_rows, compiled,
     served, state)
VALUES (%(name)s, %(version)s, make_interval(mins => %(every)s),
        timestamptz '1970-01-01 00:00+00' + make_interval(mins => %(shift)s), %(description)s, %(columns)s, %(sources)s,
        make_interval(mins => %(look_back)s), make_interval(mins => %(warm_up)s), %(has_inner)s, %(has_rows)s, '',
        false, 'building')
RETURNING id;

-- views_set_compiled --
-- Keep the SQL that a version was compiled to.
UPDATE feature_platform.feature_view SET compiled = %(compiled)s WHERE id = %(id)s;

-- views_finish_tables --
-- Make hypertables of a version's tables where there is TimescaleDB, and grant the rights to its functions.
SELECT feature_platform.finish_view_tables(%(id)s);

-- views_build --
-- Mark all history of a version dirty.
SELECT feature_platform.begin_view_build(%(id)s);

-- views_serve --
-- Give a version its name.
SELECT feature_platform.serve_view(%(id)s);

-- views_restart --
-- Clear the error of a version that is built again.
UPDATE feature_platform.feature_view SET state = 'building', error = NULL, tried_at = NULL WHERE id = %(id)s;

-- views_describe --
-- Change the description of a version, and the comment of its view where it is served.
SELECT feature_platform.describe_view(%(id)s, %(description)s);

-- views_drop_version --
-- Drop a version.
SELECT feature_platform.drop_view_version(%(id)s);

-- views_drop --
-- Drop a view with all its versions; whether there was one.
SELECT feature_platform.drop_view(%(name)s);

-- views_list --
-- The state of each version of a view, or of all views: its symbols, the built part of its history, dirty buckets and
-- the age of its newest row.
SELECT v.name, v.version, v.every, v.description, v.columns, v.sources, v.look_back, v.state, v.error, v.served,
       v.applied_at, v.built_at, s.symbols, s.buckets, s.unbuilt, s.dirty, s.dirty_age,
       feature_platform.view_lag(v) AS lag
  FROM feature_platform.feature_view v
 CROSS JOIN LATERAL feature_platform.view_progress(v) AS s
 WHERE %(name)s::text IS NULL OR v.name = %(name)s
 ORDER BY v.name, v.version;

-- views_compiled --
-- The SQL of the newest version of a view.
SELECT compiled FROM feature_platform.feature_view WHERE name = %(name)s ORDER BY version DESC LIMIT 1;

-- views_refreshable --
-- The versions to refresh.
SELECT id, name FROM feature_platform.feature_view WHERE state <> 'failed' ORDER BY id;

-- views_slice --
-- Bring one slice of a version up to date, in a window whose ends are rounded up to its buckets.
SELECT s.symbols, s.rows_written, s.more
  FROM feature_platform.feature_view v
 CROSS JOIN LATERAL feature_platform.view_slice(
       v.id, feature_platform.view_from(v, %(start)s::timestamptz),
       least(feature_platform.view_from(v, %(end)s::timestamptz), feature_platform.view_due(v.every, v.origin)),
       slice_rows => 2 * feature_platform.view_slice_rows(v)) AS s
 WHERE v.id = %(id)s;

-- views_serve_complete --
-- Let a complete version take its name; whether one did.
SELECT feature_platform.serve_complete_views();

-- views_bar_symbols --
-- How many symbols have bars, and some of them.
SELECT (SELECT count(*) FROM feature_platform.bar_symbol) AS symbols,
       ARRAY(SELECT symbol FROM feature_platform.bar_symbol LIMIT %(most)s) AS sample;

-- views_sample_prepare --
-- Mark the newest buckets of some symbols dirty, in the transaction of a measurement.
INSERT INTO feature_platform.view_symbol (view, symbol, first_bucket, dirty)
SELECT v.id, s.symbol, date_bin(v.every, first.ts, v.origin),
       tstzmultirange(tstzrange(date_bin(v.every, newest.ts, v.origin) - 8 * v.every,
                                date_bin(v.every, newest.ts, v.origin) + v.every))
  FROM feature_platform.feature_view v
 CROSS JOIN unnest(%(symbols)s::text[]) AS s (symbol)
 CROSS JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first
 CROSS JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1) AS newest
 WHERE v.id = %(id)s;

-- views_sample_refresh --
-- Refresh the dirty buckets of some symbols, in the transaction of a measurement.
SELECT written FROM feature_platform.refresh_view_symbols(%(id)s, %(symbols)s, tstzrange(NULL, 'infinity'), 1000000);

-- views_sample_newest --
-- Make the newest bucket dirty once more.
SELECT feature_platform.dirty_newest_bucket(%(id)s);

-- views_aggregate --
-- The fault of an aggregate of a view; NULL where it may be used. Always one row.
SELECT CASE WHEN count(*) = 0 THEN 'does not exist for double precision'
                                   || CASE WHEN %(ordered)s THEN ' with a fraction' ELSE '' END
            ELSE min(CASE
                WHEN p.prorettype NOT IN ('float8'::regtype, 'float4'::regtype, 'numeric'::regtype, 'int8'::regtype,
                                          'int4'::regtype, 'int2'::regtype, 'anyelement'::regtype)
                THEN 'does not give a number'
                WHEN EXISTS (SELECT FROM pg_proc q
                              WHERE q.oid IN (a.aggtransfn, a.aggfinalfn, a.aggserialfn, a.aggdeserialfn,
                                              a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
                                AND q.provolatile <> 'i')
                THEN 'is not immutable'
                WHEN EXISTS (SELECT FROM pg_proc q JOIN pg_roles r ON r.oid = q.proowner
                              WHERE q.oid IN (p.oid, a.aggtransfn, a.aggfinalfn) AND NOT r.rolsuper
                                AND NOT pg_has_role(current_user, r.oid, 'MEMBER'))
                THEN 'belongs to another role, which could change it' END) END AS fault
  FROM pg_proc p JOIN pg_aggregate a ON a.aggfnoid = p.oid
 WHERE p.pronamespace = to_regnamespace(quote_ident(%(schema)s)) AND p.proname = %(name)s
   AND (a.aggkind = 'o') = %(ordered)s
   AND p.proargtypes[p.pronargs - 1] IN ('float8'::regtype, 'anyelement'::regtype)
   AND p.pronargs = CASE WHEN %(ordered)s THEN 2 ELSE 1 END
   AND (NOT %(ordered)s OR p.proargtypes[0] = 'float8'::regtype);


-- ==== views/verify.py ====
-- views_to_verify --
-- The versions to verify.
SELECT id, name, every, columns FROM feature_platform.feature_view WHERE served AND state <> 'failed' ORDER BY name;

-- views_verify_span --
-- From which bucket on a symbol has or should have rows of a version, the end of its closed buckets, and of all rows.
SELECT first_bucket, closed, greatest(last_bucket, newest_row) AS last
  FROM feature_platform.view_span(%(id)s, %(symbol)s);

-- views_compare --
-- Recompute the rows of a symbol by plain window functions over the bars, and compare them with the stored ones bit for
-- bit, in one snapshot. A row that differs is pending where it is dirty, or where a change is not processed yet, whose
-- reach is unknown: then all later rows of the symbol may be. Columns of a view never begin with an underscore.
WITH span AS MATERIALIZED (
    SELECT {plain_from}(%(symbol)s, %(start)s::timestamptz) AS read_from,
           (SELECT date_bin(v.every, b.ts, v.origin) FROM public.ohlcv_1m b
             WHERE b.symbol = %(symbol)s ORDER BY b.ts LIMIT 1) AS first, v.every, v.origin,
           feature_platform.view_due(v.every, v.origin) AS closed,
           greatest(%(start)s::timestamptz, feature_platform.features_from()) AS start
      FROM feature_platform.feature_view v WHERE v.id = %(id)s
), expected AS MATERIALIZED (
    SELECT _e.* FROM span
     CROSS JOIN LATERAL {plain}(%(symbol)s, span.read_from, %(end)s::timestamptz, span.first) AS _e
     WHERE _e.bucket >= span.start AND _e.bucket < least(%(end)s::timestamptz, span.closed)
), stored AS MATERIALIZED (
    SELECT bucket, {columns} FROM {view}
     WHERE symbol = %(symbol)s AND bucket >= (SELECT start FROM span) AND bucket < %(end)s::timestamptz
), compared AS MATERIALIZED (
    SELECT coalesce(_s.bucket, _e.bucket) AS bucket, to_jsonb(_s) AS stored, to_jsonb(_e) AS expected
      FROM stored _s FULL JOIN expected _e ON _s.bucket = _e.bucket
     WHERE _s.bucket IS NULL OR _e.bucket IS NULL
        OR ({stored_bits}) IS DISTINCT FROM ({expected_bits})
), judged AS MATERIALIZED (
    SELECT c.*, c.bucket < span.closed AND (
           EXISTS (SELECT FROM feature_platform.view_symbol s
                    WHERE s.view = %(id)s AND s.symbol = %(symbol)s AND s.dirty @> c.bucket)
           OR EXISTS (SELECT FROM feature_platform.view_change n
                       WHERE n.symbol = %(symbol)s AND c.bucket >= date_bin(span.every, lower(n.changed), span.origin)
                         AND n.id > coalesce((SELECT s.processed FROM feature_platform.view_symbol s
                                               WHERE s.view = %(id)s AND s.symbol = %(symbol)s), 0))
           OR EXISTS (SELECT FROM feature_platform.dirty_log l
                       WHERE l.symbol = %(symbol)s AND NOT l.reach_known
                         AND c.bucket >= date_bin(span.every, lower(l.buckets), span.origin))) AS pending
      FROM compared c CROSS JOIN span
)
SELECT (SELECT count(*) FROM stored) AS rows_checked,
       count(*) FILTER (WHERE pending) AS pending, count(*) FILTER (WHERE NOT pending) AS mismatches,
       coalesce((SELECT jsonb_agg(x ORDER BY x.bucket)
                   FROM (SELECT bucket, stored, expected FROM judged WHERE NOT pending
                          ORDER BY bucket LIMIT %(show)s) AS x), '[]') AS examples
  FROM judged;


-- ==== views/checks.py ====
-- views_check_newest --
-- The symbols without a row of their newest bucket with bars that closed some time ago.
SELECT k.symbol, newest.bucket
  FROM feature_platform.feature_view v
 CROSS JOIN feature_platform.bar_symbol k
 CROSS JOIN LATERAL (
       SELECT date_bin(v.every, b.ts, v.origin) AS bucket FROM public.ohlcv_1m b
        WHERE b.symbol = k.symbol AND b.ts < feature_platform.view_due(v.every, v.origin, %(settle)s::interval)
        ORDER BY b.ts DESC LIMIT 1) AS newest
 WHERE v.name = %(name)s AND v.served AND newest.bucket >= feature_platform.features_from()
   AND NOT EXISTS (SELECT FROM {view} f WHERE f.symbol = k.symbol AND f.bucket = newest.bucket)
 ORDER BY k.symbol LIMIT 1000;

-- views_check_nulls --
-- One row for each symbol: the number of values of each column in its newest 100 rows. A symbol whose warm-up ended
-- later than its oldest row of these has no row.
SELECT k.symbol AS _symbol, n.*
  FROM feature_platform.feature_view v
 CROSS JOIN feature_platform.bar_symbol k
 CROSS JOIN LATERAL (
       SELECT date_bin(v.every, b.ts, v.origin) AS bucket FROM public.ohlcv_1m b
        WHERE b.symbol = k.symbol ORDER BY b.ts LIMIT 1) AS first
 CROSS JOIN LATERAL (
       SELECT count(*) AS _rows, min(bucket) AS _oldest, {counts}
         FROM (SELECT * FROM {view} f WHERE f.symbol = k.symbol ORDER BY f.bucket DESC LIMIT 100) AS newest) AS n
 WHERE v.name = %(name)s AND v.served AND n._rows = 100
   AND n._oldest > first.bucket + v.warm_up + v.look_back
 ORDER BY k.symbol LIMIT 1000;


-- ==== lake/history.py ====
-- history_version --
-- The version of a view whose history is being computed.
SELECT id, every, look_back FROM feature_platform.feature_view
 WHERE name = %(name)s AND state = 'building' ORDER BY version DESC LIMIT 1;

-- history_lock --
-- Keep the list of views from changes until the end of the transaction, as a refresh does.
LOCK TABLE feature_platform.view_lock IN ROW SHARE MODE;

-- history_lock_symbol --
-- Keep refreshes from a symbol until the end of the transaction.
SELECT FROM feature_platform.refresh_lock k WHERE k.stripe = feature_platform.stripe_of(%(symbol)s) FOR UPDATE;

-- history_locked --
-- The dirty buckets of a locked symbol in a slice that have no rows, and from when on these need bars. No row where the
-- version is gone, or older buckets may have rows without bars.
SELECT date_bin(v.every, f.ts, v.origin) AS first,
       s.dirty * tstzmultirange(tstzrange(%(start)s, least(%(end)s, feature_platform.view_due(v.every, v.origin))))
       - coalesce((SELECT range_agg(tstzrange(r.bucket, r.bucket + v.every)) FROM {rows} r
                    WHERE r.symbol = s.symbol AND r.bucket >= %(start)s AND r.bucket < %(end)s), '{{}}') AS dirty,
       {start}(s.symbol, %(start)s::timestamptz) AS needs_from
  FROM feature_platform.feature_view v
  JOIN feature_platform.view_symbol s ON s.view = v.id AND s.symbol = %(symbol)s
 CROSS JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS f
 WHERE v.id = %(id)s AND v.state = 'building' AND NOT s.removed
   AND (s.first_bucket IS NULL OR s.first_bucket = date_bin(v.every, f.ts, v.origin));

-- history_bars --
-- The bars of a symbol, to compare them with those of a build.
COPY (SELECT ts, open, high, low, close, vol FROM public.ohlcv_1m
       WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s ORDER BY ts) TO STDOUT (FORMAT binary);

-- history_unchanged --
-- The dirty buckets that no changed bar reaches.
SELECT %(dirty)s::tstzmultirange - {reach}(
           %(symbol)s, %(changed)s::tstzmultirange,
           (SELECT date_bin(v.every, greatest(b.ts, %(end)s), v.origin) FROM public.ohlcv_1m b
             WHERE b.symbol = %(symbol)s ORDER BY b.ts DESC LIMIT 1))
  FROM feature_platform.feature_view v WHERE v.id = %(id)s;

-- history_refresh --
-- Draw the number of the refresh that stores the rows.
SELECT feature_platform.next_refresh();

-- history_copy --
-- Store rows.
COPY {table} ({columns}) FROM STDIN (FORMAT csv);

-- history_settle --
-- Take stored rows from the dirty buckets of a symbol. The warm-up of its rows counts from its first bucket.
UPDATE feature_platform.view_symbol s
   SET dirty = d.rest, long_only = s.long_only * d.rest, first_bucket = date_bin(v.every, f.ts, v.origin),
       newest_tick = CASE WHEN s.first_bucket IS NULL THEN
                         (SELECT max(b.ts) FROM public.ohlcv_1m b WHERE b.symbol = %(symbol)s
                             AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00'))
                     ELSE s.newest_tick END,
       no = %(no)s,
       building = s.building AND d.rest && tstzrange(NULL, feature_platform.view_due(v.every, v.origin)),
       marked_at = CASE WHEN d.rest <> '{}' THEN s.marked_at END,
       before_no = CASE WHEN d.rest <> '{}' THEN coalesce(s.before_no, s.no) END
  FROM feature_platform.feature_view v
 CROSS JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = %(symbol)s ORDER BY b.ts LIMIT 1) AS f
 CROSS JOIN LATERAL (SELECT w.dirty - %(stored)s::tstzmultirange AS rest FROM feature_platform.view_symbol w
                      WHERE w.view = v.id AND w.symbol = %(symbol)s) AS d
 WHERE v.id = %(id)s AND s.view = v.id AND s.symbol = %(symbol)s;
