-- The refresh: it takes marks out of the dirty log, recomputes their rows from the bars, and stores the rows that
-- differ.

-- A cache of each symbol's first bucket; the states of its newest rows are in features_1m_state. Deleting rows of
-- either costs only time.
CREATE TABLE IF NOT EXISTS feature_platform.symbol_state (
    symbol        text COLLATE "C" NOT NULL CONSTRAINT symbol_state_pkey PRIMARY KEY,
    first_bucket  timestamptz           -- the first bucket that the stored rows' warm-up was counted from
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE feature_platform.symbol_state IS 'Cache of each symbol''s first bucket; may be emptied at any time.';

DO $$
BEGIN
    IF to_regtype('feature_platform.refresh_work') IS NULL THEN
        CREATE TYPE feature_platform.refresh_work AS (
            symbol       text COLLATE "C",
            mark         bigint,            -- the number of its first mark
            marked_at    timestamptz,
            removed      boolean,
            first_bucket timestamptz,
            last_bucket  timestamptz,
            dirty        tstzmultirange,    -- all dirty minutes
            now          tstzmultirange,    -- those that the slice refreshes
            step_from    timestamptz,       -- the bucket whose state they all continue, NULL: not decided yet
            before_no    bigint             -- the symbol's number before what had been put back
        );
    END IF;
END
$$;
COMMENT ON TYPE feature_platform.refresh_work IS 'The minutes of one symbol that a slice refreshes.';

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

-- Whether all buckets from the one after `step_from` up to `until` are computed by steps, from the state of
-- `step_from`. A step of one symbol costs as much as eight rows of a range, and a range reads the day before it.
CREATE OR REPLACE FUNCTION feature_platform.can_step(
    step_from timestamptz, first_bucket timestamptz, removed boolean, until timestamptz) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE       -- STABLE as timestamptz - timestamptz, else it is not inlined
    RETURN NOT removed AND step_from >= first_bucket AND until - step_from <= '100 minutes'::interval;
COMMENT ON FUNCTION feature_platform.can_step(timestamptz, timestamptz, boolean, timestamptz) IS
    'Whether buckets are computed one after another from a cached state.';

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
    -- The bars have not changed, so no row beyond the window is dirty.
    INSERT INTO feature_platform.dirty_log (symbol, buckets, changed, reach_known, removed)
    SELECT s.symbol, tstzmultirange(w.buckets), tstzmultirange(w.buckets), true, true
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
            -- With the caches of its last refresh; aggregates, because a symbol without a cache counts, too.
            SELECT marked.*, state.first_bucket, newest.step_from
            FROM marked
            CROSS JOIN LATERAL (
                SELECT max(s.first_bucket) AS first_bucket
                FROM feature_platform.symbol_state s WHERE s.symbol = marked.symbol
            ) AS state
            CROSS JOIN LATERAL (
                SELECT max(t.bucket) AS step_from
                FROM feature_platform.features_1m_state t
                WHERE t.symbol = marked.symbol AND NOT marked.buckets @> t.bucket
            ) AS newest
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
            SELECT coalesce(sum(1 + bar.count * step.cost + base.count + gone.count), 0)::bigint AS rows
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
                SELECT CASE WHEN lower(r) > c.step_from
                                 AND feature_platform.can_step(c.step_from, c.first_bucket, c.removed, bar.until)
                            THEN 8 ELSE 1 END AS cost
            ) AS step
            CROSS JOIN LATERAL (
                -- The bars of the day before them, unless a cached state replaces these. A mark reaches a day beyond
                -- its last bar; a recomputation does not, so it ends with the last bar.
                SELECT count(*) AS count
                FROM (SELECT FROM public.ohlcv_1m b
                      WHERE bar.count > 0 AND b.symbol = c.symbol AND b.ts >= lower(r) - day AND b.ts < lower(r)
                        AND step.cost = 1
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

-- The rows whose warm-up has moved, because the first bucket did: the old and the new first day. `known_first` is the
-- first bucket that the stored rows' warm-up was counted from. Where it is unknown, the stored rows show it: within the
-- warm-up they have no mean.
CREATE OR REPLACE FUNCTION feature_platform.moved_warm_up(
    of_symbol text, known_first timestamptz, first_bucket timestamptz) RETURNS TABLE (buckets tstzmultirange)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN known_first = first_bucket OR first_bucket IS NULL THEN '{}'
                WHEN known_first IS NOT NULL
                THEN tstzmultirange(tstzrange(known_first, known_first + '1439 minutes'::interval),
                                    tstzrange(first_bucket, first_bucket + '1439 minutes'::interval))
                ELSE coalesce((SELECT range_agg(tstzrange(f.bucket, f.bucket + '1 minute'::interval))
                               FROM public.features_1m f
                               WHERE f.symbol = of_symbol
                                 AND (f.ma_vol_1d IS NULL) <> (f.bucket < first_bucket + '1439 minutes'::interval)),
                              '{}') END;
END;
COMMENT ON FUNCTION feature_platform.moved_warm_up(text, timestamptz, timestamptz) IS
    'The rows whose warm-up has moved with the first bucket of a symbol.';

-- Take the marks of these symbols in a window out of the dirty log, and divide what they reach: `now` is the part that
-- a slice refreshes, the rest is put back. The caller has locked the symbols, and then drawn the number of the refresh.
--
-- Most symbols of a slice have new minutes only. They continue the state of the bucket before these, so that no row
-- beyond them has to be looked up.
CREATE OR REPLACE FUNCTION feature_platform.take_marks(
    picked text[], refresh_window tstzrange, slice_rows bigint, of_refresh bigint)
    RETURNS feature_platform.refresh_work[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- as in pick_symbols
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    -- No row needs bars before the two days up to the window. The limit is known when the statement starts, so that a
    -- hypertable excludes older chunks. '24 hours': a day would follow the session's time zone.
    reads_from CONSTANT timestamptz := lower(refresh_window) - 2 * interval '24 hours';
    has_views boolean;
    lake_until timestamptz;
    work feature_platform.refresh_work[];
BEGIN
    -- A view that is applied meanwhile either gets the changes or sees their bars.
    LOCK TABLE feature_platform.view_lock IN ROW SHARE MODE;
    has_views := EXISTS (SELECT FROM feature_platform.feature_view v WHERE v.state <> 'failed');
    lake_until := (SELECT t.recorded_until FROM feature_platform.lake_table t WHERE t.name = 'ohlcv_1m');
    WITH taken AS (
        DELETE FROM feature_platform.dirty_log l
        WHERE l.symbol = ANY (picked) AND lower(l.buckets) < upper(refresh_window)
            AND (NOT l.reach_known OR l.buckets && refresh_window)
        RETURNING l.*
    ), for_views AS (
        INSERT INTO feature_platform.view_change (symbol, changed, removed, marked_at)
        SELECT t.symbol, range_agg(t.changed), bool_or(t.removed), min(t.marked_at)
        FROM taken t WHERE has_views AND t.changed IS NOT NULL GROUP BY t.symbol
    ), for_lake AS (
        INSERT INTO feature_platform.lake_change (name, symbol, days)
        SELECT 'ohlcv_1m', t.symbol, feature_platform.days_of(range_agg(t.changed), lake_until)
        FROM taken t WHERE t.changed && tstzrange(NULL, lake_until) AND lake_until IS NOT NULL GROUP BY t.symbol
    ), ended AS (
        -- The versions of bars that these marks have replaced ended with this refresh.
        INSERT INTO feature_platform.bar_refresh (symbol, mark, no, last)
        SELECT t.symbol, t.id, of_refresh, upper(t.changed) FROM taken t WHERE t.replaced AND NOT t.reach_known
    ), floor AS (
        -- TRUNCATE keeps no versions. As long as rows of before it wait, the next refresh is the first that can be
        -- answered.
        INSERT INTO feature_platform.knowledge_floor AS f (symbol, no)
        SELECT DISTINCT t.symbol, of_refresh FROM taken t
        LEFT JOIN feature_platform.knowledge_floor k ON k.symbol = t.symbol
        WHERE CASE WHEN t.reach_known THEN t.before_no < k.no
                   ELSE t.removed AND NOT t.replaced AND upper(t.changed) >= '10000-01-01 00:00:00+00' END
        ON CONFLICT ON CONSTRAINT knowledge_floor_pkey DO UPDATE SET no = excluded.no
    ), mark AS (
        SELECT t.symbol, min(t.id) AS id, min(t.marked_at) AS marked_at, bool_or(t.removed) AS removed,
               bool_or(t.reach_known AND t.changed IS NOT NULL) AS forced,
               coalesce(range_agg(t.buckets) FILTER (WHERE NOT t.reach_known), '{}') AS changed,
               -- TRUNCATE changed every minute, but only those of `buckets` have rows.
               coalesce(range_agg(coalesce(t.changed * t.buckets, t.buckets)) FILTER (WHERE NOT t.reach_known), '{}')
                   AS minutes,
               coalesce(range_agg(t.buckets) FILTER (WHERE t.reach_known), '{}') AS rest,
               min(t.before_no) AS before_no
        FROM taken t GROUP BY t.symbol
    ), known AS MATERIALIZED (      -- otherwise the planner repeats the look-ups at each use
        SELECT m.*, s.first_bucket AS old_first, ends.first_bucket, ends.last_bucket, state.newest, state.before,
               -- By this snapshot: a longer retention is committed together with the marks of the rows to restore.
               (SELECT feature_platform.features_from()) AS kept_from
        FROM mark m
        LEFT JOIN feature_platform.symbol_state s ON s.symbol = m.symbol
        CROSS JOIN LATERAL feature_platform.bucket_ends(m.symbol, m.changed, m.removed, s.first_bucket) AS ends
        CROSS JOIN LATERAL (
            SELECT max(t.bucket) AS newest,
                   max(t.bucket) FILTER (
                       WHERE t.bucket < coalesce(lower(m.changed), lower(m.rest * tstzmultirange(refresh_window)))
                   ) AS before
            FROM feature_platform.features_1m_state t WHERE t.symbol = m.symbol
        ) AS state
    ), stepped AS MATERIALIZED (
        SELECT k.*, CASE WHEN feature_platform.can_step(k.before, k.old_first, k.removed, k.last_bucket + minute)
                              AND k.old_first = k.first_bucket AND k.before < k.last_bucket
                              AND k.before + minute >= lower(refresh_window) AND k.before + minute >= k.kept_from
                              -- Else a symbol with new minutes in each slice would never refresh its older rows.
                              AND NOT k.rest * tstzmultirange(refresh_window) && tstzrange(NULL, k.before + minute)
                              AND NOT EXISTS (
                                  SELECT FROM public.ohlcv_1m b
                                  WHERE b.symbol = k.symbol AND b.ts >= k.before - interval '24 hours'
                                    AND b.ts <= k.last_bucket + minute AND b.ts >= reads_from
                                    AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00'))
                         THEN k.before END AS step_from
        FROM known k
    ), dirty AS MATERIALIZED (
        SELECT d.*, CASE WHEN d.step_from IS NULL
                         THEN d.changed + d.rest + feature_platform.features_1m_reach(
                                  d.symbol, d.minutes, coalesce(d.last_bucket, '-infinity'))
                              + w.buckets
                         ELSE d.rest + tstzmultirange(tstzrange(d.step_from + minute, NULL)) END
                    * tstzmultirange(tstzrange(d.kept_from, NULL) * tstzrange(NULL,
                        coalesce(d.last_bucket + minute, '-infinity'))) AS buckets
        FROM stepped d
        CROSS JOIN LATERAL feature_platform.moved_warm_up(d.symbol, d.old_first, d.first_bucket) AS w
    ), todo AS MATERIALIZED (
        SELECT d.*, CASE WHEN d.step_from IS NOT NULL
                         THEN tstzmultirange(refresh_window * tstzrange(d.step_from + minute, d.last_bucket + minute))
                         WHEN cardinality(picked) = 1
                         THEN feature_platform.newest_rows(
                             d.symbol, d.buckets * tstzmultirange(refresh_window), slice_rows, d.removed)
                         ELSE d.buckets * tstzmultirange(refresh_window) END AS now
        FROM dirty d
    ), put_back AS (
        INSERT INTO feature_platform.dirty_log (symbol, id, buckets, reach_known, removed, marked_at, before_no)
        SELECT t.symbol, t.id, t.buckets - t.now, true, t.removed, t.marked_at,
               coalesce(t.before_no, feature_platform.number_of(t.symbol))
        FROM todo t WHERE t.buckets - t.now <> '{}'
    ), wrong_state AS (
        -- `buckets` lacks rows that the retention has deleted. A refresh with `force` trusts no state: the bars may
        -- have changed without marks.
        DELETE FROM feature_platform.features_1m_state s USING todo t
        WHERE s.symbol = t.symbol AND t.newest IS NOT NULL
          AND (t.step_from IS NULL OR t.newest > t.step_from)
          AND (s.bucket > t.step_from OR t.old_first IS NULL OR t.forced OR t.buckets @> s.bucket
               OR s.bucket < t.kept_from)
    ), remembered AS (
        INSERT INTO feature_platform.symbol_state AS s (symbol, first_bucket)
        SELECT t.symbol, t.first_bucket FROM todo t
        WHERE t.first_bucket IS DISTINCT FROM t.old_first
        ORDER BY t.symbol
        ON CONFLICT ON CONSTRAINT symbol_state_pkey DO UPDATE SET first_bucket = excluded.first_bucket
    )
    SELECT coalesce(array_agg(ROW(t.symbol, t.id, t.marked_at, t.removed, t.first_bucket, t.last_bucket, t.buckets,
                                  t.now, t.step_from, t.before_no)::feature_platform.refresh_work
                              ORDER BY t.symbol), '{}')
    INTO work FROM todo t;
    -- The rows of this refresh count their warm-up from the first bar, whose own row may have to wait.
    PERFORM feature_platform.note_bars(
        array_agg(w.symbol), array_agg(w.first_bucket), array_agg(w.first_bucket + minute),
        array_agg(w.first_bucket + minute), of_refresh)
    FROM unnest(work) AS w
    WHERE w.step_from IS NULL AND w.first_bucket < upper(refresh_window)
      AND (feature_platform.has_ended(w.symbol, w.first_bucket, w.first_bucket + minute)
           OR NOT EXISTS (SELECT FROM public.features_1m f WHERE f.symbol = w.symbol AND f.bucket = w.first_bucket))
    HAVING count(*) > 0;
    RETURN work;
END
$$;
COMMENT ON FUNCTION feature_platform.take_marks(text[], tstzrange, bigint, bigint) IS
    'Takes the marks of some symbols out of the dirty log; returns the minutes that a slice refreshes.';

-- Bring the rows of these symbols up to date with the marks in a window; return the number of rows that were stored or
-- deleted. The caller has locked the symbols.
--
-- A change that is committed after the marks were taken has its mark in the log. Rows of ranges may hold such a change
-- early, and its mark makes them dirty again. A step skips a symbol where its state may lack such a change, which the
-- step's look-ups see; the skipped minutes become dirty again.
CREATE OR REPLACE FUNCTION feature_platform.refresh_symbols(
    picked text[], refresh_window tstzrange, slice_rows bigint, OUT minutes bigint, OUT rows_written bigint)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- as in pick_symbols
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    origin CONSTANT timestamptz := '1970-01-01 00:00:00+00';
    due CONSTANT timestamptz := feature_platform.due_until();
    of_refresh CONSTANT bigint := feature_platform.next_refresh();
    work CONSTANT feature_platform.refresh_work[] :=
        feature_platform.take_marks(picked, refresh_window, slice_rows, of_refresh);
    one feature_platform.refresh_work;
    symbols text[]; ats timestamptz[]; untils timestamptz[]; firsts timestamptz[];
    ranges feature_platform.view_item[] := '{}';
    divided record;
    steps record;
    computed record;
    part tstzrange;
    gone record;
    skipped_symbols text[] := '{}';
    skipped tstzrange[] := '{}';
BEGIN
    SELECT coalesce(array_agg(w.symbol), '{}'), coalesce(array_agg(w.step_from), '{}'),
           coalesce(array_agg(upper(w.now)), '{}'), coalesce(array_agg(w.first_bucket), '{}')
    INTO symbols, ats, untils, firsts
    FROM unnest(work) AS w WHERE w.step_from IS NOT NULL;
    rows_written := 0;
    FOR one IN SELECT * FROM unnest(work) AS w WHERE w.step_from IS NULL AND w.now <> '{}' LOOP
        SELECT * INTO divided FROM feature_platform.divide_buckets(
            'feature_platform', 'features_1m', minute, origin, false, 100,
            one.symbol, one.now, one.dirty, NULL, one.first_bucket, one.last_bucket, due);
        IF divided.at IS NOT NULL THEN
            symbols := symbols || one.symbol;
            ats := ats || divided.at;
            untils := untils || divided.until;
            firsts := firsts || one.first_bucket;
        END IF;
        ranges := ranges || divided.ranges;
        IF one.removed THEN
            FOR part IN SELECT r FROM unnest(one.now) AS r LOOP
                gone := feature_platform.delete_rows_without_bars(
                    'public.features_1m', 'feature_platform.features_1m_history', one.symbol, part, minute, of_refresh);
                rows_written := rows_written + gone.deleted;
                IF gone.skipped THEN
                    skipped_symbols := skipped_symbols || one.symbol;
                    skipped := skipped || part;
                END IF;
            END LOOP;
        END IF;
    END LOOP;
    -- Steps come before the ranges, whose states may take the same slots.
    SELECT * INTO steps FROM feature_platform.run_steps(
        'feature_platform', 'features_1m', minute, symbols, ats, untils, firsts, of_refresh);
    computed := feature_platform.run_ranges('feature_platform', 'features_1m', ranges, of_refresh);
    rows_written := rows_written + steps.written + computed.written;
    skipped_symbols := skipped_symbols || steps.skipped_symbols || computed.skipped_symbols;
    skipped := skipped || steps.skipped || computed.skipped;
    IF skipped_symbols <> '{}' THEN
        -- As new marks, which the next refresh processes: beside a fast writer this one would never end.
        INSERT INTO feature_platform.dirty_log (symbol, buckets, reach_known, removed, marked_at, before_no)
        SELECT w.symbol, range_agg(s.buckets), true, w.removed, w.marked_at,
               coalesce(w.before_no, feature_platform.number_of(w.symbol))
        FROM unnest(skipped_symbols, skipped) AS s (symbol, buckets)
        JOIN unnest(work) AS w ON w.symbol = s.symbol
        GROUP BY w.symbol, w.removed, w.marked_at, w.before_no;
    END IF;
    -- A step up to the last bar has added the newest row, which has the number.
    INSERT INTO feature_platform.symbol_number AS s (symbol, no)
    SELECT w.symbol, of_refresh FROM unnest(work) AS w
    WHERE w.step_from IS NULL OR upper(w.now) <= w.last_bucket OR w.symbol = ANY (skipped_symbols)
    ORDER BY w.symbol
    ON CONFLICT ON CONSTRAINT symbol_number_pkey DO UPDATE SET no = excluded.no;
    PERFORM feature_platform.number_known_at_close(0, picked, of_refresh);
    minutes := (SELECT coalesce(sum(extract(epoch FROM upper(r) - lower(r)))::bigint / 60, 0)
                FROM unnest(work) AS w CROSS JOIN LATERAL unnest(w.now) AS r);
    IF EXISTS (SELECT FROM feature_platform.lake_table t WHERE t.name = 'features_1m') THEN
        PERFORM feature_platform.record_lake_changes('features_1m', array_agg(w.symbol), array_agg(w.now))
        FROM unnest(work) AS w;
    END IF;
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
        PERFORM feature_platform.note_known();
        COMMIT;
        EXIT WHEN NOT slice.more;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE public.refresh_features_1m(timestamptz, timestamptz, boolean) IS
    'Brings features_1m up to date for window_start <= bucket < window_end; NULL is unbounded; force also recomputes '
    'clean rows.';
