-- The bars of a symbol as of the number of a refresh: with all changes whose marks were taken by refreshes up to this
-- number, and no others.

-- The refresh that created the row of features_1m of a minute; NULL where it never had one.
CREATE OR REPLACE FUNCTION feature_platform.row_created(of_symbol text, of_bucket timestamptz) RETURNS bigint
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT greatest(min(v.since), f.no)
    FROM (SELECT coalesce(max(k.no), 0) AS no FROM feature_platform.knowledge_floor k WHERE k.symbol = of_symbol) AS f
    CROSS JOIN LATERAL (
        SELECT r.refresh_no AS since FROM public.features_1m r WHERE r.symbol = of_symbol AND r.bucket = of_bucket
        UNION ALL
        SELECT h.since FROM feature_platform.features_1m_history h
        WHERE h.symbol = of_symbol AND h.bucket = of_bucket AND h.until > f.no) AS v
    GROUP BY f.no;
END;
COMMENT ON FUNCTION feature_platform.row_created(text, timestamptz) IS
    'The refresh that created the row of features_1m of a minute.';

-- The bars of a symbol with lo <= ts < hi as of a number.
--
-- The values of a bar are those of its first version that ended after the number. If there is no such version, they are
-- the values of the stored bar. The bar existed if its last event up to the number is a beginning and not an end. The
-- entries in bar_known are its beginnings. If the first one is missing there, the bar began with the row of its minute.
CREATE OR REPLACE FUNCTION feature_platform.bars_as_of(
    of_symbol text, lo timestamptz, hi timestamptz, of_refresh bigint)
    RETURNS TABLE (ts timestamptz, open double precision, high double precision, low double precision,
                   close double precision, vol double precision, source text, inserted_at timestamptz)
    LANGUAGE plpgsql STABLE ROWS 1440
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    -- Entries of other bars of the first and of the last minute count, too.
    first_minute CONSTANT timestamptz := feature_platform.bucket_of(lo);
    after_last CONSTANT timestamptz := feature_platform.bucket_from(hi);
    begins CONSTANT bigint := coalesce((SELECT f.no FROM feature_platform.knowledge_floor f
                                        WHERE f.symbol = of_symbol), 0);
BEGIN
    RETURN QUERY
    WITH version AS MATERIALIZED (
        SELECT h.ts, h.id, h.open, h.high, h.low, h.close, h.vol, h.source, h.inserted_at, h.gone,
               coalesce(r.no, 9223372036854775807) AS until      -- no refresh has taken its mark yet
        FROM feature_platform.bar_history h
        LEFT JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
        WHERE h.symbol = of_symbol AND h.ts >= first_minute AND h.ts < after_last
    ), entry AS MATERIALIZED (
        SELECT k.ts, feature_platform.bucket_of(k.ts) AS bucket, k.no
        FROM feature_platform.bar_known k
        WHERE k.symbol = of_symbol AND k.ts >= first_minute AND k.ts < after_last
    ), created AS MATERIALIZED (
        SELECT v.bucket, greatest(min(v.since), begins) AS no
        FROM (SELECT f.bucket, f.refresh_no AS since FROM public.features_1m f
              WHERE f.symbol = of_symbol AND f.bucket >= first_minute AND f.bucket < after_last
              UNION ALL
              SELECT h.bucket, h.since FROM feature_platform.features_1m_history h
              WHERE h.symbol = of_symbol AND h.bucket >= first_minute AND h.bucket < after_last
                AND h.until > begins) AS v
        GROUP BY v.bucket
    ), shown AS (
        SELECT DISTINCT ON (b.ts) b.*
        FROM (SELECT b.ts, NULL::bigint AS id, b.open, b.high, b.low, b.close, b.vol, b.source, b.inserted_at
              FROM public.ohlcv_1m b WHERE b.symbol = of_symbol AND b.ts >= lo AND b.ts < hi
              UNION ALL
              SELECT v.ts, v.id, v.open, v.high, v.low, v.close, v.vol, v.source, v.inserted_at
              FROM version v WHERE v.until > of_refresh AND v.ts >= lo AND v.ts < hi) AS b
        ORDER BY b.ts, b.id
    ), own AS MATERIALIZED (
        SELECT e.ts, min(e.no) AS first, max(e.no) FILTER (WHERE e.no <= of_refresh) AS last
        FROM entry e GROUP BY e.ts
    ), ended AS MATERIALIZED (
        SELECT v.ts, min(v.until) AS first, max(v.until) FILTER (WHERE v.until <= of_refresh) AS last
        FROM version v WHERE v.gone GROUP BY v.ts
    ), other AS MATERIALIZED (
        SELECT e.bucket, min(e.no) AS first FROM entry e WHERE e.ts <> e.bucket GROUP BY e.bucket
    )
    SELECT s.ts, s.open, s.high, s.low, s.close, s.vol, s.source, s.inserted_at
    FROM shown s
    LEFT JOIN own ON own.ts = s.ts
    LEFT JOIN ended ON ended.ts = s.ts
    LEFT JOIN created ON created.bucket = s.ts
    LEFT JOIN other ON other.bucket = s.ts
    WHERE greatest(own.last,
                   -- The creation of the row, unless another bar of the minute created it, or this bar came again.
                   CASE WHEN created.no <= of_refresh
                             AND (ended.first IS NULL AND own.first IS NULL AND other.first IS NULL
                                  OR created.no < ended.first AND ended.first <= coalesce(own.first, ended.first)
                                     AND ended.first <= coalesce(other.first, ended.first))
                        THEN created.no END) >= coalesce(ended.last, 0)
    ORDER BY s.ts;
