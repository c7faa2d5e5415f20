-- The refresh of feature views: it processes the changes of view_change, and computes dirty buckets by the compiled
-- functions of each view. refresh_symbols() has moved the changes there from the dirty log.

-- The exclusive end of a view's buckets that are closed, and as old as `age` after that.
CREATE OR REPLACE FUNCTION feature_platform.view_due(
    every interval, origin timestamptz, age interval DEFAULT '1 minute') RETURNS timestamptz
    LANGUAGE sql VOLATILE
    RETURN date_bin(every, feature_platform.clock() - greatest(age, interval '1 minute') + interval '1 minute', origin);
COMMENT ON FUNCTION feature_platform.view_due(interval, timestamptz, interval) IS
    'Buckets before this time are closed, and as old as `age`.';

-- The first bucket of a version at or after a time; -infinity before all of them, infinity after all.
CREATE OR REPLACE FUNCTION feature_platform.view_from(v feature_platform.feature_view, moment timestamptz)
    RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN isfinite(moment) THEN date_bin(v.every, moment + v.every - interval '1 microsecond', v.origin)
                ELSE moment END;
COMMENT ON FUNCTION feature_platform.view_from(feature_platform.feature_view, timestamptz) IS
    'The first bucket of a version at or after a time.';

-- The newest part of a view's buckets that holds at most so many bars (and stored rows where bars were removed), and at
-- least one bucket; and how many these are.
CREATE OR REPLACE FUNCTION feature_platform.newest_part(
    of_view integer, of_symbol text, part tstzrange, every interval, origin timestamptz, removed boolean, most bigint,
    OUT newest tstzrange, OUT bars bigint)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    cut timestamptz;
    row_cut timestamptz;
