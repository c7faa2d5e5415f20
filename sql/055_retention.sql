-- Retention: the ages up to which bars, features, versions of rows, filled gaps, the policy's runs and the log of
-- serves are kept. NULL keeps for ever.
--
-- The retention is exact and recomputes no row. `features_from` is the first bucket of the features for the refresh and
-- for verify. Enough bars before it stay of each symbol that every row from there on equals its definition over the
-- remaining bars. See docs/engine.md.
CREATE TABLE IF NOT EXISTS feature_platform.retention (
    only_one      boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    bars          interval    CHECK (bars >= features + '1 day'),
    features      interval    CHECK (features >= '1 day'),
    gaps          interval    CHECK (gaps >= '0'),
    runs          interval    DEFAULT '7 days' CHECK (runs >= '1 day'),
    features_from timestamptz,      -- NULL: no limit
    served        interval    DEFAULT '7 days' CHECK (served >= '1 day'),
    history_from  timestamptz,      -- the latest features_from so far; older bars have no complete history
    versions      interval    CHECK (versions >= '1 day'),
    versions_from timestamptz,      -- rows as they were known before it cannot be read any more; NULL: no limit
    CONSTRAINT retention_bars_check1 CHECK (bars IS NULL OR features IS NOT NULL)
);
COMMENT ON TABLE feature_platform.retention IS
    'The ages up to which rows of each kind are kept, and the first bucket of features.';
INSERT INTO feature_platform.retention DEFAULT VALUES ON CONFLICT DO NOTHING;
UPDATE feature_platform.retention SET history_from = features_from WHERE history_from IS NULL;

CREATE OR REPLACE FUNCTION feature_platform.features_from() RETURNS timestamptz
    LANGUAGE sql STABLE
    RETURN coalesce((SELECT r.features_from FROM feature_platform.retention r WHERE r.only_one), '-infinity');
COMMENT ON FUNCTION feature_platform.features_from() IS
    'The first bucket whose features are kept; older rows are neither refreshed nor verified.';

CREATE OR REPLACE FUNCTION feature_platform.history_from() RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    RETURN coalesce((SELECT r.history_from FROM feature_platform.retention r WHERE r.only_one), '-infinity');
END
$$;
COMMENT ON FUNCTION feature_platform.history_from() IS
    'The first minute whose bars have a complete history.';

