-- How dirty buckets are computed, for features_1m and for every view: from the cached state of the bucket before them,
-- one bucket after another, or as ranges from the bars alone. `schema` and `prefix` name the compiled functions and the
-- table of states: feature_platform.features_1m_step, feature_views.v7_step.

-- Whether a symbol has rows inside minutes of a range of time.
CREATE OR REPLACE FUNCTION feature_platform.has_ticks(of_symbol text, lo timestamptz, hi timestamptz) RETURNS boolean
    LANGUAGE plpgsql STABLE     -- keeps its plan, as an SQL function does not
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM public.ohlcv_1m b
                   WHERE b.symbol = of_symbol AND b.ts >= lo AND b.ts < hi
                     AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00'));
END
$$;
COMMENT ON FUNCTION feature_platform.has_ticks(text, timestamptz, timestamptz) IS
    'Whether a symbol has rows inside minutes of a range of time.';

-- Whether bars of a symbol in a range of time have marks that no refresh has taken, by the snapshot of the calling
-- statement: a row computed from them would hold a change that has no number yet. So would a warm-up that is counted
-- from `first`, the first bucket of the symbol, where such a change reaches up to it.
CREATE OR REPLACE FUNCTION feature_platform.has_new_marks(
    of_symbol text, lo timestamptz, hi timestamptz, first timestamptz DEFAULT '-infinity') RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    -- TRUNCATE changed every minute, but only those of `buckets` had rows.
    RETURN EXISTS (SELECT FROM feature_platform.dirty_log l
                   CROSS JOIN LATERAL coalesce(l.changed * l.buckets, l.buckets) AS c (minutes)
                   WHERE l.symbol = of_symbol AND NOT l.reach_known
                     AND (c.minutes && tstzrange(lo, hi) OR lower(c.minutes) <= first));
END
$$;
COMMENT ON FUNCTION feature_platform.has_new_marks(text, timestamptz, timestamptz, timestamptz) IS
    'Whether bars of a symbol in a range of time have marks that no refresh has taken.';

-- The newest minute of a symbol whose bars have marks that no refresh has taken.
CREATE OR REPLACE FUNCTION feature_platform.newest_new_mark(of_symbol text) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    RETURN (SELECT max(upper(coalesce(l.changed * l.buckets, l.buckets))) - interval '1 minute'
            FROM feature_platform.dirty_log l WHERE l.symbol = of_symbol AND NOT l.reach_known);
END
$$;
COMMENT ON FUNCTION feature_platform.newest_new_mark(text) IS
    'The newest minute of a symbol whose bars have marks that no refresh has taken.';

-- Whether minutes of a symbol in a range of time wait for their rows of features_1m, although refreshes have taken
-- their marks.
CREATE OR REPLACE FUNCTION feature_platform.has_put_back(of_symbol text, lo timestamptz, hi timestamptz)
    RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM feature_platform.dirty_log l
                   WHERE l.symbol = of_symbol AND l.reach_known AND l.buckets && tstzrange(lo, hi));
END
$$;
COMMENT ON FUNCTION feature_platform.has_put_back(text, timestamptz, timestamptz) IS
    'Whether minutes of a symbol in a range of time wait for their rows of features_1m.';

-- Whether bars of a symbol in a range of time were ever deleted.
CREATE OR REPLACE FUNCTION feature_platform.has_ended(of_symbol text, lo timestamptz, hi timestamptz) RETURNS boolean
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM feature_platform.bar_history h
                   WHERE h.symbol = of_symbol AND h.ts >= lo AND h.ts < hi AND h.gone);
END
$$;
COMMENT ON FUNCTION feature_platform.has_ended(text, timestamptz, timestamptz) IS
    'Whether bars of a symbol in a range of time were ever deleted.';

