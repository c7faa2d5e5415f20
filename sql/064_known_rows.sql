-- The rows of a feature view as they would have been known before the view was built: computed from the bars as they
-- were. Rows of later times are in the view's table of versions, and so are those of imports that are known at close.
-- A row is known from the first refresh of any symbol after the close of its bucket on.

-- The changes of a symbol's bars with lo <= ts < hi, each with the refresh that brought it.
CREATE OR REPLACE FUNCTION feature_platform.numbered_changes(of_symbol text, lo timestamptz, hi timestamptz)
    RETURNS TABLE (ts timestamptz, no bigint)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET enable_nestloop = on
    SET jit = off
AS $$
DECLARE
    begins CONSTANT bigint := coalesce((SELECT f.no FROM feature_platform.knowledge_floor f
                                        WHERE f.symbol = of_symbol), 0);
BEGIN
    RETURN QUERY
    SELECT h.ts, r.no
    FROM feature_platform.bar_history h
    JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
    WHERE h.symbol = of_symbol AND h.ts >= lo AND h.ts < hi
    UNION
    SELECT k.ts, k.no FROM feature_platform.bar_known k
    WHERE k.symbol = of_symbol AND k.ts >= lo AND k.ts < hi
    UNION
    SELECT v.bucket, greatest(min(v.since), begins)     -- the creation of a row, as in bars_as_of
    FROM (SELECT f.bucket, f.refresh_no AS since FROM public.features_1m f
          WHERE f.symbol = of_symbol AND f.bucket >= lo AND f.bucket < hi
          UNION ALL
          SELECT h.bucket, h.since FROM feature_platform.features_1m_history h
          WHERE h.symbol = of_symbol AND h.bucket >= lo AND h.bucket < hi AND h.until > begins) AS v
    GROUP BY v.bucket;
END
$$;
COMMENT ON FUNCTION feature_platform.numbered_changes(text, timestamptz, timestamptz) IS
    'The changes of a symbol''s bars, each with the refresh that brought it.';