END
$$;
COMMENT ON FUNCTION feature_platform.bars_as_of(text, timestamptz, timestamptz, bigint) IS
    'The bars of a symbol as of the number of a refresh.';

-- The n-th existing bucket before a time as of a number; the oldest one where there are fewer. Where many later bars
-- lie between, the range that is searched doubles.
CREATE OR REPLACE FUNCTION feature_platform.bucket_before_as_of(
    of_symbol text, before timestamptz, n integer, every interval, origin timestamptz, of_refresh bigint)
    RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    found timestamptz := before;
    searched timestamptz := before;
    width interval := every;
    newest timestamptz;
    step timestamptz;
    places integer := 0;
BEGIN
    WHILE places < n LOOP
        newest := greatest(
            (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = of_symbol AND b.ts < searched
             ORDER BY b.ts DESC LIMIT 1),
            (SELECT h.ts FROM feature_platform.bar_history h WHERE h.symbol = of_symbol AND h.ts < searched
             ORDER BY h.ts DESC LIMIT 1));
        EXIT WHEN newest IS NULL;
        newest := date_bin(every, newest, origin) + every;
        step := (SELECT max(b.ts) FROM feature_platform.bars_as_of(
                     of_symbol, newest - width, least(newest, searched), of_refresh) AS b);
        IF step IS NULL THEN
            searched := newest - width;
            width := 2 * width;
        ELSE
            found := date_bin(every, step, origin);
            searched := found;
            places := places + 1;
        END IF;
    END LOOP;
    RETURN found;
END
$$;
COMMENT ON FUNCTION feature_platform.bucket_before_as_of(
    text, timestamptz, integer, interval, timestamptz, bigint) IS
    'The n-th existing bucket before a time as of a number.';

-- The first bar of a symbol as of a number, searched as above.
CREATE OR REPLACE FUNCTION feature_platform.first_bar_as_of(of_symbol text, of_refresh bigint) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    width interval := '1 minute';
    oldest timestamptz := '-infinity';
    found timestamptz;
BEGIN
    LOOP
        oldest := least(
            (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = of_symbol AND b.ts >= oldest ORDER BY b.ts LIMIT 1),
            (SELECT h.ts FROM feature_platform.bar_history h WHERE h.symbol = of_symbol AND h.ts >= oldest
             ORDER BY h.ts LIMIT 1));
        EXIT WHEN oldest IS NULL;
        found := (SELECT min(b.ts)
                  FROM feature_platform.bars_as_of(of_symbol, oldest, oldest + width, of_refresh) AS b);
        EXIT WHEN found IS NOT NULL;
        oldest := oldest + width;
        width := 2 * width;
    END LOOP;
    RETURN found;
END
$$;
COMMENT ON FUNCTION feature_platform.first_bar_as_of(text, bigint) IS
    'The first bar of a symbol as of the number of a refresh.';
