-- The refresh: it takes marks out of the dirty log, recomputes their rows from the bars, and stores the rows that
-- differ.

-- A cache of each symbol's last refresh. Deleting rows costs only time.
CREATE TABLE IF NOT EXISTS feature_platform.symbol_state (
    symbol        text COLLATE "C" NOT NULL CONSTRAINT symbol_state_pkey PRIMARY KEY,
    first_bucket  timestamptz,          -- the first bucket that the stored rows' warm-up was counted from
    newest_bucket timestamptz,          -- the newest computed row, NULL: unknown
    newest_n      bigint,               -- the exact sums of that row's one-day window
    newest_sum    numeric,
    newest_sum_sq numeric,
    newest_close  double precision,
    newest_vol    numeric               -- the newest row's own part of the sums
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE feature_platform.symbol_state IS
    'Cache of each symbol''s newest window sums; may be emptied at any time.';

DO $$
BEGIN
    IF to_regtype('feature_platform.refresh_item') IS NULL THEN
        CREATE TYPE feature_platform.refresh_item AS (
            symbol       text COLLATE "C",
            lo           timestamptz,   -- rows to store: lo <= bucket < hi
            hi           timestamptz,
            first_bucket timestamptz,
            removed      boolean,
            has_ticks    boolean,       -- whether there are rows inside minutes
            start        timestamptz,   -- the window sums are known, or computed, just before this; start <= lo
            leaves_until timestamptz,   -- of the day before start, the bars before this are read
            base_n       bigint,        -- window sums just before start, NULL where that whole day is read instead
            base_sum     numeric,
            base_sum_sq  numeric,
            prev_close   double precision
        );
    END IF;
END
$$;
COMMENT ON TYPE feature_platform.refresh_item IS
    'One range of minutes of one symbol, and the start of its recomputation.';

-- The first minute at or after a time. Both ends of a refresh window are rounded up by it, so that the window holds
-- exactly the buckets with window_start <= bucket < window_end.
CREATE OR REPLACE FUNCTION feature_platform.bucket_from(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN isfinite(moment)
                THEN feature_platform.bucket_of(moment + interval '59.999999 seconds') ELSE moment END;
COMMENT ON FUNCTION feature_platform.bucket_from(timestamptz) IS 'The first bucket at or after a time.';

-- The newest part of a multirange, of at most `minutes` minutes: the part of a long range that one tick accounts for.
-- Minutes are counted as numbers, because a sum of intervals has days, which are not all 24 hours long in every time
-- zone.
CREATE OR REPLACE FUNCTION feature_platform.newest_minutes(buckets tstzmultirange, minutes bigint)
    RETURNS tstzmultirange
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (
        WITH part AS (
            SELECT lower(r) AS lo, upper(r) AS hi,
                   coalesce(sum(extract(epoch FROM upper(r) - lower(r)) / 60) OVER (ORDER BY lower(r) DESC
                            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS newer
            FROM unnest(buckets) AS r)
        SELECT range_agg(tstzrange(greatest(lo, hi - (minutes - newer)::double precision * interval '1 minute'), hi))
        FROM part WHERE newer < minutes
    );
COMMENT ON FUNCTION feature_platform.newest_minutes(tstzmultirange, bigint) IS
    'The newest part of a multirange, of at most a number of minutes.';

-- The newest part of a symbol's minutes with at most `most` rows, and at least one minute with rows: the part of a
-- long range that one slice refreshes. Rows are bars and, where bars were removed, feature rows. Each range counts as
-- one more row, so that the number of empty ranges is bounded, too.
CREATE OR REPLACE FUNCTION feature_platform.newest_rows(
    of_symbol text, buckets tstzmultirange, most bigint, removed boolean) RETURNS tstzmultirange
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off               -- before 18 a disabled scan counts 1e10, and compiling takes longer than the statement
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    part tstzrange;
    taken tstzmultirange := '{}';
    rows_left bigint := most;
    cut timestamptz;
    newest timestamptz;
    count bigint;
BEGIN
    FOR part IN SELECT r FROM unnest(buckets) AS r ORDER BY lower(r) DESC LOOP
        EXIT WHEN rows_left <= 0;
        SELECT greatest(bar.beyond, feature.beyond) + minute, greatest(bar.newest, feature.newest),
               bar.count + feature.count
        INTO cut, newest, count
        FROM (SELECT count(*) AS count, feature_platform.bucket_of(max(b.ts)) AS newest,
                     CASE WHEN count(*) > rows_left THEN feature_platform.bucket_of(min(b.ts)) END AS beyond
              FROM (SELECT b.ts FROM public.ohlcv_1m b
                    WHERE b.symbol = of_symbol AND b.ts >= lower(part) AND b.ts < upper(part)
                    ORDER BY b.ts DESC LIMIT rows_left + 1) AS b) AS bar,
             (SELECT count(*) AS count, max(f.bucket) AS newest,
                     CASE WHEN count(*) > rows_left THEN min(f.bucket) END AS beyond
              FROM (SELECT f.bucket FROM public.features_1m f
                    WHERE removed AND f.symbol = of_symbol AND f.bucket >= lower(part) AND f.bucket < upper(part)
                    ORDER BY f.bucket DESC LIMIT rows_left + 1) AS f) AS feature;
        IF cut IS NOT NULL THEN
            RETURN taken + tstzmultirange(tstzrange(least(cut, newest), upper(part)));
        END IF;
        taken := taken + tstzmultirange(part);
        rows_left := rows_left - count - 1;
    END LOOP;
    RETURN taken;
END
$$;
COMMENT ON FUNCTION feature_platform.newest_rows(text, tstzmultirange, bigint, boolean) IS
    'The newest part of a symbol''s minutes, of at most a number of rows.';

-- The time just before which the remembered sums hold, for a range that is recomputed from them. This is a range up to
-- a day after the newest row, or a range that begins with that row, where no earlier bar of its window changed: the
-- row's own part is then subtracted from the sums. Only the bars that enter or leave the window are read. For other
-- ranges the result is NULL, and the day before them is read.
CREATE OR REPLACE FUNCTION feature_platform.sums_from(
    newest_bucket timestamptz, newest_vol numeric, changed tstzmultirange, removed boolean,
    lo timestamptz, hi timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE       -- STABLE as timestamptz + interval, else it is not inlined
    RETURN CASE WHEN removed OR newest_bucket IS NULL OR hi - newest_bucket > '24 hours'::interval THEN NULL
                WHEN NOT changed @> newest_bucket
                THEN CASE WHEN newest_bucket < lo THEN newest_bucket + '1 minute'::interval END
                WHEN newest_bucket <= lo AND newest_vol IS NOT NULL
                     AND NOT changed @> newest_bucket - '1 minute'::interval THEN newest_bucket END;
COMMENT ON FUNCTION feature_platform.sums_from(
    timestamptz, numeric, tstzmultirange, boolean, timestamptz, timestamptz) IS
    'The time just before which the remembered sums hold, for a range that is recomputed from them.';

-- The last mark that a refresh which starts now has to process. The next refresh processes later marks.
CREATE OR REPLACE FUNCTION feature_platform.dirty_horizon() RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    RETURN coalesce(pg_sequence_last_value(
        pg_get_serial_sequence('feature_platform.dirty_log', 'id')::regclass), 0);
COMMENT ON FUNCTION feature_platform.dirty_horizon() IS 'The newest mark of the dirty log, committed or not.';

-- The newest bucket that is closed and as old as `age`, plus a minute: the exclusive end of the rows that a refresh may
-- store.
CREATE OR REPLACE FUNCTION feature_platform.due_until(age interval DEFAULT '1 minute') RETURNS timestamptz
    LANGUAGE sql VOLATILE
    RETURN feature_platform.bucket_of(feature_platform.clock() - greatest(age, interval '1 minute'))
        + interval '1 minute';
COMMENT ON FUNCTION feature_platform.due_until(interval) IS
    'Rows with an older bucket are due: closed, and as old as `age`.';

-- Mark every row of a window dirty, for a refresh with `force`.
CREATE OR REPLACE FUNCTION feature_platform.mark_window(window_start timestamptz, window_end timestamptz) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT feature_platform.find_symbols();
    INSERT INTO feature_platform.dirty_log (symbol, buckets, changed, removed)
    SELECT s.symbol, tstzmultirange(w.buckets), tstzmultirange(w.buckets), true
    FROM feature_platform.stored_symbol s
    CROSS JOIN LATERAL (
        SELECT least((SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1),
                     (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket LIMIT 1)),
               greatest((SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = s.symbol ORDER BY b.ts DESC LIMIT 1),
                        (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket DESC
                         LIMIT 1))
    ) AS has (first_ts, last_ts)
    CROSS JOIN LATERAL (
        SELECT tstzrange(feature_platform.bucket_of(first_ts), feature_platform.bucket_of(last_ts)
                         + interval '1 minute')
             * tstzrange(feature_platform.bucket_from(window_start),
                         CASE WHEN window_end < window_start THEN feature_platform.bucket_from(window_start)
                              ELSE feature_platform.bucket_from(window_end) END)
    ) AS w (buckets)
    WHERE NOT isempty(w.buckets)
    ORDER BY s.symbol;
END;
COMMENT ON FUNCTION feature_platform.mark_window(timestamptz, timestamptz) IS 'Marks every row of a window dirty.';

-- The locks of refreshers, which exclude each other by symbol; symbols share these rows by hash. Row locks need no
-- place in the server's table of locks and leave no dead rows. Readers cannot take them, since a row lock needs a right
-- to write.
CREATE TABLE IF NOT EXISTS feature_platform.refresh_lock (
    stripe integer NOT NULL CONSTRAINT refresh_lock_pkey PRIMARY KEY
);
COMMENT ON TABLE feature_platform.refresh_lock IS 'Rows that refreshers lock, by a hash of the symbol.';
INSERT INTO feature_platform.refresh_lock SELECT generate_series(0, 4095) ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION feature_platform.stripe_of(symbol text) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (hashtextextended(symbol, 7521) & 4095)::integer;
COMMENT ON FUNCTION feature_platform.stripe_of(text) IS 'The row of refresh_lock for a symbol.';

-- Finds the marks that reach into the live window among any number of older marks.
CREATE INDEX IF NOT EXISTS dirty_log_until_idx ON feature_platform.dirty_log (upper(buckets));

-- Symbols with marks inside a window, sorted by their newest mark: of the `marks` newest marks, and of the `marks`
-- marks that reach furthest. The cost does not depend on other marks. `more` is true where the log may have further
-- symbols.
CREATE OR REPLACE FUNCTION feature_platform.newest_dirty(
    refresh_window tstzrange, horizon bigint, marks integer, OUT symbols text[], OUT more boolean)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- by the two indexes, independent of statistics
    SET enable_seqscan = off
    SET jit = off
    SET enable_bitmapscan = off
AS $$
BEGIN
    WITH newest AS (
        SELECT n.symbol, n.id FROM (
            SELECT l.symbol, l.id, l.buckets FROM feature_platform.dirty_log l
            WHERE l.id <= horizon ORDER BY l.id DESC LIMIT marks) AS n
        WHERE n.buckets && refresh_window
    ), furthest AS MATERIALIZED (
        SELECT l.symbol, l.id FROM feature_platform.dirty_log l
        WHERE upper(l.buckets) > lower(refresh_window) AND l.buckets && refresh_window AND l.id <= horizon
        ORDER BY upper(l.buckets) DESC LIMIT marks
    )
    SELECT array_agg(m.symbol ORDER BY m.id DESC), (SELECT count(*) FROM furthest) = marks
    INTO symbols, more
    FROM (SELECT symbol, max(id) AS id FROM (TABLE newest UNION ALL TABLE furthest) AS mark GROUP BY symbol) AS m;
END
$$;
COMMENT ON FUNCTION feature_platform.newest_dirty(tstzrange, bigint, integer) IS
    'Symbols with marks inside a window, sorted by their newest mark.';

-- Pick as many symbols with dirty rows in a window as fit a slice, and lock them until the end of the transaction. The
-- indexes give the number of rows of each symbol, up to the size of a slice: the bars of its dirty minutes, the earlier
-- bars of its windows, and rows to be deleted.
--
-- A slice picks symbols that no other refresher has locked. If there are none, it waits for one symbol while it holds
-- no lock, so two refreshers cannot wait for each other. After that wait it returns no symbol, and the caller picks
-- again.
CREATE OR REPLACE FUNCTION feature_platform.pick_symbols(
    refresh_window tstzrange, horizon bigint, slice_rows bigint, slice_symbols integer, newest_first boolean,
    OUT picked text[], OUT more boolean)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- index look-ups for all sizes, planned once a session
    SET enable_seqscan = off
    SET jit = off
    -- the log in the order of its index, so that no more marks are read than needed
    SET enable_bitmapscan = off
    SET enable_sort = off
    SET enable_hashagg = off
    SET lock_timeout = '2s'
AS $$
DECLARE
    day CONSTANT interval := '24 hours';        -- not '1 day': that follows the session's time zone
    kept CONSTANT tstzrange := refresh_window * tstzrange(feature_platform.features_from(), NULL);
    -- Known when the statement starts, so that a hypertable excludes all chunks outside of the window.
    reads_from CONSTANT timestamptz := lower(refresh_window) - day;
    reads_until CONSTANT timestamptz := upper(refresh_window);
    newest text[];
    candidate record;
    batch text[] := '{}';
    batch_rows bigint := 0;
BEGIN
    picked := '{}';
    more := false;
    IF newest_first THEN
        SELECT n.symbols, n.more INTO newest, more
        FROM feature_platform.newest_dirty(refresh_window, horizon, 2 * slice_symbols) AS n;
    END IF;
    -- Each CTE is read once and holds no volatile call, so the planner makes them one plan: symbol by symbol, and no
    -- further symbol once the slice is full.
    FOR candidate IN
        WITH due AS (
            -- The symbols to try: those of the newest marks first, or all that have marks, by name.
            SELECT unnest(newest) AS symbol
            UNION ALL
            (SELECT l.symbol
             FROM feature_platform.dirty_log l
             WHERE NOT newest_first AND l.id <= horizon AND lower(l.buckets) < upper(refresh_window)
               AND (NOT l.reach_known OR l.buckets && refresh_window)
             GROUP BY l.symbol ORDER BY l.symbol)
        ), marked AS (
            -- With all of its marks as one: refresh_symbols takes later marks of a picked symbol, too.
            SELECT due.symbol, mark.*
            FROM due
            CROSS JOIN LATERAL (
                SELECT range_agg(l.buckets) AS buckets, bool_or(l.removed) AS removed,
                       coalesce(range_agg(l.buckets) FILTER (WHERE NOT l.reach_known), '{}') AS changed
                FROM feature_platform.dirty_log l
                WHERE l.symbol = due.symbol AND lower(l.buckets) < upper(refresh_window)
                  AND (NOT l.reach_known OR l.buckets && refresh_window)
            ) AS mark
        ), cached AS (
            -- With the cache of its last refresh; aggregates, because a symbol without a cache counts, too.
            SELECT marked.*, state.*
            FROM marked
            CROSS JOIN LATERAL (
                SELECT max(s.first_bucket) AS first_bucket, max(s.newest_bucket) AS newest_bucket,
                       max(s.newest_vol) AS newest_vol
                FROM feature_platform.symbol_state s WHERE s.symbol = marked.symbol
            ) AS state
        )
        SELECT c.symbol,
               cost.rows
               -- Each changed range costs a look-up of the next row.
               + (SELECT count(*) FROM unnest(c.changed))
               -- Where the first bar moved, a warm-up is dirty.
               + CASE WHEN lower(c.changed) <= c.first_bucket THEN 1440 ELSE 0 END AS rows
        FROM cached AS c
        CROSS JOIN LATERAL (
            -- The rows that a refresh of its marks reads, each range counting as one more.
            SELECT coalesce(sum(1 + bar.count + base.count + gone.count), 0)::bigint AS rows
            FROM unnest(c.buckets * tstzmultirange(kept)) AS r
            CROSS JOIN LATERAL (
                -- The bars of the dirty minutes.
                SELECT count(*) AS count, feature_platform.bucket_of(max(b.ts)) + interval '1 minute' AS until
                FROM (SELECT b.ts FROM public.ohlcv_1m b
                      WHERE b.symbol = c.symbol AND b.ts >= lower(r) AND b.ts < upper(r)
                        AND b.ts >= reads_from AND b.ts < reads_until
                      ORDER BY b.ts DESC LIMIT slice_rows) AS b
            ) AS bar
            CROSS JOIN LATERAL (
                -- The bars of the day before them, unless the cached sums replace these. A mark reaches a day beyond
                -- its last bar; a recomputation does not, so it ends with the last bar.
                SELECT count(*) AS count
                FROM (SELECT FROM public.ohlcv_1m b
                      WHERE bar.count > 0 AND b.symbol = c.symbol AND b.ts >= lower(r) - day AND b.ts < lower(r)
                        AND feature_platform.sums_from(c.newest_bucket, c.newest_vol, c.changed,
                                                       c.removed, lower(r), bar.until) IS NULL
                        AND b.ts >= reads_from AND b.ts < reads_until LIMIT slice_rows) AS b
            ) AS base
            CROSS JOIN LATERAL (
                -- The feature rows that may have to be deleted.
                SELECT count(*) AS count
                FROM (SELECT FROM public.features_1m f
                      WHERE c.removed AND f.symbol = c.symbol AND f.bucket >= lower(r) AND f.bucket < upper(r)
                        AND f.bucket >= reads_from AND f.bucket < reads_until LIMIT slice_rows) AS f
            ) AS gone
        ) AS cost
    LOOP
        IF cardinality(batch) = slice_symbols OR (batch <> '{}' AND batch_rows + candidate.rows > slice_rows) THEN
            more := true;
            picked := feature_platform.lock_symbols(batch);
            EXIT WHEN picked <> '{}';
            batch := '{}';
            batch_rows := 0;
        END IF;
        batch := batch || candidate.symbol;
        batch_rows := batch_rows + candidate.rows;
    END LOOP;
    IF picked = '{}' AND batch <> '{}' THEN
        picked := feature_platform.lock_symbols(batch);
        more := more OR cardinality(picked) < cardinality(batch);
        IF picked = '{}' THEN
            BEGIN
                PERFORM FROM feature_platform.refresh_lock k
                WHERE k.stripe = feature_platform.stripe_of(batch[1]) FOR UPDATE;
            EXCEPTION WHEN lock_not_available THEN
                NULL;   -- the caller calls again or stops
            END;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.pick_symbols(tstzrange, bigint, bigint, integer, boolean) IS
    'Locks symbols with dirty rows for one slice of a refresh.';

-- Lock the given symbols that no other refresher has locked, until the end of the transaction, and return them.
CREATE OR REPLACE FUNCTION feature_platform.lock_symbols(symbols text[]) RETURNS text[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    RETURN (
        WITH locked AS MATERIALIZED (
            SELECT k.stripe FROM feature_platform.refresh_lock k
            WHERE k.stripe = ANY (ARRAY(SELECT DISTINCT feature_platform.stripe_of(s) FROM unnest(symbols) AS s))
            FOR UPDATE SKIP LOCKED
        )
        SELECT coalesce(array_agg(s.symbol), '{}') FROM unnest(symbols) AS s (symbol)
        WHERE feature_platform.stripe_of(s.symbol) IN (SELECT stripe FROM locked));
END
$$;
COMMENT ON FUNCTION feature_platform.lock_symbols(text[]) IS
    'Locks the given symbols that no other refresher has locked.';

-- The feature rows of these ranges, and the sums behind them. STABLE, so that it reads the bars by the snapshot of the
-- statement that calls it.
CREATE OR REPLACE FUNCTION feature_platform.compute_features(items feature_platform.refresh_item[])
    RETURNS TABLE (symbol text, bucket timestamptz, last_close double precision, vol double precision,
                   log_return double precision, n_1d integer, ma_vol_1d double precision, std_vol_1d double precision,
                   volume_z double precision, vwap_gap double precision, parkinson_vol double precision,
                   sum_vol numeric, sum_vol_sq numeric, exact_vol numeric, last_of_range boolean)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan     -- plans depend on the size of the slice
    SET extra_float_digits = 1                  -- from 1 on, double -> text -> numeric loses nothing
    SET work_mem = '64MB'
    SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    day CONSTANT interval := '24 hours';        -- not '1 day': that follows the session's time zone
    warm_up CONSTANT interval := '1439 minutes';
    -- The bars of all ranges lie between these, so that a hypertable's other chunks are not even planned.
    reads_from CONSTANT timestamptz := (SELECT min(i.start) - day FROM unnest(items) AS i);
    reads_until CONSTANT timestamptz := (SELECT max(i.hi) FROM unnest(items) AS i);
BEGIN
    RETURN QUERY
    WITH minute_bar AS (
        -- Bars by minute, with exact volumes: of the range, and of the earlier minutes that its windows need.
        SELECT i.k, i.symbol, i.lo, i.start, i.first_bucket, i.base_n, i.base_sum, i.base_sum_sq, i.prev_close,
               i.base_n IS NULL OR b.bucket >= i.start AS enters, b.*
        FROM unnest(items) WITH ORDINALITY
             AS i (symbol, lo, hi, first_bucket, removed, has_ticks, start, leaves_until,
                   base_n, base_sum, base_sum_sq, prev_close, k)
        CROSS JOIN LATERAL (VALUES (i.start - day, i.leaves_until), (i.start, i.hi)) AS span (lo, hi)
        CROSS JOIN LATERAL (
            SELECT b.ts AS bucket, b.close AS last_close, b.vol + 0.0 AS vol,    -- + 0.0: a negative zero is a zero
                   b.vol::text::numeric AS exact_vol, b.high, b.low,
                   CASE WHEN b.vol > 0 THEN ((b.open + b.high + b.low + b.close) / 4 * b.vol) / b.vol
                        ELSE (b.open + b.high + b.low + b.close) / 4 END AS vwap
            FROM public.ohlcv_1m b
            WHERE NOT i.has_ticks AND b.symbol = i.symbol AND b.ts >= span.lo AND b.ts < span.hi
              AND b.ts >= reads_from AND b.ts < reads_until
            UNION ALL
            SELECT feature_platform.bucket_of(b.ts), (array_agg(b.close ORDER BY b.ts DESC))[1],
                   sum(b.vol::text::numeric)::double precision, sum(b.vol::text::numeric), max(b.high), min(b.low),
                   CASE WHEN max(b.vol) > 0
                        THEN sum((b.open + b.high + b.low + b.close) / 4 * b.vol ORDER BY b.ts) / sum(b.vol
                            ORDER BY b.ts)
                        ELSE avg((b.open + b.high + b.low + b.close) / 4 ORDER BY b.ts) END
            FROM public.ohlcv_1m b
            WHERE i.has_ticks AND b.symbol = i.symbol AND b.ts >= span.lo AND b.ts < span.hi
              AND b.ts >= reads_from AND b.ts < reads_until
            GROUP BY 1
        ) AS b
    ), running AS (
        -- Running sums from the first bar that is read: of all bars, and of the bars that enter the window. A cached
        -- base already has the bars before `start`; they are read only because they leave the window.
        SELECT m.*,
               lag(m.bucket) OVER u AS prev_bucket, lag(m.last_close) OVER u AS lag_close,
                   lead(m.bucket) OVER u AS next_bucket,
               count(*) FILTER (WHERE m.enters) OVER u AS n_in,
               sum(m.exact_vol) FILTER (WHERE m.enters) OVER u AS sum_in,
               sum(m.exact_vol * m.exact_vol) FILTER (WHERE m.enters) OVER u AS sum_sq_in,
               count(*) OVER u AS n_all, sum(m.exact_vol) OVER u AS sum_all,
                   sum(m.exact_vol * m.exact_vol) OVER u AS sum_sq_all
        FROM minute_bar m
        WINDOW u AS (PARTITION BY m.k ORDER BY m.bucket ROWS UNBOUNDED PRECEDING)
    ), window_sum AS (
        -- Sums over (bucket - 1 day, bucket]: the base and the bars that entered, minus the bars that left.
        SELECT r.symbol, r.lo, r.bucket, r.last_close, r.vol, r.vwap, r.high, r.low, r.next_bucket, r.first_bucket,
               r.exact_vol,
               CASE WHEN r.prev_bucket >= r.start OR (r.base_n IS NULL AND r.prev_bucket IS NOT NULL)
                    THEN r.lag_close ELSE r.prev_close END AS prev_close,
               coalesce(r.base_n, 0) + r.n_in - coalesce(last_value(r.n_all) OVER gone, 0) AS n,
               coalesce(r.base_sum, 0) + r.sum_in - coalesce(last_value(r.sum_all) OVER gone, 0) AS sum,
               coalesce(r.base_sum_sq, 0) + r.sum_sq_in - coalesce(last_value(r.sum_sq_all) OVER gone, 0) AS sum_sq,
               r.bucket >= r.lo AS wanted
        FROM running r
        WINDOW gone AS (PARTITION BY r.k ORDER BY r.bucket
                        RANGE BETWEEN UNBOUNDED PRECEDING AND interval '24 hours' PRECEDING)
    ), moments AS (
        SELECT w.*,
               CASE WHEN w.bucket >= w.first_bucket + warm_up THEN w.sum::double precision / w.n END AS mean,
               CASE WHEN w.bucket >= w.first_bucket + warm_up
                    THEN sqrt((w.n * w.sum_sq - w.sum * w.sum)::double precision) / w.n END AS std
        FROM window_sum w WHERE w.wanted
    )
    SELECT m.symbol, m.bucket, m.last_close, m.vol, ln(m.last_close / m.prev_close), m.n::integer, m.mean, m.std,
           CASE WHEN m.std > 0 THEN (m.vol - m.mean) / m.std END, m.last_close - m.vwap,
               0.5 * power(ln(m.high / m.low), 2),
           m.sum, m.sum_sq, m.exact_vol, m.next_bucket IS NULL
    FROM moments m;
END
$$;
COMMENT ON FUNCTION feature_platform.compute_features(feature_platform.refresh_item[]) IS
    'The feature rows of these ranges by their definition over the bars, and their sums.';

-- The first bucket of a symbol, and the last that may have a row. After the last bar there are no new rows; old rows
-- may still be stored there where bars were removed.
CREATE OR REPLACE FUNCTION feature_platform.bucket_ends(
    of_symbol text, changed tstzmultirange, removed boolean, known_first timestamptz)
    RETURNS TABLE (first_bucket timestamptz, last_bucket timestamptz)
    LANGUAGE sql STABLE     -- as the two functions below: part of the calling statement's plan and snapshot
BEGIN ATOMIC
    SELECT CASE WHEN known_first IS NOT NULL AND NOT removed
                     AND (changed = '{}' OR lower(changed) > known_first)   -- such a change cannot have moved it
           THEN known_first
           ELSE (SELECT feature_platform.bucket_of(b.ts) FROM public.ohlcv_1m b
                 WHERE b.symbol = of_symbol ORDER BY b.ts LIMIT 1) END,
           greatest(
               (SELECT feature_platform.bucket_of(b.ts) FROM public.ohlcv_1m b
                WHERE b.symbol = of_symbol ORDER BY b.ts DESC LIMIT 1),
               CASE WHEN removed THEN (SELECT f.bucket FROM public.features_1m f
                WHERE f.symbol = of_symbol ORDER BY f.bucket DESC LIMIT 1) END);
END;
COMMENT ON FUNCTION feature_platform.bucket_ends(text, tstzmultirange, boolean, timestamptz) IS
    'The first bucket of a symbol, and the last that may have a row.';

-- The rows that changed minutes reach beyond a day. `known_first` is the first bucket that the stored rows' warm-up was
-- counted from, NULL where it is unknown.
CREATE OR REPLACE FUNCTION feature_platform.mark_reach(
    of_symbol text, changed tstzmultirange, known_first timestamptz, first_bucket timestamptz, last_bucket timestamptz)
    RETURNS TABLE (next_rows tstzmultirange, warm_up tstzmultirange)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        -- The log return of the next existing row depends on a changed bar, across a gap of any length.
        coalesce((SELECT range_agg(tstzrange(next.bucket, next.bucket + '1 minute'::interval))
                  FROM unnest(changed) AS r
                  CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
                                      WHERE b.symbol = of_symbol
                                        AND b.ts >= upper(r) - '24 hours'::interval + '1 minute'::interval
                                      ORDER BY b.ts LIMIT 1) AS next
                  WHERE upper(r) - '24 hours'::interval < last_bucket AND next.bucket >= upper(r)), '{}'),
        -- The warm-up begins at the first bucket: where that moved, the old and the new first day are dirty. Without
        -- the cache, the stored rows show the old one: within the warm-up they have no mean.
        CASE WHEN known_first = first_bucket OR first_bucket IS NULL THEN '{}'
             WHEN known_first IS NOT NULL
             THEN tstzmultirange(tstzrange(known_first, known_first + '1439 minutes'::interval),
                                 tstzrange(first_bucket, first_bucket + '1439 minutes'::interval))
             ELSE coalesce((SELECT range_agg(tstzrange(f.bucket, f.bucket + '1 minute'::interval))
                            FROM public.features_1m f
                            WHERE f.symbol = of_symbol
                              AND (f.ma_vol_1d IS NULL) <> (f.bucket < first_bucket + '1439 minutes'::interval)),
                           '{}') END;
END;
COMMENT ON FUNCTION feature_platform.mark_reach(text, tstzmultirange, timestamptz, timestamptz, timestamptz) IS
    'The rows that changed minutes reach beyond a day: next rows, and rows of a moved warm-up.';

-- The base of a range's recomputation, as refresh_item holds it: from the remembered sums where they hold, else from
-- the bars of the day before the range. No bar before reads_from or from reads_until on is needed; these limits let a
-- hypertable exclude chunks.
CREATE OR REPLACE FUNCTION feature_platform.range_base(
    of_symbol text, lo timestamptz, hi timestamptz, changed tstzmultirange, removed boolean,
    newest_bucket timestamptz, newest_n bigint, newest_sum numeric, newest_sum_sq numeric,
    newest_close double precision, newest_vol numeric, reads_from timestamptz, reads_until timestamptz)
    RETURNS TABLE (has_ticks boolean, start timestamptz, leaves_until timestamptz, base_n bigint, base_sum numeric,
                   base_sum_sq numeric, prev_close double precision)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM public.ohlcv_1m b
                   WHERE b.symbol = of_symbol AND b.ts >= base.start - '24 hours'::interval AND b.ts < hi
                     AND b.ts >= reads_from AND b.ts < reads_until
                     AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00')),
           base.start,
           CASE WHEN base.known THEN hi - '24 hours'::interval ELSE base.start END,
           CASE WHEN base.known THEN newest_n + own.n END,
           CASE WHEN base.known THEN newest_sum + own.sum END,
           CASE WHEN base.known THEN newest_sum_sq + own.sum_sq END,
           CASE WHEN base.known AND base.start > newest_bucket THEN newest_close
                ELSE (SELECT b.close FROM public.ohlcv_1m b
                      WHERE b.symbol = of_symbol AND b.ts < base.start ORDER BY b.ts DESC LIMIT 1) END
    FROM (SELECT s.start IS NOT NULL AS known, coalesce(s.start, lo) AS start
          FROM (SELECT feature_platform.sums_from(newest_bucket, newest_vol, changed, removed, lo, hi) AS start) AS s
         ) AS base
    CROSS JOIN LATERAL (
        -- Just before the newest row, the window has not yet that row, and still has the minute a day earlier.
        SELECT CASE WHEN base.start = newest_bucket THEN leaving.n - 1 ELSE 0 END AS n,
               CASE WHEN base.start = newest_bucket THEN leaving.vol - newest_vol ELSE 0 END AS sum,
               CASE WHEN base.start = newest_bucket
                    THEN leaving.vol * leaving.vol - newest_vol * newest_vol ELSE 0 END AS sum_sq
        FROM (SELECT sign(count(*))::bigint AS n, coalesce(sum(b.vol::text::numeric), 0) AS vol
              FROM public.ohlcv_1m b
              WHERE base.known AND base.start = newest_bucket AND b.symbol = of_symbol
                AND b.ts >= base.start - '24 hours'::interval
                AND b.ts < base.start - '24 hours'::interval + '1 minute'::interval
                AND b.ts >= reads_from AND b.ts < reads_until) AS leaving
    ) AS own;
END;
COMMENT ON FUNCTION feature_platform.range_base(
    text, timestamptz, timestamptz, tstzmultirange, boolean, timestamptz, bigint, numeric, numeric, double precision,
    numeric, timestamptz, timestamptz) IS
    'The base of a range''s recomputation: its start, and the window sums and the close just before it.';

-- Delete the rows of these ranges whose minute has lost its last bar; return their number. It works range by range, so
-- that a columnstore decompresses only these. As a difference of two sets, its cost is their size, with or without
-- statistics. The planner's settings are those of refresh_symbols.
CREATE OR REPLACE FUNCTION feature_platform.delete_rows_without_bars(items feature_platform.refresh_item[])
    RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    item feature_platform.refresh_item;
    deleted bigint;
    total bigint := 0;
BEGIN
    FOREACH item IN ARRAY items LOOP
        IF item.removed THEN
            -- IS TRUE keeps the planner from a join, which may be a nested loop, and from a look-up by the index on the
            -- bucket alone, which reads the rows of all symbols: the sub-query becomes a hash table.
            DELETE FROM public.features_1m f
            WHERE f.symbol = item.symbol AND f.bucket >= item.lo AND f.bucket < item.hi
              AND (f.bucket IN (
                  SELECT o.bucket FROM public.features_1m o
                  WHERE o.symbol = item.symbol AND o.bucket >= item.lo AND o.bucket < item.hi
                  EXCEPT
                  SELECT feature_platform.bucket_of(b.ts) FROM public.ohlcv_1m b
                  WHERE b.symbol = item.symbol AND b.ts >= item.lo AND b.ts < item.hi)) IS TRUE;
            GET DIAGNOSTICS deleted = ROW_COUNT;
            total := total + deleted;
        END IF;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION feature_platform.delete_rows_without_bars(feature_platform.refresh_item[]) IS
    'Deletes the rows of these ranges whose minute has no bar.';

-- Bring the rows of these symbols up to date with the marks in a window; return the number of rows that were stored or
-- deleted. The caller has locked the symbols. One statement, and so one snapshot, takes the marks, reads the bars and
-- stores the rows. It sees a change together with its mark or neither, so no commit can come between the two.
CREATE OR REPLACE FUNCTION feature_platform.refresh_symbols(
    picked text[], refresh_window tstzrange, slice_rows bigint, OUT minutes bigint, OUT rows_written bigint)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- as in pick_symbols
    SET enable_seqscan = off
    SET jit = off
    SET extra_float_digits = 1                  -- as in compute_features
AS $$
DECLARE
    -- No range needs bars before the two days up to the window. The limit is known when the statement starts, so that a
    -- hypertable excludes older chunks. '24 hours': a day would follow the session's time zone.
    reads_from CONSTANT timestamptz := lower(refresh_window) - 2 * interval '24 hours';
    reads_until CONSTANT timestamptz := upper(refresh_window);
    items feature_platform.refresh_item[];
    has_views boolean;
BEGIN
    -- A view that is applied meanwhile either gets the changes or sees their bars.
    LOCK TABLE feature_platform.view_lock IN ROW SHARE MODE;
    has_views := EXISTS (SELECT FROM feature_platform.feature_view v WHERE v.state <> 'failed');
    -- 1. Take the marks, add the rows that they reach beyond a day, put back the part outside of the window or the
    -- slice.
    WITH taken AS (
        DELETE FROM feature_platform.dirty_log l
        WHERE l.symbol = ANY (picked) AND lower(l.buckets) < upper(refresh_window)
            AND (NOT l.reach_known OR l.buckets && refresh_window)
        RETURNING l.*
    ), for_views AS (
        INSERT INTO feature_platform.view_change (symbol, changed, removed, marked_at)
        SELECT t.symbol, range_agg(t.changed), bool_or(t.removed), min(t.marked_at)
        FROM taken t WHERE has_views AND t.changed IS NOT NULL GROUP BY t.symbol
    ), mark AS (
        SELECT t.symbol, min(t.id) AS id, min(t.marked_at) AS marked_at, bool_or(t.removed) AS removed,
               coalesce(range_agg(t.buckets) FILTER (WHERE NOT t.reach_known), '{}') AS changed,
               coalesce(range_agg(t.buckets) FILTER (WHERE t.reach_known), '{}') AS rest
        FROM taken t GROUP BY t.symbol
    ), known AS MATERIALIZED (      -- otherwise the planner repeats the look-ups at each use
        SELECT m.*, s.first_bucket AS old_first, ends.first_bucket, ends.last_bucket,
               s.newest_bucket, s.newest_n, s.newest_sum, s.newest_sum_sq, s.newest_close, s.newest_vol,
               s.newest_bucket IS NOT NULL AND NOT m.removed AND NOT m.changed @> s.newest_bucket AS newest_holds
        FROM mark m
        LEFT JOIN feature_platform.symbol_state s ON s.symbol = m.symbol
        CROSS JOIN LATERAL feature_platform.bucket_ends(m.symbol, m.changed, m.removed, s.first_bucket) AS ends
    ), dirty AS MATERIALIZED (
        SELECT k.*, (k.changed + k.rest + reach.next_rows + reach.warm_up)
                    * tstzmultirange(tstzrange(feature_platform.features_from(), NULL) * tstzrange(NULL,
                        coalesce(k.last_bucket + interval '1 minute', '-infinity'))) AS buckets
        FROM known k
        CROSS JOIN LATERAL feature_platform.mark_reach(
            k.symbol, k.changed, k.old_first, k.first_bucket, k.last_bucket) AS reach
    ), todo AS (
        SELECT d.*, CASE WHEN cardinality(picked) = 1
                         THEN feature_platform.newest_rows(
                             d.symbol, d.buckets * tstzmultirange(refresh_window), slice_rows, d.removed)
                         ELSE d.buckets * tstzmultirange(refresh_window) END AS now
        FROM dirty d
    ), put_back AS (
        INSERT INTO feature_platform.dirty_log (symbol, id, buckets, reach_known, removed, marked_at)
        SELECT t.symbol, t.id, t.buckets - t.now, true, t.removed, t.marked_at
        FROM todo t WHERE t.buckets - t.now <> '{}'
    -- 2. The start of each range's recomputation.
    ), item AS MATERIALIZED (
        SELECT coalesce(array_agg(
                   ROW(t.symbol, lower(r), upper(r), t.first_bucket, t.removed, base.*)::feature_platform.refresh_item
                   ORDER BY t.symbol, lower(r)), '{}') AS items
        FROM todo t
        CROSS JOIN LATERAL unnest(t.now) AS r
        CROSS JOIN LATERAL feature_platform.range_base(
            t.symbol, lower(r), upper(r), t.changed, t.removed, t.newest_bucket, t.newest_n, t.newest_sum,
            t.newest_sum_sq, t.newest_close, t.newest_vol, reads_from, reads_until) AS base
    -- 3. Recompute, and store the rows that differ.
    ), computed AS MATERIALIZED (
        SELECT c.* FROM item i CROSS JOIN LATERAL feature_platform.compute_features(i.items) AS c
    ), stored AS (
        INSERT INTO public.features_1m AS f
            (symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap,
             parkinson_vol)
        SELECT c.symbol, c.bucket, c.last_close, c.vol, c.log_return, c.n_1d, c.ma_vol_1d, c.std_vol_1d, c.volume_z,
               c.vwap_gap, c.parkinson_vol
        FROM computed c
        ON CONFLICT (symbol, bucket) DO UPDATE
        SET last_close = excluded.last_close, vol = excluded.vol, log_return = excluded.log_return,
            n_1d = excluded.n_1d, ma_vol_1d = excluded.ma_vol_1d, std_vol_1d = excluded.std_vol_1d,
            volume_z = excluded.volume_z, vwap_gap = excluded.vwap_gap, parkinson_vol = excluded.parkinson_vol
        WHERE (f.last_close, f.vol, f.log_return, f.n_1d, f.ma_vol_1d, f.std_vol_1d, f.volume_z, f.vwap_gap,
               f.parkinson_vol)
              IS DISTINCT FROM
              (excluded.last_close, excluded.vol, excluded.log_return, excluded.n_1d, excluded.ma_vol_1d,
               excluded.std_vol_1d, excluded.volume_z, excluded.vwap_gap, excluded.parkinson_vol)
        RETURNING 1
    -- 4. Remember the first bucket and the newest sums; delete sums that a change made wrong.
    ), newest AS (
        SELECT DISTINCT ON (c.symbol) c.* FROM computed c WHERE c.last_of_range ORDER BY c.symbol, c.bucket DESC
    ), remembered AS (
        INSERT INTO feature_platform.symbol_state AS s
            (symbol, first_bucket, newest_bucket, newest_n, newest_sum, newest_sum_sq, newest_close, newest_vol)
        SELECT t.symbol, t.first_bucket,
               CASE WHEN better.keep THEN t.newest_bucket ELSE n.bucket END,
               CASE WHEN better.keep THEN t.newest_n ELSE n.n_1d END,
               CASE WHEN better.keep THEN t.newest_sum ELSE n.sum_vol END,
               CASE WHEN better.keep THEN t.newest_sum_sq ELSE n.sum_vol_sq END,
               CASE WHEN better.keep THEN t.newest_close ELSE n.last_close END,
               CASE WHEN better.keep THEN t.newest_vol ELSE n.exact_vol END
        FROM todo t
        LEFT JOIN newest n ON n.symbol = t.symbol
        CROSS JOIN LATERAL (
            SELECT t.newest_holds AND (n.bucket IS NULL OR n.bucket <= t.newest_bucket) AS keep
        ) AS better
        WHERE (t.first_bucket IS DISTINCT FROM t.old_first OR NOT better.keep)
          AND (t.first_bucket IS NOT NULL OR t.old_first IS NOT NULL)     -- a symbol without bars needs no row
        ORDER BY t.symbol
        ON CONFLICT ON CONSTRAINT symbol_state_pkey DO UPDATE
        SET first_bucket = excluded.first_bucket, newest_bucket = excluded.newest_bucket, newest_n = excluded.newest_n,
            newest_sum = excluded.newest_sum, newest_sum_sq = excluded.newest_sum_sq,
            newest_close = excluded.newest_close, newest_vol = excluded.newest_vol
    )
    SELECT i.items, (SELECT count(*) FROM stored),
           (SELECT coalesce(sum(extract(epoch FROM r.hi - r.lo))::bigint / 60, 0) FROM unnest(i.items) AS r)
    INTO items, rows_written, minutes FROM item i;

    -- 5. Delete the rows that have no bar any more. This statement has a later snapshot, which does no harm: it deletes
    -- a row only where there is no bar now.
    rows_written := rows_written + feature_platform.delete_rows_without_bars(items);
END
$$;
COMMENT ON FUNCTION feature_platform.refresh_symbols(text[], tstzrange, bigint) IS
    'Brings the rows of some symbols up to date with the marks in a window.';

-- Bring one slice of the dirty rows in [window_lo, window_hi) up to date, in the caller's transaction: at most
-- slice_symbols symbols and about slice_rows rows, and at least one symbol, whose newest rows come first.
-- `newest_first` picks only symbols with marks inside the window, sorted by their newest mark; the window of an older
-- mark refreshes the rows that it reaches. Return the numbers of symbols and minutes, the number of rows stored or
-- deleted, and whether there is more to do.
CREATE OR REPLACE FUNCTION feature_platform.refresh_slice(
    window_lo timestamptz, window_hi timestamptz, horizon bigint,
    slice_rows bigint DEFAULT 50000, slice_symbols integer DEFAULT 1000, newest_first boolean DEFAULT false,
    OUT symbols integer, OUT minutes bigint, OUT rows_written bigint, OUT more boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refresh_window CONSTANT tstzrange := tstzrange(window_lo, greatest(window_lo, window_hi));
    picked text[];
BEGIN
    SELECT p.picked, p.more INTO picked, more
    FROM feature_platform.pick_symbols(refresh_window, horizon, slice_rows, slice_symbols, newest_first) AS p;
    symbols := cardinality(picked);
    minutes := 0;
    rows_written := 0;
    IF symbols > 0 THEN
        SELECT r.minutes, r.rows_written INTO minutes, rows_written
        FROM feature_platform.refresh_symbols(picked, refresh_window, slice_rows) AS r;
        -- A slice may have put back a part of a long range, whose length the marks alone did not show.
        more := more OR EXISTS (SELECT FROM feature_platform.dirty_log l
                                WHERE l.symbol = ANY (picked) AND l.id <= horizon AND l.buckets && refresh_window);
    END IF;
EXCEPTION WHEN deadlock_detected THEN
    -- A deadlock is possible only with a session that locks the tables in two steps, as TimescaleDB does when it moves
    -- a chunk into the columnstore. That session continues now; this slice is rolled back, and the caller repeats it.
    symbols := 0;
    minutes := 0;
    rows_written := 0;
    more := true;
END
$$;
COMMENT ON FUNCTION feature_platform.refresh_slice(timestamptz, timestamptz, bigint, bigint, integer, boolean) IS
    'Brings one slice of the dirty rows in a window up to date, in the caller''s transaction.';

CREATE OR REPLACE PROCEDURE public.refresh_features_1m(
    window_start timestamptz, window_end timestamptz, force boolean DEFAULT false)
    LANGUAGE plpgsql
AS $$
DECLARE
    window_lo timestamptz := coalesce(feature_platform.bucket_from(window_start), '-infinity');
    window_hi timestamptz := least(coalesce(feature_platform.bucket_from(window_end), 'infinity'),
                                   feature_platform.due_until());
    horizon bigint;
    slice record;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'refresh_features_1m needs READ COMMITTED, this transaction is %',
            upper(current_setting('transaction_isolation'));
    ELSIF window_start >= window_end THEN
        RAISE EXCEPTION 'the refresh window is empty: window_start % is not before window_end %', window_start,
            window_end;
    END IF;
    -- Each slice is its own transaction, as in refresh_continuous_aggregate(): inside a transaction block this fails
    -- here.
    COMMIT;
    IF force THEN
        PERFORM feature_platform.mark_window(window_lo, window_hi);
        COMMIT;
    END IF;
    horizon := feature_platform.dirty_horizon();
    LOOP
        SELECT * INTO slice FROM feature_platform.refresh_slice(window_lo, window_hi, horizon);
        COMMIT;
        EXIT WHEN NOT slice.more;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE public.refresh_features_1m(timestamptz, timestamptz, boolean) IS
    'Brings features_1m up to date for window_start <= bucket < window_end; NULL is unbounded; force also recomputes '
    'clean rows.';