-- The same, and since when each is known. Changes from before numbers were counted have been known at all times.
-- `infinity`: the time is not noted yet.
CREATE OR REPLACE FUNCTION feature_platform.bar_changes(of_symbol text, lo timestamptz, hi timestamptz)
    RETURNS TABLE (ts timestamptz, no bigint, known_by timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET enable_nestloop = on
    SET jit = off
BEGIN ATOMIC
    SELECT c.ts, c.no, CASE WHEN c.no = 0 THEN '-infinity' ELSE coalesce(r.known_by, 'infinity') END
    FROM feature_platform.numbered_changes(of_symbol, lo, hi) AS c
    LEFT JOIN feature_platform.refresh r ON r.no = c.no;
END;
COMMENT ON FUNCTION feature_platform.bar_changes(text, timestamptz, timestamptz) IS
    'The changes of a symbol''s bars, and since when each is known.';

-- The changes of a symbol's bars in [lo, hi) that were known only `delay` after the close of their own bucket: of each
-- its bucket, and since when it is known.
CREATE OR REPLACE FUNCTION feature_platform.late_changes(
    v feature_platform.feature_view, of_symbol text, lo timestamptz, hi timestamptz, delay interval)
    RETURNS TABLE (bucket timestamptz, known_by timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT DISTINCT b.bucket, c.known_by
    FROM feature_platform.bar_changes(of_symbol, lo, hi) AS c
    CROSS JOIN LATERAL (SELECT date_bin(v.every, c.ts, v.origin)) AS b (bucket)
    WHERE c.known_by > b.bucket + v.every + delay;
END;
COMMENT ON FUNCTION feature_platform.late_changes(
    feature_platform.feature_view, text, timestamptz, timestamptz, interval) IS
    'The changes of bars that were known only some time after the close of their bucket.';

-- The number of a refresh as of which the bars of a symbol with lo <= ts < hi are those that were known at a time. Of
-- one symbol no number is known before a smaller one; those of other symbols do not matter.
CREATE OR REPLACE FUNCTION feature_platform.number_at(
    of_symbol text, lo timestamptz, hi timestamptz, moment timestamptz) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known CONSTANT record := feature_platform.known_at(moment);
BEGIN
    IF known.late <> '{}' THEN
        RETURN least(known.upto, (SELECT min(c.no) - 1 FROM feature_platform.bar_changes(of_symbol, lo, hi) AS c
                                  WHERE c.no = ANY (known.late)));
    END IF;
    RETURN known.upto;
END
$$;
COMMENT ON FUNCTION feature_platform.number_at(text, timestamptz, timestamptz, timestamptz) IS
    'The number of a refresh as of which the bars of a symbol are those that were known at a time.';

-- Whether a refresh was noted between a time and `delay` after it.
CREATE OR REPLACE FUNCTION feature_platform.is_refreshed(since timestamptz, delay interval) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM feature_platform.refresh r WHERE r.known_by >= since AND r.known_by <= since + delay);
COMMENT ON FUNCTION feature_platform.is_refreshed(timestamptz, interval) IS
    'Whether a refresh was noted between a time and some time after it.';

-- The end of the buckets that had closed at a time: at the last refresh before it, of any symbol.
CREATE OR REPLACE FUNCTION feature_platform.closed_at(v feature_platform.feature_view, moment timestamptz)
    RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN date_bin(v.every, (SELECT r.known_by FROM feature_platform.refresh r WHERE r.known_by <= moment
                              ORDER BY r.known_by DESC LIMIT 1), v.origin);
COMMENT ON FUNCTION feature_platform.closed_at(feature_platform.feature_view, timestamptz) IS
    'The end of the buckets of a view that had closed at the last refresh before a time.';

-- The first bar that a row may need; the first of all where gaps lengthen the look-back.
CREATE OR REPLACE FUNCTION feature_platform.bars_needed_from(v feature_platform.feature_view, bucket timestamptz)
    RETURNS timestamptz
    LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN v.has_rows THEN '-infinity' ELSE bucket - v.look_back - v.every END;
COMMENT ON FUNCTION feature_platform.bars_needed_from(feature_platform.feature_view, timestamptz) IS
    'The first bar that a row of a view may need.';

-- The rows of a symbol with lo <= bucket < hi as they were known at a time. Each value is that of a column, in the
-- order of feature_view.columns.
CREATE OR REPLACE FUNCTION feature_platform.known_rows_at(
    of_view integer, of_symbol text, lo timestamptz, hi timestamptz, moment timestamptz)
    RETURNS TABLE (bucket timestamptz, "values" double precision[])
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
    first_row timestamptz;
    after_last timestamptz;
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    first_row := feature_platform.view_from(v, lo);
    after_last := least(feature_platform.view_from(v, hi), feature_platform.closed_at(v, moment));
    RETURN QUERY SELECT * FROM feature_platform.plain_rows_as_of(
        v, of_symbol, first_row, after_last,
        feature_platform.number_at(of_symbol, feature_platform.bars_needed_from(v, first_row), after_last, moment));
END
$$;
COMMENT ON FUNCTION feature_platform.known_rows_at(integer, text, timestamptz, timestamptz, timestamptz) IS
    'The rows of a feature view as they were known at a time before it was built.';

-- Raise an error where nothing is known any more of a symbol's bars as of a number.
CREATE OR REPLACE FUNCTION feature_platform.check_bars_known(
    v feature_platform.feature_view, of_symbol text, bucket timestamptz, number bigint) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    begins CONSTANT bigint := (SELECT f.no FROM feature_platform.knowledge_floor f WHERE f.symbol = of_symbol);
BEGIN
    IF number < begins THEN
        RAISE EXCEPTION '% had other rows of % at %, which cannot be computed any more: its bars were truncated or'
            ' forgotten by %', v.name, quote_literal(of_symbol), bucket,
            (SELECT r.known_by FROM feature_platform.refresh r WHERE r.no >= begins ORDER BY r.no LIMIT 1);
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.check_bars_known(feature_platform.feature_view, text, timestamptz, bigint) IS
    'Raises an error where nothing is known any more of a symbol''s bars as of the number of a refresh.';

-- The rows of a symbol with lo <= bucket < hi, computed from the bars as of a number. lo and hi are starts of buckets.
-- It is an error where versions of these bars are not kept.
CREATE OR REPLACE FUNCTION feature_platform.plain_rows_as_of(
    v feature_platform.feature_view, of_symbol text, lo timestamptz, hi timestamptz, number bigint)
    RETURNS TABLE (bucket timestamptz, "values" double precision[])
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    history_from CONSTANT timestamptz := feature_platform.history_from();
    needed timestamptz;
BEGIN
    IF lo < hi THEN
        PERFORM feature_platform.check_bars_known(v, of_symbol, lo, number);
        IF history_from > '-infinity' THEN
            EXECUTE format('SELECT feature_views.%I($1, $2, $3)', 'v' || v.id || '_plain_from_as_of') INTO needed
                USING of_symbol, lo, number;
            IF needed < history_from THEN
                RAISE EXCEPTION '% had other rows of % at %, which cannot be computed any more: versions of bars are'
                    ' kept since %', v.name, quote_literal(of_symbol), lo, history_from;
            END IF;
        END IF;
        RETURN QUERY EXECUTE format(
            'SELECT e.bucket, ARRAY[%1$s]::double precision[]
             FROM feature_views.%2$I($1, feature_views.%3$I($1, $2, $4), $3,
                                     date_bin($5, feature_platform.first_bar_as_of($1, $4), $6), $4) AS e
             WHERE e.bucket >= $2',
            (SELECT string_agg('e.' || quote_ident(c.name), ', ' ORDER BY c.place)
             FROM unnest(v.columns) WITH ORDINALITY AS c (name, place)),
            'v' || v.id || '_plain_as_of', 'v' || v.id || '_plain_from_as_of')
            USING of_symbol, lo, hi, number, v.every, v.origin;
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.plain_rows_as_of(
    feature_platform.feature_view, text, timestamptz, timestamptz, bigint) IS
    'The rows of a feature view, computed from the bars as of the number of a refresh.';

-- The buckets of a symbol whose bars all came with imports that are known at close. Their rows are in the table of
-- versions.
CREATE OR REPLACE FUNCTION feature_platform.imported_buckets(v feature_platform.feature_view, of_symbol text)
    RETURNS tstzmultirange
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(range_agg(tstzrange(b.lo, b.hi)) FILTER (WHERE b.lo < b.hi), '{}')
    FROM (SELECT range_agg(k.minutes) AS minutes FROM feature_platform.known_at_close k
          WHERE k.view = v.id AND k.symbol = of_symbol) AS i
    CROSS JOIN LATERAL unnest(i.minutes) AS r
    CROSS JOIN LATERAL (SELECT feature_platform.view_from(v, lower(r)),
                               date_bin(v.every, upper(r), v.origin)) AS b (lo, hi);
END;
COMMENT ON FUNCTION feature_platform.imported_buckets(feature_platform.feature_view, text) IS
    'The buckets of a symbol whose bars all came with imports that are known at close.';

-- The buckets of rows that late changes reach: from the bucket of each change on, as far as the look-back of the view,
-- and unless the change was known `delay` after the close of the row's bucket.
CREATE OR REPLACE FUNCTION feature_platform.rows_reached(
    v feature_platform.feature_view, late_buckets timestamptz[], late_known timestamptz[], delay interval)
    RETURNS tstzmultirange
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT coalesce(range_agg(tstzrange(c.bucket, least(c.known_by - v.every - delay, CASE WHEN NOT v.has_rows
                                                                THEN c.bucket + v.look_back + v.every END))), '{}')
            FROM unnest(late_buckets, late_known) AS c (bucket, known_by));
