-- Imported history. The bars of an import became known when it stored them, but history is usually imported to stand
-- for bars that a live system would have had in time. So an import is flagged: the rows of its minutes count as known
-- at the close of their buckets, for training frames only. Rows as of a time follow the true numbers.

CREATE TABLE IF NOT EXISTS feature_platform.known_at_close (
    view    integer          NOT NULL,  -- the version of a feature view; 0: features_1m
    symbol  text COLLATE "C" NOT NULL,
    id      bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
    minutes tstzmultirange   NOT NULL,  -- disjoint from those of other rows of the view and symbol
    -- The refresh by which all rows of the minutes were computed from the imports. The flag holds for versions up to
    -- this number, so a later correction is not known at close. NULL: rows still wait for a refresh.
    no      bigint,
    CONSTRAINT known_at_close_pkey PRIMARY KEY (view, symbol, id)
);
CREATE INDEX IF NOT EXISTS known_at_close_waiting_idx ON feature_platform.known_at_close (view, symbol)
    WHERE no IS NULL;
COMMENT ON TABLE feature_platform.known_at_close IS
    'Minutes of imports whose rows count as known at the close of their buckets.';

-- Flag the minutes of bars that an import has stored, in its transaction: of each symbol the bars from `first` to
-- `last`, without other bars between them. Minutes without bars around them belong to the range, up to the ends of the
-- UTC day, so that it holds whole buckets of feature views.
--
-- History stands for bars of before a live system. The first bar outside of flagged minutes shows where the live system
-- begins: it did not have later minutes of the import, and their rows may hold values that were not known at their
-- close. So these minutes are not flagged. The same holds from the first flagged bar on that another change corrected.
CREATE OR REPLACE FUNCTION feature_platform.flag_known_at_close(
    symbols text[], first timestamptz[], last timestamptz[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    day CONSTANT interval := '24 hours';
    origin CONSTANT timestamptz := '1970-01-01 00:00:00+00';
    now CONSTANT timestamptz := feature_platform.clock();
    part record;
    live timestamptz;
    flagged tstzmultirange;
BEGIN
    LOCK TABLE feature_platform.view_lock IN ROW SHARE MODE;    -- a view that is applied meanwhile sees the new rows
    FOR part IN
        SELECT f.symbol, range_agg(tstzrange(
                   least(feature_platform.bucket_of(f.first),
                         greatest(date_bin(day, f.first, origin), feature_platform.bucket_of(before.ts) + minute)),
                   CASE WHEN date_bin(day, f.last, origin) + day > now THEN feature_platform.bucket_of(f.last) + minute
                        ELSE greatest(feature_platform.bucket_of(f.last) + minute,
                                      least(date_bin(day, f.last, origin) + day,
                                            feature_platform.bucket_of(after.ts))) END)) AS minutes
        FROM unnest(symbols, first, last) AS f (symbol, first, last)
        LEFT JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = f.symbol AND b.ts < f.first
                           ORDER BY b.ts DESC LIMIT 1) AS before ON true
        LEFT JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = f.symbol AND b.ts > f.last
                           ORDER BY b.ts LIMIT 1) AS after ON true
        GROUP BY f.symbol ORDER BY f.symbol
    LOOP
        live := feature_platform.bucket_of(least(
            (SELECT b.ts
             FROM unnest('{(,)}'::tstzmultirange - part.minutes
                         - (SELECT coalesce(range_agg(k.minutes), '{}') FROM feature_platform.known_at_close k
                            WHERE k.view = 0 AND k.symbol = part.symbol)) AS r
             CROSS JOIN LATERAL (
                 SELECT b.ts FROM public.ohlcv_1m b
                 WHERE b.symbol = part.symbol AND b.ts >= coalesce(lower(r), '-infinity')
                   AND b.ts < coalesce(upper(r), 'infinity')
                 ORDER BY b.ts LIMIT 1) AS b
             ORDER BY b.ts LIMIT 1),
            (SELECT h.ts
             FROM feature_platform.known_at_close k
             CROSS JOIN LATERAL unnest(k.minutes - part.minutes) AS r
             CROSS JOIN LATERAL (
                 SELECT h.ts FROM feature_platform.bar_history h
                 WHERE h.symbol = part.symbol AND h.ts >= lower(r) AND h.ts < upper(r)
                   AND NOT EXISTS (SELECT FROM feature_platform.bar_refresh c
                                   WHERE c.symbol = part.symbol AND c.mark = h.mark AND c.no <= k.no)
                 ORDER BY h.ts LIMIT 1) AS h
             WHERE k.view = 0 AND k.symbol = part.symbol AND k.no IS NOT NULL
             ORDER BY h.ts LIMIT 1),
            -- Flagged minutes without bars are mostly at the ends of their ranges, where other bars may have come. Only
            -- ranges near the import are looked up.
            (SELECT b.ts
             FROM feature_platform.known_at_close k
             JOIN feature_platform.refresh f ON f.no = k.no
             CROSS JOIN LATERAL unnest(k.minutes - part.minutes) AS r
             CROSS JOIN LATERAL (VALUES (lower(r), least(lower(r) + day, upper(r))),
                                        (greatest(lower(r), upper(r) - day), upper(r))) AS e (lo, hi)
             CROSS JOIN LATERAL (
                 SELECT b.ts FROM public.ohlcv_1m b
                 WHERE b.symbol = part.symbol AND b.ts >= e.lo AND b.ts < e.hi AND b.inserted_at > f.known_by
                 ORDER BY b.ts LIMIT 1) AS b
             WHERE k.view = 0 AND k.symbol = part.symbol
               AND k.minutes && tstzrange(lower(part.minutes) - day, upper(part.minutes) + day)
             ORDER BY b.ts LIMIT 1)));
        flagged := part.minutes * tstzmultirange(tstzrange(NULL, live));
        CONTINUE WHEN flagged = '{}';
        DELETE FROM feature_platform.known_at_close k WHERE k.symbol = part.symbol AND k.minutes <@ flagged;
        UPDATE feature_platform.known_at_close k SET minutes = k.minutes - flagged
        WHERE k.symbol = part.symbol AND k.minutes && flagged;
        -- The new bars change rows after them, which wait for the refresh that has computed them from both imports.
        UPDATE feature_platform.known_at_close k SET no = NULL
        WHERE k.symbol = part.symbol AND k.no IS NOT NULL AND upper(k.minutes) > lower(flagged)
          AND upper(k.minutes) <= coalesce(live, 'infinity');
        INSERT INTO feature_platform.known_at_close (view, symbol, minutes)
        SELECT v.id, part.symbol, flagged
        FROM (SELECT 0 AS id UNION ALL SELECT w.id FROM feature_platform.feature_view w WHERE w.state <> 'failed') AS v
        ORDER BY v.id;
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.flag_known_at_close(text[], timestamptz[], timestamptz[]) IS
    'Flags the minutes of bars that an import has stored and that are from before the first live bar.';