BEGIN
    SELECT count(*), CASE WHEN count(*) > most THEN date_bin(every, min(b.ts), origin) END INTO bars, cut
    FROM (SELECT b.ts FROM public.ohlcv_1m b
          WHERE b.symbol = of_symbol AND b.ts >= lower(part) AND b.ts < upper(part)
          ORDER BY b.ts DESC LIMIT most + 1) AS b;
    IF removed THEN
        EXECUTE format('SELECT CASE WHEN count(*) > $4 THEN min(f.bucket) END
                        FROM (SELECT f.bucket FROM feature_views.%I f
                              WHERE f.symbol = $1 AND f.bucket >= $2 AND f.bucket < $3
                              ORDER BY f.bucket DESC LIMIT $4 + 1) AS f', 'v' || of_view || '_rows')
            INTO row_cut USING of_symbol, lower(part), upper(part), most;
    END IF;
    newest := part * tstzrange(greatest(cut, row_cut), NULL);
    bars := least(bars, most);
END
$$;
COMMENT ON FUNCTION feature_platform.newest_part(
    integer, text, tstzrange, interval, timestamptz, boolean, bigint) IS
    'The newest part of a range of buckets that holds at most so many bars.';

-- Bring one view up to date in a window for some symbols, which the caller has locked: about `budget` bars, the newest
-- first. Return the number of rows stored or deleted, and whether dirty buckets remain in the window.
--
-- A symbol whose newest buckets changed, and nothing before them, goes on from its cached state. The statement that
-- computes such a step skips symbols whose state may lack a change of an unprocessed mark, which the look-ups of the
-- statement see. All other buckets are computed from the bars alone. A change that is committed meanwhile has its
-- mark in the dirty log: its buckets, and the states that hold it, become dirty when the mark is processed.
CREATE OR REPLACE FUNCTION feature_platform.refresh_view_symbols(
    of_view integer, picked text[], refresh_window tstzrange, budget bigint,
    OUT written bigint, OUT more boolean)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    prefix CONSTANT text := 'v' || of_view;
    step_limit CONSTANT integer := 100;     -- buckets that are computed one after another from a cached state
    window_lo CONSTANT timestamptz := coalesce(lower(refresh_window), '-infinity');
    window_hi CONSTANT timestamptz := upper(refresh_window);
    v feature_platform.feature_view;
    due timestamptz;
    kept_from timestamptz;
    ready text[];
    symbols text[]; ats timestamptz[]; untils timestamptz[]; firsts timestamptz[];
    ranges feature_platform.view_item[] := '{}';
    one record;
    divided record;
    steps record;
    first timestamptz; last timestamptz; ends timestamptz; newest_change timestamptz;
    dirty tstzmultirange; reached tstzmultirange; whole tstzmultirange; todo tstzmultirange; rest tstzmultirange;
    part tstzrange; newest record;
    rows_left bigint := budget;
    of_refresh bigint;
    skipped_symbols text[] := '{}';
    skipped tstzrange[] := '{}';
    computed record;
    gone record;
    tab record;
    lake_symbols text[] := '{}';
    lake_times tstzmultirange[] := '{}';
BEGIN
    written := 0;
    more := false;
    of_refresh := feature_platform.next_refresh();
    SELECT * INTO v FROM feature_platform.feature_view w WHERE w.id = of_view;
    due := feature_platform.view_due(v.every, v.origin);
    kept_from := feature_platform.view_from(v, feature_platform.features_from());

    -- 1. Symbols that go on from their newest state. `older` buckets stay dirty: without stored inner values a step
    -- does not read them, else they must lie before all that the state holds. Bars inside minutes have to lie before
    -- that, too, because the look-ups of one-minute bars go by their time.
    EXECUTE format($statement$
        WITH known AS MATERIALIZED (
            SELECT p.symbol, s.processed, s.first_bucket, s.newest_tick, s.dirty, s.marked_at AS dirty_since,
                   s.removed OR coalesce(c.removed, false) AS removed, c.id, c.changed, c.marked_at,
                   (SELECT max(t.bucket) FROM feature_views.%1$I t WHERE t.symbol = p.symbol) AS at,
                   (SELECT date_bin($3, b.ts, $4) FROM public.ohlcv_1m b
                    WHERE b.symbol = p.symbol ORDER BY b.ts DESC LIMIT 1) AS last
            FROM unnest($2) AS p (symbol)
            JOIN feature_platform.view_symbol s ON s.view = $1 AND s.symbol = p.symbol
            CROSS JOIN LATERAL (
                SELECT max(c.id) AS id, range_agg(c.changed) AS changed, bool_or(c.removed) AS removed,
                       min(c.marked_at) AS marked_at
                FROM feature_platform.view_change c WHERE c.symbol = p.symbol AND c.id > s.processed) AS c
        ), newest AS (
            SELECT k.*, k.at + $3 AS next, k.dirty * tstzmultirange(tstzrange(NULL, k.at + $3)) AS older,
                   least($6, k.last + $3) AS until
            FROM known k
            WHERE NOT k.removed AND k.first_bucket <= k.at AND k.last > k.at
              AND (k.changed IS NULL OR date_bin($3, lower(k.changed), $4) > k.at)
              -- No change after the newest bar: there a new mark has deleted bars.
              AND coalesce(greatest(upper(k.changed), upper(k.dirty)) <= k.last + $3, true)
              AND k.at + $3 >= $5 AND k.at + $3 >= $7 AND k.last - k.at <= $8 * $3
              -- A symbol with an open bucket has one after its state at all times.
              AND (k.id IS NOT NULL OR least($6, k.last + $3) > k.at + $3)
        ), ready AS MATERIALIZED (
            SELECT n.*, n.older + CASE WHEN n.last >= $6
                                       THEN tstzmultirange(tstzrange(greatest($6, n.next), n.last + $3))
                                       ELSE '{}' END AS left_dirty
            FROM newest n
            WHERE CASE WHEN n.older = '{}' OR NOT $9 THEN true
                       ELSE NOT n.older && tstzrange(feature_views.%2$I(n.symbol, n.at), n.next) END
              -- The start is looked up only where it matters: it costs more than the rest of this statement.
              AND CASE WHEN $3 > interval '1 minute' THEN true
                       WHEN EXISTS (SELECT FROM public.ohlcv_1m b
                                    WHERE b.symbol = n.symbol AND b.ts >= n.at AND b.ts < n.last + $3
                                      AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00')) THEN false
                       WHEN n.newest_tick IS NULL THEN true
                       ELSE n.newest_tick < feature_views.%2$I(n.symbol, n.at) - $3 END
        ), stored AS (
            UPDATE feature_platform.view_symbol s
            SET processed = coalesce(r.id, r.processed), dirty = r.left_dirty, long_only = s.long_only * r.older,
                marked_at = CASE WHEN r.left_dirty <> '{}' THEN least(r.dirty_since, r.marked_at) END,
                no = $10, before_no = CASE WHEN r.left_dirty <> '{}' THEN coalesce(s.before_no, s.no) END
            FROM ready r
            WHERE s.view = $1 AND s.symbol = r.symbol
        )
        SELECT array_agg(symbol), array_agg(symbol) FILTER (WHERE until > next),
               array_agg(at) FILTER (WHERE until > next), array_agg(until) FILTER (WHERE until > next),
               array_agg(first_bucket) FILTER (WHERE until > next),
               coalesce(bool_or(left_dirty && tstzrange($5, $6)), false)
        FROM ready
    $statement$, prefix || '_state', prefix || '_start')
    INTO ready, symbols, ats, untils, firsts, more
    USING of_view, picked, v.every, v.origin, window_lo, window_hi, kept_from, step_limit, v.has_inner,
        of_refresh;
    ready := coalesce(ready, '{}');
    symbols := coalesce(symbols, '{}');
    ats := coalesce(ats, '{}');
    untils := coalesce(untils, '{}');
    firsts := coalesce(firsts, '{}');
    rows_left := rows_left - cardinality(symbols);

    -- 2. The other symbols.
    FOR one IN
        SELECT p.symbol, coalesce(s.processed, 0) AS processed, s.first_bucket, coalesce(s.dirty, '{}') AS dirty,
               coalesce(s.long_only, '{}') AS long_only,
               coalesce(s.removed, false) OR coalesce(c.removed, false) AS removed,
               coalesce(s.building, false) AS building, c.id, c.changed, least(s.marked_at, c.marked_at) AS marked_at
        FROM unnest(picked) WITH ORDINALITY AS p (symbol, place)
        LEFT JOIN feature_platform.view_symbol s ON s.view = of_view AND s.symbol = p.symbol
        CROSS JOIN LATERAL (
            SELECT max(c.id) AS id, range_agg(c.changed) AS changed, bool_or(c.removed) AS removed,
                   min(c.marked_at) AS marked_at
            FROM feature_platform.view_change c WHERE c.symbol = p.symbol AND c.id > coalesce(s.processed, 0)) AS c
        WHERE p.symbol <> ALL (ready) AND (c.id IS NOT NULL OR s.dirty <> '{}')
        ORDER BY p.place
    LOOP
        IF rows_left <= 0 THEN
            more := true;
            EXIT;
        END IF;
        first := (SELECT date_bin(v.every, b.ts, v.origin) FROM public.ohlcv_1m b
                  WHERE b.symbol = one.symbol ORDER BY b.ts LIMIT 1);
        last := (SELECT date_bin(v.every, b.ts, v.origin) FROM public.ohlcv_1m b
                 WHERE b.symbol = one.symbol ORDER BY b.ts DESC LIMIT 1);
        -- A bar that a new mark has deleted is there as of this refresh. Its bucket stays dirty until the mark is
        -- processed.
        newest_change := greatest(last, date_bin(v.every, feature_platform.newest_new_mark(one.symbol), v.origin));
        ends := newest_change + v.every;
        -- Beyond the reach of the other columns, a change makes only those with a long look-back dirty.
        whole := one.dirty - one.long_only;
        reached := '{}';
        IF one.changed IS NOT NULL THEN
            EXECUTE format('SELECT feature_views.%I($1, $2, $3), $4 + feature_views.%I($1, $2, $3)',
                           prefix || '_reach', prefix || '_reach_short') INTO reached, whole
                USING one.symbol, one.changed, coalesce(newest_change, '-infinity'), whole;
        END IF;
        dirty := one.dirty + reached;
        IF one.removed THEN     -- rows of buckets without bars are dirty, too
            whole := whole + (SELECT coalesce(range_agg(tstzrange(
                date_bin(v.every, lower(r), v.origin),
                date_bin(v.every, upper(r) - interval '1 microsecond', v.origin) + v.every)), '{}')
                FROM unnest(one.changed) AS r);
            EXECUTE format('SELECT greatest($3, (SELECT f.bucket FROM feature_views.%I f WHERE f.symbol = $1
                                                 ORDER BY f.bucket DESC LIMIT 1) + $2)', prefix || '_rows')
                INTO ends USING one.symbol, v.every, ends;
        END IF;
        IF one.first_bucket IS NULL AND first IS NOT NULL THEN
            whole := whole + tstzmultirange(tstzrange(first, ends));
        ELSIF one.first_bucket <> first THEN    -- the values whose warm-up moved, and all that depend on them
            EXECUTE format('SELECT feature_views.%I($1, $2, $3)', prefix || '_reach') INTO reached
                USING one.symbol, tstzmultirange(tstzrange(least(one.first_bucket, first),
                                                           greatest(one.first_bucket, first) + v.warm_up + v.every)),
                      last;
            whole := whole + reached;
        END IF;
        dirty := dirty + whole;
        dirty := CASE WHEN ends > kept_from THEN dirty * tstzmultirange(tstzrange(kept_from, ends)) ELSE '{}' END;
        -- `dirty` lacks buckets that the retention has deleted.
        EXECUTE format('DELETE FROM feature_views.%I s WHERE s.symbol = $1 AND ($2 @> s.bucket OR s.bucket < $3)',
                       prefix || '_state') USING one.symbol, dirty, kept_from;

        todo := '{}';
        FOR part IN
            SELECT r FROM unnest(dirty * tstzmultirange(refresh_window)
                                 - CASE WHEN one.removed THEN '{}'
                                        ELSE tstzmultirange(tstzrange(coalesce(last + v.every, '-infinity'), NULL))
                                   END) AS r
            ORDER BY lower(r) DESC
        LOOP
            EXIT WHEN rows_left <= 0;
            newest := feature_platform.newest_part(
                of_view, one.symbol, part, v.every, v.origin, one.removed, rows_left);
            todo := todo + tstzmultirange(newest.newest);
            rows_left := rows_left - newest.bars - 1;
        END LOOP;
        rest := dirty - todo;
        more := more OR rest && refresh_window;
        INSERT INTO feature_platform.view_symbol AS s
            (view, symbol, processed, first_bucket, newest_tick, dirty, long_only, removed, building, marked_at, no,
             before_no)
        VALUES (of_view, one.symbol, coalesce(one.id, one.processed), first,
                (SELECT max(b.ts) FROM public.ohlcv_1m b WHERE b.symbol = one.symbol
                 AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00')),
                rest, rest - whole, one.removed AND rest <> '{}',
                one.building AND rest && tstzrange(NULL, due), CASE WHEN rest <> '{}' THEN one.marked_at END,
                of_refresh, CASE WHEN rest <> '{}' THEN 0 END)
        ON CONFLICT ON CONSTRAINT view_symbol_pkey DO UPDATE
        SET processed = excluded.processed, first_bucket = excluded.first_bucket, newest_tick = excluded.newest_tick,
            dirty = excluded.dirty, long_only = excluded.long_only, removed = excluded.removed,
            building = excluded.building, marked_at = excluded.marked_at, no = excluded.no,
            before_no = CASE WHEN rest <> '{}' THEN coalesce(s.before_no, s.no) END;

        IF one.removed THEN
            FOR tab IN SELECT r AS part, t.* FROM unnest(todo) AS r
                       CROSS JOIN (VALUES ('_rows', '_history'), ('_inner', NULL)) AS t (name, history)
                       WHERE t.name = '_rows' OR v.has_inner LOOP
                gone := feature_platform.delete_rows_without_bars(
                    ('feature_views.' || prefix || tab.name)::regclass,
                    ('feature_views.' || prefix || tab.history)::regclass, one.symbol, tab.part, v.every, of_refresh);
                written := written + CASE WHEN tab.name = '_rows' THEN gone.deleted ELSE 0 END;
                IF gone.skipped THEN
                    skipped_symbols := skipped_symbols || one.symbol;
                    skipped := skipped || tab.part;
                END IF;
            END LOOP;
        END IF;
        SELECT * INTO divided FROM feature_platform.divide_buckets(
            'feature_views', prefix, v.every, v.origin, v.has_inner, step_limit,
            one.symbol, todo, dirty, whole, first, last, due);
        IF divided.at IS NOT NULL THEN
            symbols := symbols || one.symbol;
            ats := ats || divided.at;
            untils := untils || divided.until;
            firsts := firsts || first;
        END IF;
        ranges := ranges || divided.ranges;
        lake_symbols := lake_symbols || one.symbol;
        lake_times := array_append(lake_times, todo);
    END LOOP;

    -- 3. Steps come before the ranges, whose states may take the same slots.
    PERFORM feature_platform.record_lake_changes(
        CASE WHEN v.served THEN v.name END, lake_symbols || array_agg(s.symbol),
        lake_times || array_agg(tstzmultirange(tstzrange(s.at + v.every, s.until))))
    FROM unnest(symbols, ats, untils) AS s (symbol, at, until);
    SELECT * INTO steps FROM feature_platform.run_steps(
        'feature_views', prefix, v.every, symbols, ats, untils, firsts, of_refresh);
    computed := feature_platform.run_ranges('feature_views', prefix, ranges, of_refresh);
    written := written + steps.written + computed.written;

    -- 4. Skipped buckets stay dirty.
    UPDATE feature_platform.view_symbol s
    SET dirty = s.dirty + a.skipped, marked_at = coalesce(s.marked_at, feature_platform.clock()),
        before_no = coalesce(s.before_no, 0),
        removed = s.removed OR s.symbol = ANY (skipped_symbols)     -- those whose deletions were skipped
    FROM (SELECT k.symbol, range_agg(k.buckets) AS skipped
          FROM unnest(skipped_symbols || steps.skipped_symbols || computed.skipped_symbols,
                      skipped || steps.skipped || computed.skipped) AS k (symbol, buckets) GROUP BY k.symbol) AS a
    WHERE s.view = of_view AND s.symbol = a.symbol;
    more := more OR FOUND;
    PERFORM feature_platform.number_known_at_close(of_view, picked, of_refresh);
END
$$;
COMMENT ON FUNCTION feature_platform.refresh_view_symbols(integer, text[], tstzrange, bigint) IS
    'Brings one view up to date in a window for some locked symbols.';

-- Symbols of a view with dirty buckets in [window_lo, window_hi), the newest first, at most so many. `live` picks only
-- symbols whose newest bars changed and whose newest buckets have been built.
CREATE OR REPLACE FUNCTION feature_platform.pick_view_symbols(
    of_view integer, window_lo timestamptz, window_hi timestamptz, live boolean, most integer) RETURNS text[]
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    SET jit = off
BEGIN ATOMIC
    SELECT coalesce(array_agg(p.symbol ORDER BY p.newest DESC), '{}')
    FROM (SELECT w.symbol, max(w.newest) AS newest
          FROM (SELECT c.symbol, max(upper(c.changed)) AS newest
                FROM feature_platform.view_change c
                LEFT JOIN feature_platform.view_symbol s ON s.view = of_view AND s.symbol = c.symbol
                WHERE c.id > coalesce(s.processed, 0) AND NOT (live AND coalesce(upper_inf(s.dirty), false))
                GROUP BY c.symbol
                -- A view of wide bars collects the changes of its open bucket, up to a limit.
                HAVING min(lower(c.changed)) < window_hi AND (NOT live OR max(upper(c.changed)) > window_lo)
                    OR (NOT live AND count(*) > 60)
                UNION ALL
                SELECT s.symbol, coalesce(upper(s.dirty), 'infinity')
                FROM feature_platform.view_symbol s
                WHERE s.view = of_view AND s.dirty <> '{}' AND s.dirty && tstzrange(window_lo, window_hi)
                  AND NOT (live AND upper_inf(s.dirty))) AS w
          GROUP BY w.symbol ORDER BY max(w.newest) DESC LIMIT most) AS p;
END;
COMMENT ON FUNCTION feature_platform.pick_view_symbols(integer, timestamptz, timestamptz, boolean, integer) IS
    'Symbols of a view with dirty buckets in a window, the newest first.';

-- Bring one slice of a view's dirty buckets in [window_lo, window_hi) up to date, in the caller's transaction: at most
-- slice_symbols symbols and about slice_rows bars. `waits`: where other refreshers have locked all of these symbols,
-- wait for the first one for at most 2 s. An error of the view's own stops the view, with its state and error in
-- feature_view. Return the number of symbols, the rows stored or deleted, and whether there is more to do.
CREATE OR REPLACE FUNCTION feature_platform.view_slice(
    of_view integer, window_lo timestamptz, window_hi timestamptz, live boolean DEFAULT false,
    waits boolean DEFAULT true, slice_rows bigint DEFAULT 20000, slice_symbols integer DEFAULT 1000,
    OUT symbols integer, OUT rows_written bigint, OUT more boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '2s'
AS $$
DECLARE
    candidates text[];
    picked text[];
    result record;
    code text;
    problem text;
BEGIN
    symbols := 0;
    rows_written := 0;
    more := false;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a refresh needs READ COMMITTED, this transaction is %',
            upper(current_setting('transaction_isolation'));
    END IF;
    LOCK TABLE feature_platform.view_lock IN ROW SHARE MODE;
    IF NOT EXISTS (SELECT FROM feature_platform.feature_view v WHERE v.id = of_view AND v.state <> 'failed') THEN
        RETURN;
    END IF;
    candidates := feature_platform.pick_view_symbols(of_view, window_lo, window_hi, live, slice_symbols);
    IF candidates = '{}' THEN
        RETURN;
    END IF;
    picked := feature_platform.lock_symbols(candidates);
    IF picked = '{}' THEN
        IF waits THEN
            BEGIN
                PERFORM FROM feature_platform.refresh_lock k
                WHERE k.stripe = feature_platform.stripe_of(candidates[1]) FOR UPDATE;
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
            more := true;
        END IF;
        RETURN;
    END IF;
    BEGIN
        SELECT r.written, r.more INTO result
        FROM feature_platform.refresh_view_symbols(of_view, picked, tstzrange(window_lo, window_hi), slice_rows) AS r;
        symbols := cardinality(picked);
        rows_written := result.written;
        more := result.more OR cardinality(candidates) = slice_symbols
            OR (waits AND cardinality(picked) < cardinality(candidates));
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, problem = MESSAGE_TEXT;
        IF code = '40P01' THEN      -- as in refresh_slice
            more := true;
        ELSIF left(code, 2) IN ('08', '25', '40', '53', '55', '57', '58') THEN
            RAISE;      -- of the server or another session, not of the view
        ELSE
            UPDATE feature_platform.feature_view v SET state = 'failed', error = problem WHERE v.id = of_view;
        END IF;
    END;
END
$$;
COMMENT ON FUNCTION feature_platform.view_slice(
    integer, timestamptz, timestamptz, boolean, boolean, bigint, integer) IS
    'Brings one slice of a view''s dirty buckets in a window up to date, in the caller''s transaction.';

-- The bars of a slice of one view, so that a slice takes a fraction of a second: fewer for many columns, and not fewer
-- than the look-back, which each slice of a range reads again.
CREATE OR REPLACE FUNCTION feature_platform.view_slice_rows(v feature_platform.feature_view) RETURNS bigint
    LANGUAGE sql STABLE
    RETURN greatest(100000 / (5 + cardinality(v.columns)),
                    least(20000, (extract(epoch FROM v.look_back) / 60)::bigint))::bigint;
COMMENT ON FUNCTION feature_platform.view_slice_rows(feature_platform.feature_view) IS
    'The bars of a slice of one view.';

-- Refresh one slice of one view in the caller's transaction, after policy_step: of the last start_offset where buckets
-- are dirty there, else of older ranges and of views that are being built. Return whether there is more.
CREATE OR REPLACE FUNCTION feature_platform.view_step(run_id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    began CONSTANT timestamptz := clock_timestamp();
    p feature_platform.policy;
    v feature_platform.feature_view;
    live boolean;
    due timestamptz;
    live_from timestamptz;
    slice record;
    more boolean := false;
    done integer := 0;
    written bigint := 0;
BEGIN
    SELECT * INTO p FROM feature_platform.policy;
    IF NOT FOUND OR NOT EXISTS (SELECT FROM feature_platform.feature_view w WHERE w.state <> 'failed') THEN
        RETURN false;
    END IF;
    IF feature_platform.serve_complete_views() THEN
        RETURN true;
    END IF;
    -- In a random order, so that no view keeps the others from their turn.
    <<phase>>
    FOREACH live IN ARRAY ARRAY[true, false] LOOP
        FOR v IN SELECT * FROM feature_platform.feature_view w WHERE w.state <> 'failed' ORDER BY random() LOOP
            due := feature_platform.view_due(v.every, v.origin, p.end_offset);
            live_from := least(due, date_bin(v.every, feature_platform.clock() - p.start_offset, v.origin));
            SELECT * INTO slice FROM feature_platform.view_slice(
                v.id, CASE WHEN live THEN live_from ELSE '-infinity' END, due, live, waits => false,
                slice_rows => feature_platform.view_slice_rows(v),
                slice_symbols => CASE WHEN live THEN 1000 ELSE 100 END);
            more := more OR slice.more;
            CONTINUE WHEN slice.symbols = 0;
            done := done + 1;
            written := written + slice.rows_written;
            -- The commit makes the rows readable, and lets the refresh of features_1m go first.
            IF NOT live OR clock_timestamp() - began > interval '0.2 seconds' THEN
                more := true;
                EXIT phase;
            END IF;
        END LOOP;
        EXIT WHEN done > 0;
    END LOOP;
    IF done = 0 THEN
        PERFORM feature_platform.clear_view_changes();
        RETURN more AND NOT feature_platform.run_is_over(run_id);
    END IF;
    UPDATE feature_platform.policy_run r
    SET slices = r.slices + done, rows_written = r.rows_written + written
    WHERE r.id = run_id;
    RETURN NOT feature_platform.run_is_over(run_id);
END
$$;
COMMENT ON FUNCTION feature_platform.view_step(bigint) IS
    'Refreshes one slice of the feature views; returns whether there is more.';

-- Delete the changes that every view has processed.
CREATE OR REPLACE FUNCTION feature_platform.clear_view_changes() RETURNS void
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM feature_platform.view_change c
    WHERE NOT EXISTS (
        SELECT FROM feature_platform.feature_view v
        WHERE v.state <> 'failed' AND NOT EXISTS (
            SELECT FROM feature_platform.view_symbol s
            WHERE s.view = v.id AND s.symbol = c.symbol AND s.processed >= c.id));
END;
COMMENT ON FUNCTION feature_platform.clear_view_changes() IS 'Deletes the changes that every view has processed.';

CREATE OR REPLACE PROCEDURE public.refresh_feature_view(
    name text, window_start timestamptz DEFAULT NULL, window_end timestamptz DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
DECLARE
    v feature_platform.feature_view;
    slice record;
    idle boolean;
BEGIN
    IF window_start >= window_end THEN
        RAISE EXCEPTION 'the refresh window is empty: window_start % is not before window_end %', window_start,
            window_end;
    ELSIF NOT EXISTS (SELECT FROM feature_platform.feature_view w WHERE w.name = refresh_feature_view.name) THEN
        RAISE EXCEPTION 'there is no feature view %', quote_literal(name)
            USING HINT = '`feature-platform views list` lists all.';
    END IF;
    FOR v IN SELECT * FROM feature_platform.feature_view w
             WHERE w.name = refresh_feature_view.name ORDER BY w.id LOOP
        idle := true;
        LOOP
            -- The changes of the bars reach the views by way of features_1m, and a slice skips buckets with unprocessed
            -- marks. This also commits: each slice is its own transaction.
            IF idle THEN
                CALL public.refresh_features_1m(window_start, window_end);
            END IF;
            SELECT * INTO slice FROM feature_platform.view_slice(
                v.id, coalesce(feature_platform.view_from(v, window_start), '-infinity'),
                least(feature_platform.view_from(v, window_end), feature_platform.view_due(v.every, v.origin)));
            COMMIT;
            PERFORM feature_platform.note_known();
            COMMIT;
            EXIT WHEN NOT slice.more;
            idle := slice.rows_written = 0;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE public.refresh_feature_view(text, timestamptz, timestamptz) IS
    'Brings a feature view up to date for window_start <= bucket < window_end; NULL is unbounded.';