COMMENT ON FUNCTION feature_platform.rows_reached(
    feature_platform.feature_view, timestamptz[], timestamptz[], interval) IS
    'The buckets of rows that late changes reach.';

-- The buckets whose warm-up was another one as of a number, because the first bar was another one.
CREATE OR REPLACE FUNCTION feature_platform.rows_of_moved_warm_up(
    v feature_platform.feature_view, of_symbol text, number bigint) RETURNS tstzmultirange
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first timestamptz := (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = of_symbol ORDER BY b.ts LIMIT 1);
    first_then timestamptz;
BEGIN
    -- The retention deletes the versions of old bars, and moves no warm-up.
    IF first < feature_platform.history_from() THEN
        RETURN '{}';
    END IF;
    first := date_bin(v.every, first, v.origin);
    first_then := date_bin(v.every, feature_platform.first_bar_as_of(of_symbol, number), v.origin);
    IF first_then IS NOT DISTINCT FROM first THEN
        RETURN '{}';
    END IF;
    RETURN tstzmultirange(tstzrange(
        NULL, greatest(coalesce(first_then, 'infinity'), first) + v.warm_up + v.every));
END
$$;
COMMENT ON FUNCTION feature_platform.rows_of_moved_warm_up(feature_platform.feature_view, text, bigint) IS
    'The buckets of rows whose warm-up was another one as of the number of a refresh.';