-- End the waiting of flagged minutes whose rows have been computed, with the number of the refresh that did it. Buckets
-- that are still dirty, such as an open one, stay behind as a row that waits.
CREATE OR REPLACE FUNCTION feature_platform.number_known_at_close(
    of_view integer, picked text[], of_refresh bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    v feature_platform.feature_view;
BEGIN
    -- Almost always there are none, and a session finds that without a plan of the rest.
    IF NOT EXISTS (SELECT FROM feature_platform.known_at_close k
                   WHERE k.view = of_view AND k.symbol = ANY (picked) AND k.no IS NULL) THEN
        RETURN;
    END IF;
    IF of_view = 0 THEN
        v.every := '1 minute';
        v.origin := '1970-01-01 00:00:00+00';
    ELSE
        SELECT * INTO v FROM feature_platform.feature_view w WHERE w.id = of_view;
    END IF;
    -- An import may change the rows meanwhile. The next statement sees what it has committed.
    PERFORM FROM feature_platform.known_at_close k
    WHERE k.view = of_view AND k.symbol = ANY (picked) AND k.no IS NULL
    ORDER BY k.symbol, k.id FOR UPDATE;
    WITH divided AS MATERIALIZED (
        SELECT k.symbol, k.id, k.minutes - w.waiting AS clean, k.minutes * w.waiting AS rest
        FROM feature_platform.known_at_close k
        CROSS JOIN LATERAL (
            SELECT coalesce(range_agg(tstzrange(date_bin(v.every, lower(r), v.origin),
                                                feature_platform.view_from(v, upper(r)))), '{}') AS waiting
            FROM (
                SELECT unnest(l.buckets) FROM feature_platform.dirty_log l
                WHERE l.symbol = k.symbol AND l.reach_known AND of_view = 0
                UNION ALL   -- a change without a known reach may change all later rows
                SELECT tstzrange(lower(l.buckets), NULL) FROM feature_platform.dirty_log l
                WHERE l.symbol = k.symbol AND NOT l.reach_known
                UNION ALL
                SELECT unnest(s.dirty) FROM feature_platform.view_symbol s
                WHERE s.view = of_view AND s.symbol = k.symbol
                UNION ALL
                SELECT tstzrange(lower(c.changed), NULL) FROM feature_platform.view_change c
                WHERE of_view <> 0 AND c.symbol = k.symbol
                  AND c.id > coalesce((SELECT s.processed FROM feature_platform.view_symbol s
                                       WHERE s.view = of_view AND s.symbol = k.symbol), 0)
            ) AS d (r)) AS w
        WHERE k.view = of_view AND k.symbol = ANY (picked) AND k.no IS NULL
    ), numbered AS (
        UPDATE feature_platform.known_at_close k SET no = of_refresh, minutes = d.clean
        FROM divided d
        WHERE k.view = of_view AND k.symbol = d.symbol AND k.id = d.id AND d.clean <> '{}'
    )
    INSERT INTO feature_platform.known_at_close (view, symbol, minutes)
    SELECT of_view, d.symbol, d.rest FROM divided d WHERE d.clean <> '{}' AND d.rest <> '{}';
    -- Buckets of a view may lie in the minutes of several files.
    WITH whole AS (
        SELECT k.symbol, min(k.id) AS id, range_agg(k.minutes) AS minutes
        FROM feature_platform.known_at_close k
        WHERE k.view = of_view AND k.symbol = ANY (picked) AND k.no = of_refresh
        GROUP BY k.symbol HAVING count(*) > 1
    ), kept AS (
        UPDATE feature_platform.known_at_close k SET minutes = w.minutes
        FROM whole w WHERE k.view = of_view AND k.symbol = w.symbol AND k.id = w.id
    )
    DELETE FROM feature_platform.known_at_close k USING whole w
    WHERE k.view = of_view AND k.symbol = w.symbol AND k.no = of_refresh AND k.id <> w.id;
    IF of_view <> 0 THEN
        PERFORM feature_platform.keep_imported_versions(v, picked, of_refresh);
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.number_known_at_close(integer, text[], bigint) IS
    'Ends the waiting of flagged minutes whose rows have been computed.';