CREATE OR REPLACE FUNCTION public.set_features_1m_retention(
    bars interval DEFAULT NULL, features interval DEFAULT NULL, gaps interval DEFAULT NULL,
    runs interval DEFAULT '7 days', served interval DEFAULT '7 days', versions interval DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old_from timestamptz;
    new_from timestamptz;
BEGIN
    IF bars IS NOT NULL AND (features IS NULL OR bars < features + interval '1 day') THEN
        RAISE EXCEPTION 'bars must be kept at least a day longer than features, got bars % and features %',
                bars, coalesce(features::text, 'for ever')
            USING HINT = 'A row is computed from the bars of the day before it:'
                ' bars => ''2 years 1 day'', features => ''2 years''.';
    ELSIF features < '1 day' OR gaps < '0' OR runs < '1 day' OR served < '1 day' OR versions < '1 day' THEN
        RAISE EXCEPTION 'features, runs, served rows and versions are kept at least a day, got features %, gaps %,'
                ' runs %, served %, versions %', features, gaps, runs, served, versions;
    END IF;
    SELECT r.features_from INTO old_from FROM feature_platform.retention r FOR UPDATE;
    new_from := CASE WHEN features IS NOT NULL
                     THEN least(old_from, feature_platform.bucket_of(feature_platform.clock() - features)) END;
    UPDATE feature_platform.retention r
    SET bars = set_features_1m_retention.bars, features = set_features_1m_retention.features,
        gaps = set_features_1m_retention.gaps, runs = set_features_1m_retention.runs,
        served = set_features_1m_retention.served, versions = set_features_1m_retention.versions,
        features_from = CASE WHEN old_from IS NOT NULL THEN new_from END;
    -- A longer retention restores the rows whose bars still exist.
    IF coalesce(new_from, '-infinity') < old_from THEN
        PERFORM feature_platform.mark_window(coalesce(new_from, '-infinity'), old_from);
    END IF;
END
$$;
COMMENT ON FUNCTION
    public.set_features_1m_retention(interval, interval, interval, interval, interval, interval) IS
    'Sets how long rows of each kind are kept; NULL is for ever.';

-- The refresh since which the bar at the start of a minute is known, where only the row of the minute shows it; else
-- NULL.
CREATE OR REPLACE FUNCTION feature_platform.began_with_row(of_symbol text, of_bucket timestamptz) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    created CONSTANT bigint := feature_platform.row_created(of_symbol, of_bucket);
    ended bigint;
BEGIN
    SELECT min(coalesce(r.no, 9223372036854775807)) INTO ended
    FROM feature_platform.bar_history h
    LEFT JOIN feature_platform.bar_refresh r ON r.symbol = h.symbol AND r.mark = h.mark
    WHERE h.symbol = of_symbol AND h.ts = of_bucket AND h.gone;
    RETURN CASE WHEN created < coalesce(ended, 9223372036854775807)
                     AND NOT EXISTS (SELECT FROM feature_platform.bar_known k
                                     WHERE k.symbol = of_symbol AND k.ts >= of_bucket
                                       AND k.ts < of_bucket + interval '1 minute' AND (ended IS NULL OR k.no < ended))
                THEN created END;
END
$$;
COMMENT ON FUNCTION feature_platform.began_with_row(text, timestamptz) IS
    'The refresh since which the bar at the start of a minute is known, where only the row of the minute shows it.';

-- Delete a batch of versions of rows that were replaced before a time; return their number. The bars of these minutes
-- stay known since the same refreshes.
CREATE OR REPLACE FUNCTION feature_platform.delete_old_versions(kept_from timestamptz, budget bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    known CONSTANT record := feature_platform.known_at(kept_from);
    history text;
    gone bigint;
    total bigint;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT h.ctid, h.symbol, h.bucket FROM feature_platform.features_1m_history h
        WHERE h.until <= known.upto AND h.until <> ALL (known.late) LIMIT budget
    ), begun AS (
        INSERT INTO feature_platform.bar_known (symbol, ts, no)
        SELECT b.symbol, b.bucket, b.no
        FROM (SELECT DISTINCT o.symbol, o.bucket, feature_platform.began_with_row(o.symbol, o.bucket) AS no
              FROM old o) AS b
        WHERE b.no IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    DELETE FROM feature_platform.features_1m_history h WHERE h.ctid = ANY (ARRAY(SELECT o.ctid FROM old o));
    GET DIAGNOSTICS total = ROW_COUNT;
    FOR history IN
        SELECT format('feature_views.%I', 'v' || v.id || '_history') FROM feature_platform.feature_view v
    LOOP
        EXIT WHEN total >= budget;
        EXECUTE format('DELETE FROM %1$s h WHERE h.ctid = ANY (ARRAY(
                            SELECT o.ctid FROM %1$s o WHERE o.until <= $1 AND o.until <> ALL ($2) LIMIT $3))', history)
            USING known.upto, known.late, budget - total;
        GET DIAGNOSTICS gone = ROW_COUNT;
        total := total + gone;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION feature_platform.delete_old_versions(timestamptz, bigint) IS
    'Deletes a batch of versions of rows that were replaced before a time; returns their number.';

-- Delete the versions of rows of features_1m and of bars from before a time, with what belongs to these, at most
-- `budget` rows; return their number.
CREATE OR REPLACE FUNCTION feature_platform.delete_history(until timestamptz, budget bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    one record;
    gone bigint;
    deleted bigint := 0;
BEGIN
    FOR one IN SELECT k.symbol, h.name, h.time
               FROM (SELECT DISTINCT s.symbol FROM feature_platform.known_symbol s) AS k
               CROSS JOIN (VALUES ('features_1m_history', 'bucket'), ('bar_history', 'ts'), ('bar_known', 'ts'),
                                  ('bar_refresh', 'last')) AS h (name, time) LOOP
        EXIT WHEN deleted >= budget;
        EXECUTE format('DELETE FROM feature_platform.%1$I h WHERE h.ctid = ANY (ARRAY(
                            SELECT o.ctid FROM feature_platform.%1$I o
                            WHERE o.symbol = $1 AND o.%2$I < $2 LIMIT $3))', one.name, one.time)
            USING one.symbol, until, budget - deleted;
        GET DIAGNOSTICS gone = ROW_COUNT;
        deleted := deleted + gone;
    END LOOP;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION feature_platform.delete_history(timestamptz, bigint) IS
    'Deletes the versions of rows of features_1m and of bars from before a time.';

-- Delete one batch of about `budget` rows that are too old, in the caller's transaction; return whether there are more.
CREATE OR REPLACE FUNCTION feature_platform.retention_step(budget bigint DEFAULT 50000) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    minute CONSTANT interval := '1 minute';
    kept feature_platform.retention;
    new_from timestamptz;
    bars_until timestamptz;
    part record;
    gone bigint;
    left_over bigint := budget;
BEGIN
    SELECT * INTO kept FROM feature_platform.retention FOR UPDATE;      -- one at a time
    new_from := greatest(kept.features_from, feature_platform.bucket_of(feature_platform.clock() - kept.features));
    IF new_from IS DISTINCT FROM kept.features_from THEN
        UPDATE feature_platform.retention
        SET features_from = new_from, history_from = greatest(history_from, new_from);
    END IF;

    DELETE FROM feature_platform.policy_run r
    WHERE r.id IN (SELECT o.id FROM feature_platform.policy_run o
                   WHERE o.started_at < feature_platform.clock() - kept.runs ORDER BY o.id LIMIT left_over);
    GET DIAGNOSTICS gone = ROW_COUNT;
    left_over := left_over - gone;
    DELETE FROM feature_platform.served s
    WHERE s.id IN (SELECT o.id FROM feature_platform.served o
                   WHERE o.served_at < feature_platform.clock() - kept.served ORDER BY o.served_at LIMIT left_over);
    GET DIAGNOSTICS gone = ROW_COUNT;
    left_over := left_over - gone;
    DELETE FROM public.ohlcv_1m_gaps g
    WHERE g.id IN (SELECT o.id FROM public.ohlcv_1m_gaps o
                   WHERE o.state = 'filled' AND o.changed_at < feature_platform.clock() - kept.gaps ORDER BY o.id
                       LIMIT left_over);
    GET DIAGNOSTICS gone = ROW_COUNT;
    left_over := left_over - gone;

    FOR part IN
        SELECT s.symbol, first.bucket
        FROM feature_platform.feature_symbol s
        CROSS JOIN LATERAL (SELECT f.bucket FROM public.features_1m f WHERE f.symbol = s.symbol ORDER BY f.bucket
                            LIMIT 1) AS first
        WHERE first.bucket < new_from
    LOOP
        IF left_over <= 0 THEN
            RETURN true;
        END IF;
        DELETE FROM public.features_1m f
        WHERE f.symbol = part.symbol AND f.bucket < least(new_from, part.bucket + left_over * minute);
        GET DIAGNOSTICS gone = ROW_COUNT;
        PERFORM feature_platform.record_lake_changes('features_1m', ARRAY[part.symbol],
            ARRAY[tstzmultirange(tstzrange(part.bucket, least(new_from, part.bucket + left_over * minute)))]);
        left_over := left_over - gone;
    END LOOP;

    IF left_over > 0 AND kept.versions IS NOT NULL THEN
        UPDATE feature_platform.retention r
        SET versions_from = greatest(r.versions_from, feature_platform.clock() - kept.versions)
        RETURNING r.versions_from INTO kept.versions_from;
        left_over := left_over - feature_platform.delete_old_versions(kept.versions_from, left_over);
    END IF;
    IF left_over > 0 AND new_from IS NOT NULL THEN
        left_over := left_over - feature_platform.delete_history(new_from, left_over);
    END IF;
    IF left_over > 0 AND new_from IS NOT NULL THEN
        left_over := left_over - feature_platform.delete_old_view_rows(new_from, left_over);
    END IF;

    IF kept.bars IS NOT NULL THEN
        PERFORM FROM feature_platform.mutex m WHERE m.name = 'gaps' FOR UPDATE;
        -- The newest minute up to here stays. The windows of all kept rows begin after it; it gives the first kept row
        -- its previous close, and the warm-up that is counted from it has ended by then.
        bars_until := least(feature_platform.bucket_of(feature_platform.clock() - kept.bars), new_from - 1439 * minute);
        FOR part IN
            SELECT s.symbol, first.bucket, stays.bucket AS until
            FROM feature_platform.bar_symbol s
            CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
                                WHERE b.symbol = s.symbol ORDER BY b.ts LIMIT 1) AS first
            CROSS JOIN LATERAL (SELECT feature_platform.bucket_of(b.ts) AS bucket FROM public.ohlcv_1m b
                                WHERE b.symbol = s.symbol
                                  AND b.ts < least(bars_until + minute,
                                                   feature_platform.views_need_from(s.symbol, new_from))
                                ORDER BY b.ts DESC LIMIT 1) AS stays
            WHERE first.bucket < stays.bucket
        LOOP
            IF left_over <= 0 THEN
                RETURN true;
            END IF;
            DELETE FROM public.ohlcv_1m b
            WHERE b.symbol = part.symbol AND b.ts < least(part.until, part.bucket + left_over * minute);
            GET DIAGNOSTICS gone = ROW_COUNT;
            left_over := left_over - gone;
            PERFORM feature_platform.forget_minutes(part.symbol);
        END LOOP;
    END IF;
    RETURN left_over <= 0;