-- The rows of a symbol with lo <= bucket < hi, each as it was known `delay` after the close of its bucket.
--
-- A late change reaches the rows from its own bucket on that had closed before it was known, at most as far as the
-- view's look-back. All other rows are the stored ones. Rows between two times at which late changes became known are
-- computed together, from the bars that were known at the last of them.
CREATE OR REPLACE FUNCTION feature_platform.known_rows_after(
    of_view integer, of_symbol text, lo timestamptz, hi timestamptz, delay interval)
    RETURNS TABLE (bucket timestamptz, "values" double precision[])
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
    first_row timestamptz;
    after_last timestamptz;
    start timestamptz;
    imported tstzmultirange;
    late_buckets timestamptz[];     -- the late changes: the bucket of each, and since when it is known
    late_known timestamptz[];
    reached tstzmultirange;
    part record;
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    first_row := feature_platform.view_from(v, lo);
    after_last := feature_platform.view_from(v, hi);
    IF first_row >= after_last THEN     -- the view was built before the close of all these buckets
        RETURN;
    END IF;
    imported := feature_platform.imported_buckets(v, of_symbol);
    EXECUTE format('SELECT feature_views.%I($1, $2)', 'v' || v.id || '_plain_from') INTO start
        USING of_symbol, first_row;
    SELECT array_agg(c.bucket), array_agg(c.known_by) INTO late_buckets, late_known
    FROM feature_platform.late_changes(v, of_symbol, start, after_last, delay) AS c;
    reached := feature_platform.rows_reached(v, late_buckets, late_known, delay);
    -- Older bars that became known later have moved the warm-up.
    reached := reached + feature_platform.rows_of_moved_warm_up(
        v, of_symbol, feature_platform.number_at(of_symbol, start, after_last, first_row + v.every + delay));
    reached := reached * tstzmultirange(tstzrange(first_row, after_last)) - imported;

    RETURN QUERY EXECUTE format(
        'SELECT f.bucket, ARRAY[%s]::double precision[] FROM feature_views.%I f
         WHERE f.symbol = $1 AND f.bucket >= $2 AND f.bucket < $3 AND NOT $4 @> f.bucket
           AND feature_platform.is_refreshed(f.bucket + $5, $6) AND NOT $7 @> f.bucket',
        (SELECT string_agg('f.' || quote_ident(c.name), ', ' ORDER BY c.place)
         FROM unnest(v.columns) WITH ORDINALITY AS c (name, place)), 'v' || v.id || '_rows')
        USING of_symbol, first_row, after_last, reached, v.every, delay, imported;

    FOR part IN
        WITH change AS MATERIALIZED (
            SELECT DISTINCT c.known_by - v.every - delay AS until FROM unnest(late_known) AS c (known_by)
        ), bound AS (
            -- Between two bounds the rows of a range were known with the same late changes.
            SELECT lower(r) AS at, upper(r) AS ends FROM unnest(reached) AS r
            UNION
            SELECT feature_platform.view_from(v, c.until), upper(r)
            FROM unnest(reached) AS r JOIN change c ON r @> c.until
        )
        SELECT b.at AS lo, coalesce(lead(b.at) OVER (PARTITION BY b.ends ORDER BY b.at), b.ends) AS hi FROM bound b
    LOOP
        RETURN QUERY SELECT p.* FROM feature_platform.plain_rows_as_of(
            v, of_symbol, feature_platform.view_from(v, part.lo), feature_platform.view_from(v, part.hi),
            feature_platform.number_at(
                of_symbol, greatest(start, feature_platform.bars_needed_from(v, part.lo)),
                feature_platform.view_from(v, part.hi), feature_platform.view_from(v, part.hi) + delay)) AS p
        WHERE feature_platform.is_refreshed(p.bucket + v.every, delay);
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.known_rows_after(integer, text, timestamptz, timestamptz, interval) IS
    'The rows of a feature view of before it was built, each as it was known some time after the close of its bucket.';

