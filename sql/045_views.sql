-- Feature views: the tables of features that users declare, beside features_1m.
--
-- A declaration is compiled when it is applied. Its functions and tables are in the schema feature_views, named by the
-- number of the view's version: v7_rows (the features), v7_history (the versions of rows that a refresh has changed or
-- deleted), v7_versions (all versions), v7_inner (values that windows and lags look up), v7_state (the
-- cached state of each symbol's newest buckets), v7_reach, v7_reach_short, v7_start, v7_range, v7_step, v7_plain and
-- v7_plain_from. The view public.NAME shows the rows of the version that is served.
CREATE SCHEMA IF NOT EXISTS feature_views;
COMMENT ON SCHEMA feature_views IS
    'Tables and functions of feature views, which `feature-platform views apply` writes.';

CREATE TABLE IF NOT EXISTS feature_platform.feature_view (
    id          integer     GENERATED ALWAYS AS IDENTITY CONSTRAINT feature_view_pkey PRIMARY KEY,
    name        text        NOT NULL,
    version     integer     NOT NULL,
    every       interval    NOT NULL,       -- the bar width, in minutes
    origin      timestamptz NOT NULL,       -- the start of a bucket
    description text        NOT NULL,
    columns     text[]      NOT NULL,
    sources     text[]      NOT NULL,       -- the expression of each column
    look_back   interval    NOT NULL,       -- of a bucket on bars without gaps, in minutes
    warm_up     interval    NOT NULL,       -- the longest time after a first bucket in which a value is NULL
    has_inner   boolean     NOT NULL,
    has_rows    boolean     NOT NULL,       -- whether a lag counts rows, so that a gap lengthens the look-back
    compiled    text        NOT NULL,       -- the SQL of its tables and functions
    served      boolean     NOT NULL,       -- whether public.NAME shows this version
    state       text        NOT NULL CONSTRAINT feature_view_state_check
                            CHECK (state IN ('building', 'live', 'waiting', 'failed')),
    error       text,
    applied_at  timestamptz NOT NULL DEFAULT feature_platform.clock(),
    built_at    timestamptz,
    tried_at    timestamptz,    -- the last attempt of a complete version to take its name
    CONSTRAINT feature_view_name_version_key UNIQUE (name, version)
);
CREATE INDEX IF NOT EXISTS feature_view_refreshed_idx ON feature_platform.feature_view (id) WHERE state <> 'failed';
CREATE UNIQUE INDEX IF NOT EXISTS feature_view_served_idx ON feature_platform.feature_view (name) WHERE served;
COMMENT ON TABLE feature_platform.feature_view IS
    'The versions of each feature view: the one that is served, and the one that is being built.';
COMMENT ON COLUMN feature_platform.feature_view.state IS
    'building: history is being computed; live: complete; waiting: complete, but it could not take its name yet; '
    'failed: it is no longer refreshed, see error.';

-- Changed minutes of each symbol, for all views: the refresh of features_1m moves them here from the dirty log. A view
-- remembers the number up to which it has processed the changes of a symbol, so one row serves all views. A refresher
-- locks the symbol before it writes a change. Therefore a later commit always has a greater number.
CREATE TABLE IF NOT EXISTS feature_platform.view_change (
    symbol    text COLLATE "C" NOT NULL,
    id        bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
    changed   tstzmultirange   NOT NULL,
    removed   boolean          NOT NULL,
    marked_at timestamptz      NOT NULL,
    CONSTRAINT view_change_pkey PRIMARY KEY (symbol, id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE feature_platform.view_change IS 'Changed minutes that some view has not processed yet.';

CREATE TABLE IF NOT EXISTS feature_platform.view_symbol (
    view         integer          NOT NULL,
    symbol       text COLLATE "C" NOT NULL,
    processed    bigint           NOT NULL DEFAULT 0,   -- the newest view_change that is part of `dirty`
    first_bucket timestamptz,                           -- the stored rows' warm-up was counted from it
    newest_tick  timestamptz,                           -- the newest bar inside a minute
    dirty        tstzmultirange   NOT NULL DEFAULT '{}',    -- buckets
    long_only    tstzmultirange   NOT NULL DEFAULT '{}',    -- of these, only columns with a long look-back are dirty
    removed      boolean          NOT NULL DEFAULT false,   -- whether dirty buckets may have lost their last bar
    building     boolean          NOT NULL DEFAULT false,   -- dirty because the view is new
    marked_at    timestamptz,                           -- since when buckets are dirty
    no           bigint           NOT NULL DEFAULT 0,   -- the symbol's last refresh of this view
    before_no    bigint,    -- the symbol's number before the oldest of its dirty buckets; these stand as they were then
    CONSTRAINT view_symbol_pkey PRIMARY KEY (view, symbol)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX IF NOT EXISTS view_symbol_dirty_idx ON feature_platform.view_symbol (view, symbol) WHERE dirty <> '{}';
COMMENT ON TABLE feature_platform.view_symbol IS
    'The dirty buckets of each view and symbol; a symbol without a row has no processed change.';

-- Refreshers lock it in ROW SHARE mode before they read the list of views; sessions that change the list lock it in
-- EXCLUSIVE mode. So a new view either gets a change from view_change or sees its bars. Readers cannot lock it.
CREATE TABLE IF NOT EXISTS feature_platform.view_lock ();
COMMENT ON TABLE feature_platform.view_lock IS 'Separates changes of the list of views from refreshes.';

DO $$
BEGIN
    IF to_regtype('feature_platform.view_item') IS NULL THEN
        CREATE TYPE feature_platform.view_item AS (
            symbol     text COLLATE "C",
            lo         timestamptz,     -- rows to store: lo <= bucket < hi
            hi         timestamptz,
            start      timestamptz,     -- the first bar to read
            first      timestamptz,     -- the first bucket of the symbol
            state_from timestamptz,     -- the first bucket whose state is cached
            whole      tstzmultirange   -- all columns are computed here, else those with a long look-back; NULL: all
        );
        CREATE TYPE feature_platform.view_extreme AS (value double precision, place timestamptz);
    END IF;
END
$$;
COMMENT ON TYPE feature_platform.view_item IS 'One range of buckets of one symbol, to be computed from bars alone.';
COMMENT ON TYPE feature_platform.view_extreme IS 'A minimum or maximum of a window, and its bucket.';

-- The n-th existing bucket after one; infinity where there is none, or nothing after last_bucket matters.
CREATE OR REPLACE FUNCTION feature_platform.bucket_after(
    of_symbol text, after timestamptz, n integer, every interval, origin timestamptz, last_bucket timestamptz)
    RETURNS timestamptz LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    found timestamptz := after;
BEGIN
    FOR i IN 1 .. n LOOP
        IF found IS NULL OR found >= last_bucket THEN
            RETURN 'infinity';
        END IF;
        found := (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = of_symbol AND b.ts >= found + every
                  AND b.ts < last_bucket + every ORDER BY b.ts LIMIT 1);
        found := date_bin(every, found, origin);
    END LOOP;
    RETURN coalesce(found, 'infinity');
END
$$;

-- The n-th existing bucket before a time; the first of the symbol, or the time, where there are fewer.
CREATE OR REPLACE FUNCTION feature_platform.bucket_before(
    of_symbol text, before timestamptz, n integer, every interval, origin timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    found timestamptz := before;
    step timestamptz;
BEGIN
    FOR i IN 1 .. n LOOP
        step := (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = of_symbol AND b.ts < found
                 ORDER BY b.ts DESC LIMIT 1);
        EXIT WHEN step IS NULL;
        found := date_bin(every, step, origin);
    END LOOP;
    RETURN found;
END
$$;

-- Correlation, covariance or slope from the sums of a window, for v7_plain.
CREATE OR REPLACE FUNCTION feature_platform.plain_pair(
    name text, n bigint, sx numeric, sy numeric, sxx numeric, syy numeric, sxy numeric) RETURNS double precision
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    xy numeric := n * sxy - sx * sy;
    xx numeric;
    yy numeric := n * syy - sy * sy;
    denominator double precision;
BEGIN
    IF n = 0 THEN
        RETURN NULL;
    ELSIF name = 'cov' THEN
        RETURN xy::double precision / n::double precision / n::double precision;
    ELSIF name = 'beta' THEN
        IF yy = 0 OR abs(xy) > 1e130 * yy THEN
            RETURN NULL;
        ELSIF abs(xy) < 1e-130 * yy THEN
            RETURN 0;
        END IF;
        RETURN xy::double precision / yy::double precision;
    END IF;
    xx := n * sxx - sx * sx;
    denominator := sqrt(xx::double precision) * sqrt(yy::double precision);
    IF denominator = 0 THEN
        RETURN NULL;
    ELSIF denominator >= 1e-150 AND abs(xy::double precision) < denominator * 1e-130 THEN
        RETURN 0;
    END IF;
    RETURN greatest(-1, least(1, xy::double precision / denominator));
END
$$;
COMMENT ON FUNCTION feature_platform.plain_pair(text, bigint, numeric, numeric, numeric, numeric, numeric) IS
    'Correlation, covariance or slope from the sums of a window, for verify.';

-- A time-decayed mean after one more value: {mean, its time}.
CREATE OR REPLACE FUNCTION feature_platform.ema_next(
    mean double precision[], value double precision, at double precision, base double precision, every double precision)
    RETURNS double precision[] LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    weight double precision;
    passed double precision;
BEGIN
    IF value IS NULL THEN
        RETURN mean;
    ELSIF mean IS NULL OR mean[2] IS NULL THEN
        RETURN ARRAY[value, at];
    END IF;
    passed := (at - mean[2]) / every;
    weight := CASE WHEN passed = 1 THEN base WHEN base = 0 OR passed * ln(base) < -300 THEN 0
                   ELSE power(base, passed) END;
    value := weight * mean[1] + (1 - weight) * value;
    RETURN ARRAY[CASE WHEN abs(value) < 1e-130 THEN 0 ELSE value END, at];
END
$$;
CREATE OR REPLACE AGGREGATE feature_platform.ema_run(
    double precision, double precision, double precision, double precision) (
    SFUNC = feature_platform.ema_next, STYPE = double precision[]);

CREATE OR REPLACE FUNCTION feature_platform.plain_ema(
    buckets timestamptz[], vals double precision[], base double precision, every integer, grid integer)
    RETURNS double precision[] LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    result double precision[] := array_fill(NULL::double precision, ARRAY[cardinality(buckets)]);
    t double precision;
    anchor double precision;
    mean double precision;
    last_t double precision;
    w double precision;
    from_at integer;
BEGIN
    FOR i IN 1 .. cardinality(buckets) LOOP
        t := extract(epoch FROM buckets[i]);
        IF anchor IS NULL OR anchor <> (floor(t / grid) - 1) * grid THEN
            anchor := (floor(t / grid) - 1) * grid;
            mean := NULL;
            from_at := i;
            WHILE from_at > 1 AND extract(epoch FROM buckets[from_at - 1]) >= anchor LOOP
                from_at := from_at - 1;
            END LOOP;
        ELSE
            from_at := i;
        END IF;
        FOR j IN from_at .. i LOOP
            t := extract(epoch FROM buckets[j]);
            CONTINUE WHEN vals[j] IS NULL;
            IF mean IS NULL THEN
                mean := vals[j];
            ELSE
                w := CASE WHEN t - last_t = every THEN base
                          WHEN base = 0 OR (t - last_t) / every * ln(base) < -300 THEN 0
                          ELSE power(base, (t - last_t) / every) END;
                mean := w * mean + (1 - w) * vals[j];
                IF abs(mean) < 1e-130 THEN mean := 0; END IF;
            END IF;
            last_t := t;
        END LOOP;
        result[i] := mean;
    END LOOP;
    RETURN result;
END
$$;

-- The n-th existing bucket before a time, for v7_plain_from; the oldest one where there are fewer.
CREATE OR REPLACE FUNCTION feature_platform.plain_before(
    of_symbol text, moment timestamptz, n integer, every interval, origin timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH RECURSIVE earlier AS (
        SELECT moment AS bucket, 0 AS place
        UNION ALL
        SELECT (SELECT date_bin(every, b.ts, origin) FROM public.ohlcv_1m b
                WHERE b.symbol = of_symbol AND b.ts < e.bucket ORDER BY b.ts DESC LIMIT 1), e.place + 1
        FROM earlier e WHERE e.place < n AND e.bucket IS NOT NULL
    )
    SELECT min(e.bucket) FROM earlier e;
END;
COMMENT ON FUNCTION feature_platform.bucket_after(text, timestamptz, integer, interval, timestamptz, timestamptz) IS
    'The n-th existing bucket after one.';
COMMENT ON FUNCTION feature_platform.bucket_before(text, timestamptz, integer, interval, timestamptz) IS
    'The n-th existing bucket before a time.';
COMMENT ON FUNCTION feature_platform.ema_next(
    double precision[], double precision, double precision, double precision, double precision) IS
    'A time-decayed mean after one more value.';
COMMENT ON AGGREGATE feature_platform.ema_run(
    double precision, double precision, double precision, double precision) IS 'A time-decayed mean.';
COMMENT ON FUNCTION feature_platform.plain_ema(
    timestamptz[], double precision[], double precision, integer, integer) IS
    'The time-decayed mean at each bucket, for verify.';
COMMENT ON FUNCTION feature_platform.plain_before(text, timestamptz, integer, interval, timestamptz) IS
    'The n-th existing bucket before a time, for verify.';