END
$$;
COMMENT ON FUNCTION feature_platform.retention_step(bigint) IS
    'Deletes a batch of rows that are too old; returns whether there are more.';

-- Minutes before the first bar are not accounted for: they are neither missing nor requested.
CREATE OR REPLACE FUNCTION feature_platform.forget_minutes(forgotten text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first timestamptz := (SELECT feature_platform.bucket_of(b.ts) FROM public.ohlcv_1m b
                          WHERE b.symbol = forgotten ORDER BY b.ts LIMIT 1);
BEGIN
    UPDATE feature_platform.gap_watermark w
    SET since_ts = greatest(w.since_ts, first), until_ts = greatest(w.until_ts, first)
    WHERE w.symbol = forgotten;
    DELETE FROM public.ohlcv_1m_gaps g WHERE g.symbol = forgotten AND g.state <> 'filled' AND g.end_ts <= first;
    UPDATE public.ohlcv_1m_gaps g SET start_ts = first
    WHERE g.symbol = forgotten AND g.state <> 'filled' AND g.start_ts < first;
END
$$;
COMMENT ON FUNCTION feature_platform.forget_minutes(text) IS
    'Ends the accounting for the minutes before a symbol''s first bar.';

-- Apply the retention in batches, each in a transaction of its own; so it cannot run inside of a transaction block.
CREATE OR REPLACE PROCEDURE feature_platform.apply_retention()
    LANGUAGE plpgsql
AS $$
BEGIN
    COMMIT;     -- fails at once inside of a transaction block
    WHILE feature_platform.retention_step() LOOP
        COMMIT;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE feature_platform.apply_retention() IS 'Deletes the rows that are too old, in batches.';
