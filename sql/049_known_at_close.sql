-- Imported history. The bars of an import became known when it stored them, but history is usually imported to stand
-- for bars that a live system would have had in time. So an import is flagged: the rows of its minutes count as known
-- at the close of their buckets, for training frames only. Rows as of a time follow the true numbers.

CREATE TABLE IF NOT EXISTS feature_platform.known_at_close (
    view    integer          NOT NULL,  -- the version of a feature view; 0: features_1m
    symbol  text COLLATE "C" NOT NULL,
    id      bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
    minutes tstzmultirange   NOT NULL,  -- disjoint from those of other rows of the view and symbol
    -- The refresh by which all rows of the minutes were computed from the import. The flag holds for versions up to
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
        DELETE FROM feature_platform.known_at_close k WHERE k.symbol = part.symbol AND k.minutes <@ part.minutes;
        UPDATE feature_platform.known_at_close k SET minutes = k.minutes - part.minutes
        WHERE k.symbol = part.symbol AND k.minutes && part.minutes;
        INSERT INTO feature_platform.known_at_close (view, symbol, minutes)
        SELECT v.id, part.symbol, part.minutes
        FROM (SELECT 0 AS id UNION ALL SELECT w.id FROM feature_platform.feature_view w WHERE w.state <> 'failed') AS v
        ORDER BY v.id;
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.flag_known_at_close(text[], timestamptz[], timestamptz[]) IS
    'Flags the minutes of bars that an import has stored.';

-- End the waiting of flagged minutes whose rows have all been computed, with the number of the refresh that did it.
CREATE OR REPLACE FUNCTION feature_platform.number_known_at_close(
    of_view integer, picked text[], of_refresh bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    -- Almost always there are none, and a session finds that without a plan of the rest.
    IF EXISTS (SELECT FROM feature_platform.known_at_close k
               WHERE k.view = of_view AND k.symbol = ANY (picked) AND k.no IS NULL) THEN
        UPDATE feature_platform.known_at_close k SET no = of_refresh
        WHERE k.view = of_view AND k.symbol = ANY (picked) AND k.no IS NULL
          AND NOT EXISTS (SELECT FROM feature_platform.dirty_log l
                          WHERE l.symbol = k.symbol AND l.buckets && k.minutes
                            AND (of_view = 0 OR NOT l.reach_known))
          AND NOT EXISTS (SELECT FROM feature_platform.view_symbol s
                          WHERE s.view = of_view AND s.symbol = k.symbol AND s.dirty && k.minutes)
          AND (of_view = 0 OR NOT EXISTS (
                  SELECT FROM feature_platform.view_change c
                  WHERE c.symbol = k.symbol AND c.changed && k.minutes
                    AND c.id > coalesce((SELECT s.processed FROM feature_platform.view_symbol s
                                         WHERE s.view = of_view AND s.symbol = k.symbol), 0)));
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.number_known_at_close(integer, text[], bigint) IS
    'Ends the waiting of flagged minutes whose rows have all been computed.';
