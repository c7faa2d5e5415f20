-- The versions of feature views: a version is built beside the one that is served, and takes the name when it is
-- complete.

-- The columns of a version in SQL, as identifiers.
CREATE OR REPLACE FUNCTION feature_platform.view_columns(columns text[]) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.place)
            FROM unnest(ARRAY['symbol', 'bucket', 'refresh_no'] || columns) WITH ORDINALITY AS c (name, place));
COMMENT ON FUNCTION feature_platform.view_columns(text[]) IS 'The columns of a version in SQL.';

-- Grant a right such as "SELECT ON public.momentum_1m" to the roles that may read all features.
CREATE OR REPLACE FUNCTION feature_platform.grant_to_readers(right_on text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
BEGIN
    FOR role IN SELECT r.rolname FROM pg_roles r
                WHERE r.rolname IN ('feature_platform_refresher', 'feature_platform_orchestrator',
                                    'feature_platform_reader') LOOP
        EXECUTE format('GRANT %s TO %I', right_on, role);
    END LOOP;
END
$$;
COMMENT ON FUNCTION feature_platform.grant_to_readers(text) IS
    'Grants a right to the roles that may read all features.';

-- Grant the rights on a version: its functions of verify, and public.NAME where it is served. 085_rights.sql repeats
-- it, for roles that are younger than the version, and after a dump was restored without rights.
CREATE OR REPLACE FUNCTION feature_platform.grant_view_rights(of_view integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
    made record;
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    FOR made IN SELECT p.oid::regprocedure::text AS name, p.proname LIKE '%\_plain%' AS is_plain FROM pg_proc p
                WHERE p.pronamespace = 'feature_views'::regnamespace AND p.proname LIKE 'v' || of_view || '\_%' LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made.name);
        IF made.is_plain THEN
            PERFORM feature_platform.grant_to_readers('EXECUTE ON FUNCTION ' || made.name);
        END IF;
    END LOOP;
    IF v.served THEN
        PERFORM feature_platform.grant_to_readers(format('SELECT ON feature_views.%I', 'v' || of_view || '_versions'));
        PERFORM feature_platform.grant_to_readers(format('SELECT ON public.%I', v.name));
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.grant_view_rights(integer) IS 'Grants the rights on a version to its readers.';

-- Make public.NAME show the rows of a version, with the rights that it had, and drop the version that it showed. The
-- caller has locked view_lock in EXCLUSIVE mode.
CREATE OR REPLACE FUNCTION feature_platform.serve_view(of_view integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
    old feature_platform.feature_view;
    qualified text;
    made text;
    rights aclitem[];
    granted record;
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    SELECT * INTO old FROM feature_platform.feature_view w WHERE w.name = v.name AND w.served AND w.id <> of_view;
    qualified := format('public.%I', v.name);
    made := format('VIEW %s AS SELECT %s FROM feature_views.%I', qualified, feature_platform.view_columns(v.columns),
                   'v' || v.id || '_rows');
    rights := (SELECT c.relacl FROM pg_class c WHERE c.oid = to_regclass(qualified));
    BEGIN
        -- Objects that depend on the view stay, where the new columns only follow the old ones.
        EXECUTE 'CREATE OR REPLACE ' || made;
    EXCEPTION WHEN invalid_table_definition THEN
        EXECUTE 'DROP VIEW ' || qualified;
        EXECUTE 'CREATE ' || made;
        FOR granted IN SELECT a.privilege_type, a.is_grantable, r.rolname
                       FROM aclexplode(rights) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee LOOP
            EXECUTE format('GRANT %s ON %s TO %s%s', granted.privilege_type, qualified,
                           CASE WHEN granted.rolname IS NULL THEN 'PUBLIC' ELSE quote_ident(granted.rolname) END,
                           CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;
    END;
    EXECUTE format('COMMENT ON VIEW %s IS %L', qualified, v.description);
    FOR granted IN SELECT c.name, c.source FROM unnest(v.columns, v.sources) AS c (name, source) LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', qualified, granted.name, granted.source);
    END LOOP;
    UPDATE feature_platform.feature_view w SET served = false WHERE w.id = old.id;
    UPDATE feature_platform.feature_view w SET served = true WHERE w.id = of_view;
    PERFORM feature_platform.grant_view_rights(of_view);
    IF old.id IS NOT NULL THEN
        PERFORM feature_platform.drop_view_version(old.id);
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.serve_view(integer) IS 'Makes public.NAME show the rows of a version.';

-- Drop the tables and functions of a version, and all that is stored about it.
CREATE OR REPLACE FUNCTION feature_platform.drop_view_version(of_view integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT p.oid::regprocedure::text AS name, 'FUNCTION' AS kind, 1 AS place FROM pg_proc p
        WHERE p.pronamespace = 'feature_views'::regnamespace AND p.proname LIKE 'v' || of_view || '\_%'
        UNION ALL
        SELECT c.oid::regclass::text, CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
               CASE c.relkind WHEN 'v' THEN 2 ELSE 3 END
        FROM pg_class c
        WHERE c.relnamespace = 'feature_views'::regnamespace AND c.relkind IN ('r', 'v')
          AND c.relname LIKE 'v' || of_view || '\_%'
        ORDER BY place
    LOOP
        EXECUTE format('DROP %s %s', part.kind, part.name);
    END LOOP;
    DELETE FROM feature_platform.view_symbol s WHERE s.view = of_view;
    DELETE FROM feature_platform.known_at_close k WHERE k.view = of_view;
    DELETE FROM feature_platform.feature_view v WHERE v.id = of_view;
END
$$;
COMMENT ON FUNCTION feature_platform.drop_view_version(integer) IS 'Drops a version with all that belongs to it.';

-- Let a version whose history is complete take its name, in the caller's transaction. A reader of the old version in an
-- open transaction keeps it waiting: the attempt ends after 0.2 s and is repeated after 5 s; meanwhile the state is
-- `waiting`. Return whether there was an attempt. The caller commits after it, because a session that drops the view
-- waits for the version's row.
CREATE OR REPLACE FUNCTION feature_platform.serve_complete_views() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '200ms'
AS $$
DECLARE
    v feature_platform.feature_view;
    problem text;
BEGIN
    SELECT * INTO v FROM feature_platform.feature_view w
    WHERE w.state IN ('building', 'waiting')
      AND coalesce(w.tried_at, '-infinity') < clock_timestamp() - interval '5 seconds'
      AND NOT EXISTS (
          SELECT FROM feature_platform.view_symbol s
          WHERE s.view = w.id AND s.building      -- of a new symbol, no bucket may have closed yet
            AND s.dirty && tstzrange(NULL, feature_platform.view_due(w.every, w.origin)))
    ORDER BY w.id LIMIT 1
    FOR UPDATE SKIP LOCKED;     -- a locked version is being served or dropped
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    BEGIN
        IF NOT v.served THEN
            LOCK TABLE feature_platform.view_lock IN EXCLUSIVE MODE;
            PERFORM feature_platform.serve_view(v.id);
        END IF;
        UPDATE feature_platform.feature_view w
        SET state = 'live', error = NULL, built_at = coalesce(w.built_at, feature_platform.clock())
        WHERE w.id = v.id;
    EXCEPTION WHEN lock_not_available OR dependent_objects_still_exist THEN
        GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
        UPDATE feature_platform.feature_view w
        SET state = 'waiting', error = problem, tried_at = clock_timestamp(),
            built_at = coalesce(w.built_at, feature_platform.clock())
        WHERE w.id = v.id;
    END;
    RETURN true;
END
$$;
COMMENT ON FUNCTION feature_platform.serve_complete_views() IS
    'Lets a version whose history is complete take its name.';

-- Mark all history of a new version dirty, and let it process the changes from here on. The caller has locked view_lock
-- in EXCLUSIVE mode before the statement, which therefore sees the bars of every change that views have been sent.
CREATE OR REPLACE FUNCTION feature_platform.begin_view_build(of_view integer) RETURNS void
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO feature_platform.view_symbol AS s (view, symbol, processed, dirty, building, marked_at)
    SELECT v.id, k.symbol,
           coalesce(pg_sequence_last_value(
               pg_get_serial_sequence('feature_platform.view_change', 'id')::regclass), 0),
           tstzmultirange(tstzrange(greatest(date_bin(v.every, first.ts, v.origin),
                                             feature_platform.features_from()), NULL)),
           true, feature_platform.clock()
    FROM feature_platform.feature_view v
    CROSS JOIN (SELECT DISTINCT n.symbol FROM feature_platform.known_symbol n) AS k
    CROSS JOIN LATERAL (SELECT b.ts FROM public.ohlcv_1m b WHERE b.symbol = k.symbol ORDER BY b.ts LIMIT 1) AS first
    WHERE v.id = of_view
    ORDER BY k.symbol
    ON CONFLICT ON CONSTRAINT view_symbol_pkey DO UPDATE
    SET processed = excluded.processed, dirty = excluded.dirty, long_only = excluded.long_only, building = true,
        removed = true, marked_at = excluded.marked_at;

    -- The rows of the build count for flagged imports.
    DELETE FROM feature_platform.known_at_close k WHERE k.view = of_view;
    INSERT INTO feature_platform.known_at_close (view, symbol, minutes)
    SELECT of_view, k.symbol, range_agg(k.minutes) FROM feature_platform.known_at_close k WHERE k.view = 0
    GROUP BY k.symbol ORDER BY k.symbol;
END;
COMMENT ON FUNCTION feature_platform.begin_view_build(integer) IS 'Marks all history of a new version dirty.';

-- Delete the rows of one symbol from all views. Its changes stay: the next refresh deletes rows that a concurrent
-- refresh has stored meanwhile.
CREATE OR REPLACE FUNCTION feature_platform.forget_view_rows(forgotten text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part record;
    gone bigint;
    rows bigint := 0;
BEGIN
    FOR part IN SELECT c.oid::regclass::text AS name, c.relname LIKE '%\_rows' AS counts FROM pg_class c
                WHERE c.relnamespace = 'feature_views'::regnamespace AND c.relkind = 'r'
                ORDER BY c.oid LOOP
        EXECUTE format('DELETE FROM %s t WHERE t.symbol = $1', part.name) USING forgotten;
        GET DIAGNOSTICS gone = ROW_COUNT;
        rows := rows + CASE WHEN part.counts THEN gone ELSE 0 END;
    END LOOP;
    DELETE FROM feature_platform.view_symbol s WHERE s.symbol = forgotten;
    RETURN rows;
END
$$;
COMMENT ON FUNCTION feature_platform.forget_view_rows(text) IS
    'Deletes the rows of one symbol from all views; returns their number.';

-- Prepare the tables and functions of a new version: the rights of verify, and hypertables on TimescaleDB.
CREATE OR REPLACE FUNCTION feature_platform.finish_view_tables(of_view integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM feature_platform.grant_view_rights(of_view);
    PERFORM feature_platform.make_view_hypertables(of_view);
END
$$;
COMMENT ON FUNCTION feature_platform.finish_view_tables(integer) IS
    'Prepares the tables and functions of a new version.';

CREATE OR REPLACE FUNCTION feature_platform.describe_view(of_view integer, text text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
BEGIN
    UPDATE feature_platform.feature_view w SET description = text WHERE w.id = of_view RETURNING * INTO v;
    IF v.served THEN
        EXECUTE format('COMMENT ON VIEW public.%I IS %L', v.name, text);
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.describe_view(integer, text) IS 'Changes the description of a version.';

-- Drop a view with all of its versions. The caller has locked view_lock in EXCLUSIVE mode.
CREATE OR REPLACE FUNCTION feature_platform.drop_view(of_name text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    of_view integer;
    dropped boolean := false;
BEGIN
    FOR of_view IN SELECT v.id FROM feature_platform.feature_view v WHERE v.name = of_name ORDER BY v.id LOOP
        EXECUTE format('DROP VIEW IF EXISTS public.%I', of_name);
        PERFORM feature_platform.drop_view_version(of_view);
        dropped := true;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION feature_platform.drop_view(text) IS 'Drops a view with all of its versions.';

-- The symbols of a version, the buckets between their first and last bar, those of them that are not built yet, those
-- that are dirty, and since when.
CREATE OR REPLACE FUNCTION feature_platform.view_progress(
    v feature_platform.feature_view,
    OUT symbols bigint, OUT buckets bigint, OUT unbuilt bigint, OUT dirty bigint, OUT dirty_age interval)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT count(*), coalesce(sum(w.all), 0)::bigint, coalesce(sum(w.left_over) FILTER (WHERE w.building), 0)::bigint,
           coalesce(sum(w.left_over), 0)::bigint, feature_platform.clock() - min(w.marked_at)
    FROM (SELECT s.building, coalesce(s.marked_at, c.marked_at) AS marked_at,
                 extract(epoch FROM span.ends - span.first) / extract(epoch FROM v.every) AS all,
                 (SELECT coalesce(sum(extract(epoch FROM upper(r) - lower(r))), 0) / extract(epoch FROM v.every)
                  FROM unnest((coalesce(s.dirty, '{}') + coalesce(c.changed, '{}'))
                              * tstzmultirange(tstzrange(span.first, greatest(span.first, span.ends)))) AS r)
                     AS left_over
          FROM feature_platform.bar_symbol k
          LEFT JOIN feature_platform.view_symbol s ON s.view = v.id AND s.symbol = k.symbol
          LEFT JOIN LATERAL (SELECT range_agg(n.changed) AS changed, min(n.marked_at) AS marked_at
                             FROM feature_platform.view_change n
                             WHERE n.symbol = k.symbol AND n.id > coalesce(s.processed, 0)
                               AND lower(n.changed) < feature_platform.view_due(v.every, v.origin)) AS c ON true
          CROSS JOIN LATERAL (
              SELECT greatest((SELECT date_bin(v.every, b.ts, v.origin) FROM public.ohlcv_1m b
                               WHERE b.symbol = k.symbol ORDER BY b.ts LIMIT 1),
                              feature_platform.features_from()) AS first,
                     least((SELECT date_bin(v.every, b.ts, v.origin) + v.every FROM public.ohlcv_1m b
                            WHERE b.symbol = k.symbol ORDER BY b.ts DESC LIMIT 1),
                           feature_platform.view_due(v.every, v.origin)) AS ends) AS span) AS w;
END;
COMMENT ON FUNCTION feature_platform.view_progress(feature_platform.feature_view) IS
    'How much of a version''s history is built, and how much is dirty.';

-- The age of the newest row of a version, from the end of its bucket.
CREATE OR REPLACE FUNCTION feature_platform.view_lag(v feature_platform.feature_view) RETURNS interval
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest timestamptz;
BEGIN
    EXECUTE format('SELECT f.bucket FROM feature_views.%I f ORDER BY f.bucket DESC LIMIT 1', 'v' || v.id || '_rows')
        INTO newest;
    RETURN feature_platform.clock() - (newest + v.every);
END
$$;
COMMENT ON FUNCTION feature_platform.view_lag(feature_platform.feature_view) IS
    'The age of the newest row of a version.';

-- The buckets of a symbol that have or should have rows of a version: from the first one, up to the end of the closed
-- ones with bars, and up to the end of all stored rows.
CREATE OR REPLACE FUNCTION feature_platform.view_span(
    of_view integer, of_symbol text, OUT first_bucket timestamptz, OUT last_bucket timestamptz,
    OUT newest_row timestamptz, OUT closed timestamptz)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
    oldest_row timestamptz;
BEGIN
    SELECT * INTO STRICT v FROM feature_platform.feature_view w WHERE w.id = of_view;
    closed := feature_platform.view_due(v.every, v.origin);
    EXECUTE format('SELECT (SELECT f.bucket FROM feature_views.%1$I f WHERE f.symbol = $1 ORDER BY f.bucket LIMIT 1),
                           (SELECT f.bucket + $2 FROM feature_views.%1$I f WHERE f.symbol = $1
                            ORDER BY f.bucket DESC LIMIT 1)', 'v' || of_view || '_rows')
        INTO oldest_row, newest_row USING of_symbol, v.every;
    first_bucket := least(oldest_row, (SELECT date_bin(v.every, b.ts, v.origin) FROM public.ohlcv_1m b
                                       WHERE b.symbol = of_symbol ORDER BY b.ts LIMIT 1));
    SELECT CASE WHEN first_bucket IS NOT NULL THEN greatest(first_bucket, feature_platform.features_from()) END,
           least(closed, (SELECT date_bin(v.every, b.ts, v.origin) + v.every FROM public.ohlcv_1m b
                          WHERE b.symbol = of_symbol ORDER BY b.ts DESC LIMIT 1))
    INTO first_bucket, last_bucket;
END
$$;
COMMENT ON FUNCTION feature_platform.view_span(integer, text) IS
    'The buckets of a symbol that have or should have rows of a version.';

-- In the transaction of a measurement: make each symbol's newest bucket dirty, and its state the one before it.
CREATE OR REPLACE FUNCTION feature_platform.dirty_newest_bucket(of_view integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('
        WITH newest AS (SELECT s.symbol, max(s.bucket) AS bucket FROM feature_views.%1$I s GROUP BY s.symbol),
        gone AS (DELETE FROM feature_views.%1$I s USING newest n WHERE (s.symbol, s.bucket) = (n.symbol, n.bucket))
        UPDATE feature_platform.view_symbol s
        SET dirty = tstzmultirange(tstzrange(n.bucket, n.bucket + v.every))
        FROM newest n, feature_platform.feature_view v
        WHERE s.symbol = n.symbol AND s.view = $1 AND v.id = $1', 'v' || of_view || '_state') USING of_view;
END
$$;
COMMENT ON FUNCTION feature_platform.dirty_newest_bucket(integer) IS
    'Makes each symbol''s newest bucket dirty, for a measurement.';

-- The time from which on the views need the bars of a symbol for the rows that are kept. Earlier bars may be deleted.
CREATE OR REPLACE FUNCTION feature_platform.views_need_from(of_symbol text, kept_from timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v feature_platform.feature_view;
    start timestamptz;
    needed timestamptz := 'infinity';
BEGIN
    FOR v IN SELECT * FROM feature_platform.feature_view LOOP
        EXECUTE format('SELECT feature_views.%I($1, $2)', 'v' || v.id || '_start') INTO start
            USING of_symbol, kept_from;
        -- Kept rows are complete also by the first bar that is left; a bucket may begin before its first bar.
        needed := least(needed, start - v.every, kept_from - v.warm_up - v.every);
    END LOOP;
    RETURN needed;
END
$$;
COMMENT ON FUNCTION feature_platform.views_need_from(text, timestamptz) IS
    'The time from which on the views need the bars of a symbol for rows that are kept.';

-- Delete a batch of rows, and of inner values, that are too old.
CREATE OR REPLACE FUNCTION feature_platform.delete_old_view_rows(kept_from timestamptz, budget bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    part record;
    stored record;
    gone bigint;
    total bigint := 0;
BEGIN
    FOR part IN
        SELECT k.symbol, CASE WHEN views.has_inner THEN feature_platform.views_need_from(k.symbol, kept_from) END
               AS inner_from
        FROM (SELECT bool_or(v.has_inner) AS has_inner FROM feature_platform.feature_view v
              HAVING count(*) > 0) AS views
        CROSS JOIN (SELECT DISTINCT n.symbol FROM feature_platform.known_symbol n) AS k
    LOOP
        FOR stored IN
            SELECT 'v' || v.id || t.suffix AS name, v.every,
                   CASE WHEN t.suffix = '_rows' AND v.served THEN v.name END AS lake_name,
                   CASE t.suffix WHEN '_inner' THEN part.inner_from ELSE kept_from END AS until
            -- States go before the inner values that a step from them would look up after a longer retention.
            FROM feature_platform.feature_view v
            CROSS JOIN (VALUES (1, '_state'), (2, '_rows'), (3, '_history'), (4, '_inner')) AS t (place, suffix)
            WHERE t.suffix <> '_inner' OR v.has_inner
            ORDER BY t.place
        LOOP
            IF total >= budget THEN
                RETURN total;
            END IF;
            EXECUTE format('DELETE FROM feature_views.%1$I f
                            WHERE f.symbol = $1 AND f.bucket < least($2,
                                (SELECT o.bucket FROM feature_views.%1$I o WHERE o.symbol = $1
                                 ORDER BY o.bucket LIMIT 1) + $3)', stored.name)
                USING part.symbol, stored.until, (budget - total) * stored.every;
            GET DIAGNOSTICS gone = ROW_COUNT;
            total := total + gone;
            IF gone > 0 THEN
                PERFORM feature_platform.record_lake_changes(
                    stored.lake_name, ARRAY[part.symbol], ARRAY[tstzmultirange(tstzrange(NULL, stored.until))]);
            END IF;
        END LOOP;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION feature_platform.delete_old_view_rows(timestamptz, bigint) IS
    'Deletes a batch of rows of views that are too old; returns their number.';

-- Every relation of features that can be read, with its columns: features_1m and the feature views.
CREATE OR REPLACE VIEW feature_platform.readable_view AS
SELECT 'features_1m' AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns
  FROM pg_attribute a
 WHERE a.attrelid = 'public.features_1m'::regclass AND a.attnum > 0 AND NOT a.attisdropped
   AND a.attname NOT IN ('symbol', 'bucket', 'refresh_no')
UNION ALL
SELECT v.name, v.columns FROM feature_platform.feature_view v WHERE v.served;
COMMENT ON VIEW feature_platform.readable_view IS 'Every relation of features that can be read, with its columns.';

-- One column of features_1m or of a feature view over time. The names are checked, so that a dashboard may pass those
-- that its user selects.
CREATE OR REPLACE FUNCTION feature_platform.view_values(
    of_view text, of_column text, of_symbol text, from_time timestamptz, to_time timestamptz)
    RETURNS TABLE (bucket timestamptz, value double precision)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM feature_platform.readable_view r WHERE r.name = of_view AND of_column = ANY (r.columns)) THEN
        RETURN QUERY EXECUTE format(
            'SELECT f.bucket, f.%I::double precision FROM public.%I f
             WHERE f.symbol = $1 AND f.bucket BETWEEN $2 AND $3 ORDER BY f.bucket', of_column, of_view)
            USING of_symbol, from_time, to_time;
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.view_values(text, text, text, timestamptz, timestamptz) IS
    'One column of features_1m or of a feature view over time.';