-- Note that bars are known since a refresh, before it computes rows from them, where the rows of features_1m will not
-- show it. These are bars without such a note in [lo, own) whose minute has no row yet, and in [lo, hi) those whose
-- minute has bars inside, or that were deleted and came again. The refresh skips items with unprocessed marks, and so
-- does this function.
CREATE OR REPLACE FUNCTION feature_platform.note_bars(
    symbols text[], los timestamptz[], owns timestamptz[], his timestamptz[], of_refresh bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    history_from CONSTANT timestamptz := feature_platform.history_from();
BEGIN
    INSERT INTO feature_platform.bar_known (symbol, ts, no)
    SELECT i.symbol, k.ts,
           -- The bar at the start of a minute was there before others, where only the row of the minute shows it.
           CASE WHEN k.ts = feature_platform.bucket_of(k.ts)
                     AND NOT EXISTS (SELECT FROM feature_platform.bar_known e
                                     WHERE e.symbol = i.symbol AND e.ts >= k.ts AND e.ts < k.ts + minute)
                     AND NOT EXISTS (SELECT FROM feature_platform.bar_history h
                                     WHERE h.symbol = i.symbol AND h.ts = k.ts AND h.gone)
                THEN coalesce(feature_platform.row_created(i.symbol, k.ts), of_refresh)
                ELSE of_refresh END
    FROM (SELECT u.symbol, greatest(u.lo, history_from) AS lo, u.own, u.hi
          FROM unnest(symbols, los, owns, his) AS u (symbol, lo, own, hi)
          WHERE NOT feature_platform.has_new_marks(u.symbol, u.lo, u.hi) OFFSET 0) AS i
    CROSS JOIN LATERAL (
        WITH several AS MATERIALIZED (
            SELECT date_bin('1 minute', t.ts, '1970-01-01 00:00:00+00') AS bucket FROM public.ohlcv_1m t
            WHERE t.symbol = i.symbol AND t.ts >= i.lo AND t.ts < i.hi
              AND t.ts <> date_bin('1 minute', t.ts, '1970-01-01 00:00:00+00')
            UNION
            SELECT date_bin('1 minute', h.ts, '1970-01-01 00:00:00+00') FROM feature_platform.bar_history h
            WHERE h.symbol = i.symbol AND h.ts >= i.lo AND h.ts < i.hi AND h.gone
        )
        ((SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = i.symbol AND b.ts >= i.lo AND b.ts < i.own
          EXCEPT
          SELECT f.bucket FROM public.features_1m f
          WHERE f.symbol = i.symbol AND f.bucket >= i.lo AND f.bucket < i.own)
         UNION
         -- IS TRUE keeps the planner from a nested loop: the sub-query becomes a hash table.
         SELECT b.ts FROM public.ohlcv_1m b
         WHERE b.symbol = i.symbol AND b.ts >= i.lo AND b.ts < i.hi AND (SELECT count(*) FROM several) > 0
           AND (date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00') IN (TABLE several)) IS TRUE)
        EXCEPT
        SELECT e.ts FROM feature_platform.bar_known e
        WHERE e.symbol = i.symbol AND e.ts >= i.lo AND e.ts < i.hi
          AND NOT EXISTS (SELECT FROM feature_platform.bar_history h
                          JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
                          WHERE h.symbol = e.symbol AND h.ts = e.ts AND h.gone AND r.no > e.no)
    ) AS k (ts)
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION feature_platform.note_bars(text[], timestamptz[], timestamptz[], timestamptz[], bigint) IS
    'Notes that bars are known since a refresh, where the rows of their minutes do not show it.';

-- Divide the buckets of one symbol that are to be computed, `todo`: those after `at` and before `until` by steps from
-- the state of `at` (NULL: none), the others by ranges. `dirty` are all dirty buckets of the symbol, `whole` those of
-- which all columns are dirty (NULL: all of them), `first` and `last` its first and last bucket; buckets before `due`
-- are closed.
CREATE OR REPLACE FUNCTION feature_platform.divide_buckets(
    schema text, prefix text, every interval, origin timestamptz, has_inner boolean, step_limit integer,
    of_symbol text, todo tstzmultirange, dirty tstzmultirange, whole tstzmultirange,
    first timestamptz, last timestamptz, due timestamptz,
    OUT at timestamptz, OUT until timestamptz, OUT ranges feature_platform.view_item[])
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    ends CONSTANT timestamptz := last + every;
    part tstzrange;
    state_at timestamptz;
    start timestamptz;
    state_from timestamptz;
    leaves_states boolean;
BEGIN
    ranges := '{}';
    FOR part IN SELECT r FROM unnest(todo) AS r ORDER BY lower(r) LOOP
        EXIT WHEN last IS NULL OR lower(part) > last;
        -- The steps of the part before go on to this one: two steps of one symbol would compute the same bucket.
        IF upper(part) - at <= step_limit * every
           AND (every > minute OR NOT feature_platform.has_ticks(of_symbol, at, upper(part))) THEN
            until := upper(part);
            CONTINUE;
        END IF;
        IF at IS NULL THEN
            -- From a state just before the part, where the part is short. All that the state holds must be clean where
            -- inner values are stored: a step subtracts the stored values that leave.
            EXECUTE format('SELECT max(s.bucket) FROM %I.%I s WHERE s.symbol = $1 AND s.bucket < $2',
                           schema, prefix || '_state') INTO state_at USING of_symbol, lower(part);
            IF upper(part) - state_at <= step_limit * every THEN
                EXECUTE format('SELECT %I.%I($1, $2)', schema, prefix || '_start') INTO start
                    USING of_symbol, state_at;
                IF NOT (dirty - todo) && tstzrange(state_at + every, lower(part))   -- the steps would store these, too
                   AND (NOT has_inner OR NOT (dirty - tstzmultirange(part)) && tstzrange(start, lower(part)))
                   AND (every > minute OR NOT feature_platform.has_ticks(of_symbol, start - every, upper(part))) THEN
                    at := state_at;
                    until := upper(part);
                    CONTINUE;
                END IF;
            END IF;
        END IF;
        EXECUTE format('SELECT %I.%I($1, $2)', schema, prefix || '_start') INTO start USING of_symbol, lower(part);
        -- Only the newest range leaves states, those of its last seven buckets: STATES of the compiler. The policy's
        -- `end_offset` may keep it before the newest closed bucket.
        leaves_states := upper(part) >= least(ends, due);
        IF NOT leaves_states THEN
            EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I.%I s WHERE s.symbol = $1 AND s.bucket >= $2)',
                           schema, prefix || '_state') INTO leaves_states USING of_symbol, upper(part);
        END IF;
        state_from := CASE WHEN leaves_states
                           THEN feature_platform.bucket_before(of_symbol, upper(part), 7, every, origin)
                           ELSE 'infinity' END;
        ranges := ranges || ROW(
            of_symbol, lower(part), least(upper(part), ends), start, first, state_from,
            CASE WHEN NOT whole @> part
                 THEN whole * tstzmultirange(part) + tstzmultirange(tstzrange(state_from, 'infinity'))
                 END)::feature_platform.view_item;
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.divide_buckets(
    text, text, interval, timestamptz, boolean, integer, text, tstzmultirange, tstzmultirange, tstzmultirange,
    timestamptz, timestamptz, timestamptz) IS
    'Divides the buckets of a symbol that are to be computed: steps from a cached state, and ranges.';

-- Note the bars that the steps of a view after `ats` may read before `untils`.
CREATE OR REPLACE FUNCTION feature_platform.note_look_back(
    schema text, prefix text, symbols text[], ats timestamptz[], untils timestamptz[], of_refresh bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT feature_platform.note_bars(
                        array_agg(a.symbol), array_agg(%I.%I(a.symbol, a.at)), array_agg(a.until),
                        array_agg(a.until), $4)
                    FROM unnest($1, $2, $3) AS a (symbol, at, until)', schema, prefix || '_start')
        USING symbols, ats, untils, of_refresh;
END
$$;
COMMENT ON FUNCTION feature_platform.note_look_back(text, text, text[], timestamptz[], timestamptz[], bigint) IS
    'Notes the bars that steps of a view may read.';

-- Compute the buckets after `ats` and before `untils` of these symbols, one bucket of each symbol after another. Return
-- how many rows differed from what was stored, and the buckets of symbols that were skipped, because their state may
-- lack a change of an unprocessed mark.
CREATE OR REPLACE FUNCTION feature_platform.run_steps(
    schema text, prefix text, every interval,
    symbols text[], ats timestamptz[], untils timestamptz[], firsts timestamptz[], of_refresh bigint,
    OUT written bigint, OUT skipped_symbols text[], OUT skipped tstzrange[])
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    -- features_1m, whose rows show since when bars are known
    is_first CONSTANT boolean := schema = 'feature_platform';
    stepped record;
    missed record;
BEGIN
    written := 0;
    skipped_symbols := '{}';
    skipped := '{}';
    IF is_first THEN
        PERFORM feature_platform.note_bars(
            array_agg(a.symbol), array_agg(a.at + every), array_agg(a.at + every), array_agg(a.until), of_refresh)
        FROM unnest(symbols, ats, untils) AS a (symbol, at, until)
        WHERE EXISTS (SELECT FROM feature_platform.bar_history h
                      WHERE h.symbol = a.symbol AND h.ts >= a.at + every AND h.ts < a.until AND h.gone)
        HAVING count(*) > 0;
    ELSE
        -- A step reads single bars of its look-back, whose rows of features_1m may have to wait.
        PERFORM feature_platform.note_look_back(schema, prefix, array_agg(a.symbol), array_agg(a.at),
                                                array_agg(a.until), of_refresh)
        FROM unnest(symbols, ats, untils) AS a (symbol, at, until)
        WHERE feature_platform.has_put_back(a.symbol, '-infinity', a.until)
        HAVING count(*) > 0;
    END IF;
    WHILE symbols <> '{}' LOOP
        EXECUTE format('SELECT * FROM %I.%I($1, $2, $3, $4, $5)', schema, prefix || '_step') INTO stepped
            USING symbols, ats, untils, firsts, of_refresh;
        written := written + coalesce(stepped.written, 0);
        SELECT coalesce(array_agg(a.symbol), '{}') AS symbols,
               coalesce(array_agg(tstzrange(a.at + every, a.until)), '{}') AS ranges
        INTO missed
        FROM unnest(symbols, ats, untils) AS a (symbol, at, until)
        WHERE NOT EXISTS (SELECT FROM unnest(stepped.stepped, stepped.ends) AS s (symbol, until)
                          WHERE s.symbol = a.symbol AND s.until = a.until)
          AND (EXISTS (SELECT FROM public.ohlcv_1m b
                       WHERE b.symbol = a.symbol AND b.ts >= a.at + every AND b.ts < a.until)
               OR feature_platform.has_new_marks(a.symbol, a.at + every, a.until));
        skipped_symbols := skipped_symbols || missed.symbols;
        skipped := skipped || missed.ranges;
        SELECT coalesce(array_agg(s.symbol), '{}'), coalesce(array_agg(s.bucket), '{}'),
               coalesce(array_agg(a.until), '{}'), coalesce(array_agg(a.first), '{}')
        INTO symbols, ats, untils, firsts
        FROM unnest(stepped.stepped, stepped.buckets, stepped.ends) AS s (symbol, bucket, until)
        JOIN unnest(symbols, untils, firsts) AS a (symbol, until, first)
          ON a.symbol = s.symbol AND a.until = s.until AND s.bucket + every < a.until;
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.run_steps(
    text, text, interval, text[], timestamptz[], timestamptz[], timestamptz[], bigint) IS
    'Computes the next buckets of many symbols from their cached states.';

-- Compute ranges of buckets from the bars alone. Return how many rows differed from what was stored, and the ranges
-- that were skipped, because they read bars of unprocessed marks.
CREATE OR REPLACE FUNCTION feature_platform.run_ranges(
    schema text, prefix text, ranges feature_platform.view_item[], of_refresh bigint,
    OUT written bigint, OUT skipped_symbols text[], OUT skipped tstzrange[])
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_first CONSTANT boolean := schema = 'feature_platform';
BEGIN
    written := 0;
    skipped_symbols := '{}';
    skipped := '{}';
    IF ranges <> '{}' THEN
        PERFORM feature_platform.note_bars(
            array_agg(r.symbol), array_agg(r.start), array_agg(CASE WHEN is_first THEN r.lo ELSE r.hi END),
            array_agg(r.hi), of_refresh)
        FROM unnest(ranges) AS r
        WHERE CASE WHEN is_first
                   -- Else each bar of the look-back has its row.
                   THEN r.start < feature_platform.features_from()
                        OR feature_platform.has_put_back(r.symbol, r.start, r.lo)
                        OR feature_platform.has_ended(r.symbol, r.start, r.hi)
                        OR feature_platform.has_ticks(r.symbol, r.start, r.hi)
                   ELSE feature_platform.has_put_back(r.symbol, r.start, r.hi) END
        HAVING count(*) > 0;
        EXECUTE format('SELECT * FROM %I.%I($1, $2)', schema, prefix || '_range')
            INTO written, skipped_symbols, skipped USING ranges, of_refresh;
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.run_ranges(text, text, feature_platform.view_item[], bigint) IS
    'Computes ranges of buckets from the bars alone.';

-- Delete the rows of a table in a range of buckets whose bucket has no bar any more, and keep their last versions in
-- `history`, the table of the versions of rows. Return their number, and whether the range was skipped, because its
-- bars have unprocessed marks. It works range by range, so that a columnstore decompresses only these. The cost grows
-- with the buckets of the range only, with or without statistics: IS TRUE makes the planner use a hash table for the
-- sub-query. Otherwise the planner may use a nested loop. It may also use the index on the bucket alone, which reads
-- the rows of all symbols.
CREATE OR REPLACE FUNCTION feature_platform.delete_rows_without_bars(
    of_table regclass, history regclass, of_symbol text, part tstzrange, every interval, of_refresh bigint,
    OUT deleted bigint, OUT skipped boolean)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    EXECUTE format('WITH overtaken AS MATERIALIZED (
                        SELECT feature_platform.has_new_marks($1, $2, $3) AS it
                    ), gone AS (
                        DELETE FROM %1$s f
                        WHERE f.symbol = $1 AND f.bucket >= $2 AND f.bucket < $3 AND NOT (SELECT it FROM overtaken)
                          AND (f.bucket IN (
                              SELECT o.bucket FROM %1$s o
                              WHERE o.symbol = $1 AND o.bucket >= $2 AND o.bucket < $3
                              EXCEPT
                              SELECT date_bin($4, b.ts, $2) FROM public.ohlcv_1m b
                              WHERE b.symbol = $1 AND b.ts >= $2 AND b.ts < $3)) IS TRUE
                        RETURNING f.*
                    ), kept AS (
                        %2$s
                    )
                    SELECT (SELECT count(*) FROM gone), it FROM overtaken', of_table,
                   CASE WHEN history IS NULL THEN 'SELECT'
                        ELSE format('INSERT INTO %s SELECT g.*, $5 FROM gone g WHERE g.refresh_no < $5', history) END)
        INTO deleted, skipped USING of_symbol, lower(part), upper(part), every, of_refresh;
END
$$;
COMMENT ON FUNCTION feature_platform.delete_rows_without_bars(regclass, regclass, text, tstzrange, interval, bigint) IS
    'Deletes the rows of a range of buckets whose bucket has no bar, and keeps their last versions.';