-- For some times, in order: the newest row of a symbol that was known then, if its bucket is after `afters`. `place`
-- is the place of the time, from 1. A time without such a row has none here. Imported buckets are skipped.
--
-- A row that is reached by no change that was unknown at the time is the stored one. The others are computed, together
-- for times between which no change became known that one of them does not know. So the number of computations is at
-- most that of the times, and at most that of such changes.
CREATE OR REPLACE FUNCTION feature_platform.known_rows_of(
    of_view integer, of_symbol text, times timestamptz[], afters timestamptz[])
    RETURNS TABLE (place bigint, bucket timestamptz, "values" double precision[])
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on
    SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    tick CONSTANT interval := '1 microsecond';
    v feature_platform.feature_view;
    shown text;                     -- the values of a row
    first_time timestamptz;         -- the first one after a refresh
    first_end timestamptz;          -- of the first and of the last time: the end of the buckets that had closed
    last_end timestamptz;
    first_row timestamptz;
    start timestamptz;
    imported tstzmultirange;
    reached tstzmultirange;
    changed_buckets timestamptz[];  -- the changes: the bucket of each, and since when it is known
    changed_known timestamptz[];
    found record;                   -- the times whose row is stored, and the others; `ends` are after their rows
    part record;
    number bigint;
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    shown := (SELECT string_agg('f.' || quote_ident(c.name), ', ' ORDER BY c.place)
              FROM unnest(v.columns) WITH ORDINALITY AS c (name, place));
    first_time := (SELECT min(t) FROM unnest(times) AS t
                   WHERE t >= (SELECT min(r.known_by) FROM feature_platform.refresh r));
    IF first_time IS NULL THEN      -- all times are before the first refresh
        RETURN;
    END IF;
    first_end := feature_platform.closed_at(v, first_time);
    last_end := feature_platform.closed_at(v, times[cardinality(times)]);
    imported := feature_platform.imported_buckets(v, of_symbol);
    EXECUTE format('SELECT f.bucket FROM feature_views.%I f WHERE f.symbol = $1 AND f.bucket < $2
                    ORDER BY f.bucket DESC LIMIT 1', 'v' || v.id || '_rows')
        INTO first_row USING of_symbol, first_end - v.every;
    EXECUTE format('SELECT feature_views.%I($1, $2)', 'v' || v.id || '_plain_from') INTO start
        USING of_symbol, first_row;
    start := coalesce(start, '-infinity');
    SELECT array_agg(b.bucket), array_agg(c.known_by) INTO changed_buckets, changed_known
    FROM feature_platform.bar_changes(of_symbol, start, last_end) AS c
    CROSS JOIN LATERAL (SELECT date_bin(v.every, c.ts, v.origin)) AS b (bucket);
    -- Other changes of buckets before the newest one were known at the close of the newest one.
    SELECT feature_platform.rows_reached(v, array_agg(c.bucket), array_agg(c.known_by), '0') INTO reached
    FROM unnest(changed_buckets, changed_known) AS c (bucket, known_by)
    WHERE c.known_by > c.bucket + 2 * v.every;
    reached := reached + feature_platform.rows_of_moved_warm_up(
        v, of_symbol, feature_platform.number_at(of_symbol, start, last_end, first_time));

    EXECUTE format('
        WITH change AS MATERIALIZED (
            SELECT c.bucket, min(c.known_by) AS first, max(c.known_by) AS last
            FROM unnest($2, $3) AS c (bucket, known_by) GROUP BY c.bucket
        ), closed AS MATERIALIZED (
            SELECT t.place, t.time, t.after,
                   date_bin($6, (SELECT r.known_by FROM feature_platform.refresh r WHERE r.known_by <= t.time
                                 ORDER BY r.known_by DESC LIMIT 1), $7) AS ends
            FROM unnest($4, $5) WITH ORDINALITY AS t (time, after, place)
        ), own AS MATERIALIZED (
            SELECT c.place, c.time, c.after,
                   CASE WHEN $8 @> c.ends - $6
                        THEN (SELECT lower(r) FROM unnest($8) AS r WHERE r @> c.ends - $6) ELSE c.ends END AS ends
            FROM closed c
        ), searched AS MATERIALIZED (
            -- The newest bucket may have no bar that was known, or only some of its bars.
            SELECT o.*, CASE WHEN n.first > o.time THEN o.ends - $6 ELSE o.ends END AS until,
                   n.first <= o.time AND n.last > o.time AS is_partial
            FROM own o LEFT JOIN change n ON n.bucket = o.ends - $6
            WHERE o.after < o.ends - $6
        ), found AS MATERIALIZED (
            SELECT s.*, r.bucket
            FROM searched s
            LEFT JOIN LATERAL (SELECT f.bucket FROM feature_views.%I f
                               WHERE f.symbol = $1 AND f.bucket > s.after AND f.bucket < s.until
                               ORDER BY f.bucket DESC LIMIT 1) AS r ON true
        ), judged AS (
            SELECT f.*, coalesce(f.is_partial, false) OR coalesce(c.last > f.time, false)
                        OR $9 && tstzrange(coalesce(f.bucket, f.after), f.until) AS is_late
            FROM found f LEFT JOIN change c ON c.bucket = f.bucket
        )
        SELECT array_agg(j.place) FILTER (WHERE NOT j.is_late AND j.bucket IS NOT NULL) AS places,
               array_agg(j.bucket) FILTER (WHERE NOT j.is_late AND j.bucket IS NOT NULL) AS buckets,
               array_agg(j.place ORDER BY j.place) FILTER (WHERE j.is_late) AS late_places,
               array_agg(j.time ORDER BY j.place) FILTER (WHERE j.is_late) AS late_times,
               array_agg(j.until ORDER BY j.place) FILTER (WHERE j.is_late) AS late_ends,
               array_agg(j.after ORDER BY j.place) FILTER (WHERE j.is_late) AS late_afters
        FROM judged j', 'v' || v.id || '_rows')
        INTO found
        USING of_symbol, changed_buckets, changed_known, times, afters, v.every, v.origin, imported, reached;

    RETURN QUERY EXECUTE format(
        'SELECT w.place, f.bucket, ARRAY[%s]::double precision[]
         FROM unnest($2, $3) AS w (place, bucket)
         JOIN feature_views.%I f ON f.symbol = $1 AND f.bucket = w.bucket', shown, 'v' || v.id || '_rows')
        USING of_symbol, found.places, found.buckets;

    FOR part IN
        WITH given AS MATERIALIZED (
            SELECT array_agg(e.time ORDER BY e.time) AS times, array_agg(e.ends ORDER BY e.time) AS ends
            FROM unnest(found.late_times, found.late_ends) AS e (time, ends)
        ), change AS MATERIALIZED (
            SELECT array_agg(DISTINCT c.known_by ORDER BY c.known_by) AS times
            FROM unnest(changed_buckets, changed_known) AS c (bucket, known_by) CROSS JOIN given g
            WHERE width_bucket(c.known_by - tick, g.times) > width_bucket(c.bucket, g.ends)
        ), event AS (
            SELECT e.*, width_bucket(e.time, c.times) AS step
            FROM unnest(found.late_places, found.late_times, found.late_ends, found.late_afters)
                 AS e (place, time, ends, after)
            CROSS JOIN change c
        ), divided AS (
            -- A span without times that is longer than the look-back is not computed.
            SELECT e.*, count(*) FILTER (WHERE e.is_first) OVER (ORDER BY e.place) AS number
            FROM (SELECT o.*, o.step IS DISTINCT FROM lag(o.step) OVER w
                              OR o.ends - lag(o.ends) OVER w > v.look_back + v.every AS is_first
                  FROM event o WINDOW w AS (ORDER BY o.place)) AS e
        )
        SELECT array_agg(d.place) AS places, array_agg(d.ends) AS ends, array_agg(d.after) AS afters,
               min(d.ends) AS first_end, max(d.ends) AS last_end, min(d.after) AS after, max(d.time) AS last
        FROM divided d GROUP BY d.number
    LOOP
        number := feature_platform.number_at(of_symbol, start, part.last_end, part.last);
        PERFORM feature_platform.check_bars_known(v, of_symbol, part.first_end - v.every, number);
        first_row := feature_platform.bucket_before_as_of(of_symbol, part.first_end, 1, v.every, v.origin, number);
        RETURN QUERY
        WITH row AS MATERIALIZED (
            SELECT p.*, row_number() OVER (ORDER BY p.bucket) AS number
            FROM feature_platform.plain_rows_as_of(
                v, of_symbol, greatest(first_row, feature_platform.view_from(v, part.after + tick)),
                part.last_end, number) AS p
        ), list AS MATERIALIZED (
            SELECT array_agg(r.bucket ORDER BY r.bucket) AS buckets FROM row r
        )
        SELECT e.place, r.bucket, r.values
        FROM unnest(part.places, part.ends, part.afters) AS e (place, ends, after)
        CROSS JOIN list l
        JOIN row r ON r.number = width_bucket(e.ends - tick, l.buckets)
        WHERE r.bucket > e.after AND NOT imported @> r.bucket;
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.known_rows_of(integer, text, timestamptz[], timestamptz[]) IS
    'The newest rows of a feature view that were known at some times before it was built.';

-- Store the versions that rows of imports would have if the view had existed at the import, where later changes reach
-- them. The refresh `of_refresh` has just computed these rows, from bars that have these changes. Their flags get the
-- number of the import's refresh of features_1m, so that they hold for the first versions only. Where the versions
-- cannot be computed any more, or are too many, the rows lose their flags: they are known since they were computed.
CREATE OR REPLACE FUNCTION feature_platform.keep_imported_versions(
    v feature_platform.feature_view, picked text[], of_refresh bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    most CONSTANT integer := 100;   -- refreshes that changed the bars of a range
    history_from CONSTANT timestamptz := feature_platform.history_from();
    names CONSTANT text := (SELECT string_agg(quote_ident(c), ', ' ORDER BY place)
                            FROM unnest(v.columns) WITH ORDINALITY AS u (c, place));
    shown CONSTANT text := (SELECT string_agg(format('p."values"[%s]', place), ', ' ORDER BY place)
                            FROM generate_subscripts(v.columns, 1) AS place);
    part record;
    start timestamptz;
    has_moved boolean;          -- whether the first bar was another one as of the import
    numbers bigint[];           -- the refreshes that changed the bars, and the rows that each of them reaches
    reaches tstzmultirange[];
    reached tstzmultirange;
BEGIN
    FOR part IN
        WITH import AS MATERIALIZED (
            SELECT k.id, k.symbol, k.minutes AS flagged, i.no, i.minutes, tstzrange(b.lo, b.hi) AS buckets
            FROM feature_platform.known_at_close k
            JOIN feature_platform.known_at_close i ON i.view = 0 AND i.symbol = k.symbol AND i.minutes && k.minutes
            CROSS JOIN LATERAL unnest(k.minutes * i.minutes) AS r
            CROSS JOIN LATERAL (SELECT feature_platform.view_from(v, lower(r)),
                                       date_bin(v.every, upper(r), v.origin)) AS b (lo, hi)
            WHERE k.view = v.id AND k.symbol = ANY (picked) AND k.no = of_refresh AND b.lo <= b.hi
        ), part AS (
            SELECT i.id, i.symbol, i.no, i.buckets FROM import i
            UNION ALL   -- buckets with bars of several imports
            SELECT o.id, o.symbol, (SELECT max(i.no) FROM import i WHERE i.id = o.id AND i.minutes && r), r
            FROM (SELECT i.id, i.symbol, i.flagged - range_agg(i.buckets) AS minutes
                  FROM import i GROUP BY i.id, i.symbol, i.flagged) AS o
            CROSS JOIN LATERAL unnest(o.minutes) AS r
        )
        SELECT p.id, p.symbol, p.no, lower(p.buckets) AS lo, upper(p.buckets) AS hi, tstzmultirange(p.buckets) AS whole
        FROM part p WHERE p.no < of_refresh AND NOT isempty(p.buckets)
    LOOP
        EXECUTE format('SELECT feature_views.%I($1, $2)', 'v' || v.id || '_plain_from') INTO start
            USING part.symbol, part.lo;
        has_moved := feature_platform.rows_of_moved_warm_up(v, part.symbol, part.no) && part.whole;
        SELECT array_agg(m.no ORDER BY m.no), array_agg(m.reach ORDER BY m.no), range_agg(m.reach)
        INTO numbers, reaches, reached
        FROM (SELECT c.no, feature_platform.rows_reached(
                         v, array_agg(b.bucket), array_agg(timestamptz 'infinity'), '0') AS rows
              FROM feature_platform.numbered_changes(
                  part.symbol, CASE WHEN has_moved THEN '-infinity' ELSE coalesce(start, '-infinity') END, part.hi) AS c
              CROSS JOIN LATERAL (SELECT date_bin(v.every, c.ts, v.origin)) AS b (bucket)
              WHERE c.no > part.no AND c.no < of_refresh
                -- Slices of a large import have several numbers, the newest minutes the first one.
                AND NOT EXISTS (SELECT FROM feature_platform.known_at_close i
                                WHERE i.view = 0 AND i.symbol = part.symbol AND i.minutes @> c.ts AND i.no >= c.no)
              GROUP BY c.no) AS change
        CROSS JOIN LATERAL (
            SELECT change.no, part.whole * CASE WHEN has_moved THEN change.rows
                + feature_platform.rows_of_moved_warm_up(v, part.symbol, change.no - 1) ELSE change.rows END
        ) AS m (no, reach)
        WHERE m.reach <> '{}';
        CONTINUE WHEN numbers IS NULL;

        UPDATE feature_platform.known_at_close k SET minutes = k.minutes - reached WHERE k.id = part.id;
        EXECUTE format('SELECT feature_views.%I($1, $2, $3)', 'v' || v.id || '_plain_from_as_of') INTO start
            USING part.symbol, lower(reached), part.no;
        CONTINUE WHEN cardinality(numbers) > most OR start < history_from
                 OR part.no < (SELECT f.no FROM feature_platform.knowledge_floor f WHERE f.symbol = part.symbol);
        INSERT INTO feature_platform.known_at_close (view, symbol, minutes, no)
        VALUES (v.id, part.symbol, reached, part.no);
        -- Each version lasts to the next change that reaches the row, the last one to this refresh.
        EXECUTE format(
            'INSERT INTO feature_views.%I (symbol, bucket, %s, since, until)
             SELECT $2, p.bucket, %s,
                    coalesce((SELECT max(b.no) FROM unnest($3, $4) AS b (no, reach)
                              WHERE b.no < c.no AND b.reach @> p.bucket), $5), c.no
             FROM unnest($3, $4) AS c (no, reach)
             CROSS JOIN LATERAL unnest(c.reach) AS r
             CROSS JOIN LATERAL feature_platform.plain_rows_as_of($1, $2, lower(r), upper(r), c.no - 1) AS p',
            'v' || v.id || '_history', names, shown)
            USING v, part.symbol, numbers || of_refresh, reaches || reached, part.no;
    END LOOP;
    DELETE FROM feature_platform.known_at_close k
    WHERE k.view = v.id AND k.symbol = ANY (picked) AND k.no = of_refresh AND k.minutes = '{}';
END
$$;
COMMENT ON FUNCTION feature_platform.keep_imported_versions(feature_platform.feature_view, text[], bigint) IS
    'Stores the versions that rows of imports would have if the view had existed at the import.';
