-- The rows of a feature view as they would have been known before the view was built: computed from the bars as they
-- were. Rows of later times are in the view's table of versions, and so are those of imports that are known at close.
-- A row is known from the first refresh of any symbol
-- after the close of its bucket on.

-- The changes of a symbol's bars in [lo, hi) that were known only `delay` after the close of their own bucket: of each
-- its bucket, and since when it is known.
CREATE OR REPLACE FUNCTION feature_platform.late_changes(
    v feature_platform.feature_view, of_symbol text, lo timestamptz, hi timestamptz, delay interval)
    RETURNS TABLE (bucket timestamptz, known_by timestamptz)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    RETURN QUERY
    WITH change AS (
        SELECT h.ts, r.no
        FROM feature_platform.bar_history h
        JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
        WHERE h.symbol = of_symbol AND h.ts >= lo AND h.ts < hi
        UNION
        SELECT k.ts, k.no FROM feature_platform.bar_known k
        WHERE k.symbol = of_symbol AND k.ts >= lo AND k.ts < hi
        UNION
        SELECT f.bucket, min(f.since) FROM feature_platform.features_1m_versions f
        WHERE f.symbol = of_symbol AND f.bucket >= lo AND f.bucket < hi
        GROUP BY f.bucket
    )
    SELECT DISTINCT b.bucket, r.known_by
    FROM change c
    JOIN feature_platform.refresh r ON r.no = c.no
    CROSS JOIN LATERAL (SELECT date_bin(v.every, c.ts, v.origin)) AS b (bucket)
    WHERE r.known_by > b.bucket + v.every + delay;
END
$$;
COMMENT ON FUNCTION feature_platform.late_changes(
    feature_platform.feature_view, text, timestamptz, timestamptz, interval) IS
    'The changes of bars that were known only some time after the close of their bucket.';

-- The greatest number of which all numbers up to it were known at a time, or never will be.
CREATE OR REPLACE FUNCTION feature_platform.number_at(moment timestamptz) RETURNS bigint
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT least(k.upto, (SELECT min(l) - 1 FROM unnest(k.late) AS l))
            FROM feature_platform.known_at(moment) AS k);
COMMENT ON FUNCTION feature_platform.number_at(timestamptz) IS
    'The number of a refresh up to which all refreshes were known at a time.';

-- Whether a refresh was noted between a time and `delay` after it.
CREATE OR REPLACE FUNCTION feature_platform.is_refreshed(since timestamptz, delay interval) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM feature_platform.refresh r WHERE r.known_by >= since AND r.known_by <= since + delay);
COMMENT ON FUNCTION feature_platform.is_refreshed(timestamptz, interval) IS
    'Whether a refresh was noted between a time and some time after it.';

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
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    RETURN QUERY SELECT * FROM feature_platform.plain_rows_as_of(
        v, of_symbol, feature_platform.view_from(v, lo),
        least(feature_platform.view_from(v, hi),
              date_bin(v.every, (SELECT r.known_by FROM feature_platform.refresh r WHERE r.known_by <= moment
                                 ORDER BY r.known_by DESC LIMIT 1), v.origin)),
        feature_platform.number_at(moment));
END
$$;
COMMENT ON FUNCTION feature_platform.known_rows_at(integer, text, timestamptz, timestamptz, timestamptz) IS
    'The rows of a feature view as they were known at a time before it was built.';

-- The rows of a symbol with lo <= bucket < hi, computed from the bars as of a number. lo and hi are starts of buckets.
CREATE OR REPLACE FUNCTION feature_platform.plain_rows_as_of(
    v feature_platform.feature_view, of_symbol text, lo timestamptz, hi timestamptz, number bigint)
    RETURNS TABLE (bucket timestamptz, "values" double precision[])
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF lo < hi THEN
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
    first timestamptz;
    first_then timestamptz;
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
    imported := (SELECT coalesce(range_agg(k.minutes), '{}') FROM feature_platform.known_at_close k
                 WHERE k.view = of_view AND k.symbol = of_symbol);
    EXECUTE format('SELECT feature_views.%I($1, $2)', 'v' || v.id || '_plain_from') INTO start
        USING of_symbol, first_row;
    SELECT array_agg(c.bucket), array_agg(c.known_by) INTO late_buckets, late_known
    FROM feature_platform.late_changes(v, of_symbol, start, after_last, delay) AS c;
    reached := (
        SELECT coalesce(range_agg(tstzrange(c.bucket, least(c.known_by - v.every - delay, CASE WHEN NOT v.has_rows
                                                            THEN c.bucket + v.look_back + v.every END))), '{}')
        FROM unnest(late_buckets, late_known) AS c (bucket, known_by));
    -- Older bars that became known later have moved the warm-up.
    first := date_bin(v.every, (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = of_symbol ORDER BY b.ts LIMIT 1),
                      v.origin);
    first_then := date_bin(v.every, feature_platform.first_bar_as_of(
        of_symbol, feature_platform.number_at(first_row + v.every + delay)), v.origin);
    IF first_then IS DISTINCT FROM first THEN
        reached := reached + tstzmultirange(tstzrange(
            NULL, greatest(coalesce(first_then, after_last), first) + v.warm_up + v.every));
    END IF;
    reached := reached * tstzmultirange(tstzrange(first_row, after_last));

    RETURN QUERY EXECUTE format(
        'SELECT f.bucket, ARRAY[%s]::double precision[] FROM feature_views.%I f
         WHERE f.symbol = $1 AND f.bucket >= $2 AND f.bucket < $3 AND NOT $4 @> f.bucket
           AND feature_platform.is_refreshed(f.bucket + $5, $6)
           AND NOT $7 @> tstzrange(f.bucket, f.bucket + $5)',
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
            feature_platform.number_at(feature_platform.view_from(v, part.hi) + delay)) AS p
        WHERE feature_platform.is_refreshed(p.bucket + v.every, delay)
          AND NOT imported @> tstzrange(p.bucket, p.bucket + v.every);
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.known_rows_after(integer, text, timestamptz, timestamptz, interval) IS
    'The rows of a feature view of before it was built, each as it was known some time after the close of its bucket.';
