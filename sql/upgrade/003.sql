-- To version 3: databases of version 2, and of commits of version 3 that kept no hash. Each statement does nothing
-- where there is nothing to do.

-- The columns that earlier versions lack. Version 1 had no recorder and counted no wake-ups. Version 2 had no feature
-- views, did not count what was known when, logged no served rows, and knew one exchange. ALTER TABLE waits for all
-- readers of a table also where the column exists, and a writer may wait for it in a circle.
DO $$
DECLARE
    new record;
BEGIN
    FOR new IN
        SELECT c.tab, c.col, c.definition FROM (VALUES
            ('public.ohlcv_1m_gaps', 'feed', 'text'),
            ('feature_platform.policy_run', 'wakes', 'integer NOT NULL DEFAULT 0'),
            ('feature_platform.policy_run', 'woken_at', 'timestamptz'),
            ('feature_platform.schema_version', 'hash', 'text'),
            ('public.features_1m', 'refresh_no', 'bigint NOT NULL DEFAULT 0'),
            ('feature_platform.dirty_log', 'changed', 'tstzmultirange'),
            ('feature_platform.dirty_log', 'before_no', 'bigint'),
            ('feature_platform.dirty_log', 'replaced', 'boolean NOT NULL DEFAULT false'),
            ('feature_platform.view_symbol', 'long_only', 'tstzmultirange NOT NULL DEFAULT ''{}'''),
            ('feature_platform.view_symbol', 'no', 'bigint NOT NULL DEFAULT 0'),
            ('feature_platform.view_symbol', 'before_no', 'bigint'),
            ('feature_platform.knowledge_floor', 'forgotten_at', 'timestamptz'),
            ('feature_platform.retention', 'history_from', 'timestamptz'),
            ('feature_platform.retention', 'served',
             'interval DEFAULT ''7 days'' CONSTRAINT retention_served_check CHECK (served >= ''1 day'')'),
            ('feature_platform.retention', 'versions', 'interval CHECK (versions >= ''1 day'')'),
            ('feature_platform.retention', 'versions_from', 'timestamptz'),
            ('feature_platform.heartbeat', 'exchange', 'text NOT NULL DEFAULT '''''),
            ('feature_platform.heartbeat', 'not_live_since', 'timestamptz'),
            ('feature_platform.feed_outage', 'exchange', 'text NOT NULL DEFAULT '''''),
            ('feature_platform.database_origin', 'exchange', 'text'),
            ('feature_platform.database_origin', 'exchange_url', 'text')
        ) AS c (tab, col, definition)
        WHERE to_regclass(c.tab) IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = to_regclass(c.tab) AND a.attname = c.col AND NOT a.attisdropped)
    LOOP
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', new.tab, new.col, new.definition);
    END LOOP;
END
$$;
DROP FUNCTION IF EXISTS feature_platform.has_new_marks(text, timestamptz, timestamptz);
DROP FUNCTION IF EXISTS feature_platform.mark_minutes(text[], timestamptz[], timestamptz[], boolean[]);

DROP FUNCTION IF EXISTS public.set_features_1m_retention(interval, interval, interval, interval);

-- Functions of views that earlier files compiled do not fit the refresh any more: a view has to be applied again, which
-- builds a new version beside the stored rows. Its sources are changed, so that it does not count as unchanged. Until
-- then its rows stay readable. They have the number 0 and no earlier versions. A read as of a time is an error, because
-- the history counts as incomplete.
DO $$
DECLARE
    old record;
BEGIN
    IF to_regtype('feature_platform.view_item') IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute a JOIN pg_type t ON t.typrelid = a.attrelid
        WHERE t.oid = to_regtype('feature_platform.view_item') AND a.attname = 'whole') THEN
        ALTER TYPE feature_platform.view_item ADD ATTRIBUTE whole tstzmultirange;
    END IF;
    IF to_regclass('feature_platform.feature_view') IS NOT NULL THEN
        FOR old IN
            UPDATE feature_platform.feature_view v
            SET state = 'failed', built_at = NULL,
                error = 'an earlier version of the platform compiled it: run `feature-platform views apply` with its'
                    ' file',
                sources = (SELECT array_agg(s || ' (compiled earlier)' ORDER BY place)
                           FROM unnest(v.sources) WITH ORDINALITY AS u (s, place))
            WHERE v.compiled NOT LIKE '%of_refresh%' AND v.state <> 'failed'
            RETURNING 'v' || v.id AS id, v.name, v.served,
                      (SELECT string_agg(quote_ident(c), ', ') FROM unnest(v.columns) AS c) AS columns
        LOOP
            CONTINUE WHEN to_regclass('feature_views.' || old.id || '_versions') IS NOT NULL;
            EXECUTE format(
                'ALTER TABLE feature_views.%1$I ADD COLUMN refresh_no bigint NOT NULL DEFAULT 0;
                 CREATE TABLE feature_views.%2$I (LIKE feature_views.%1$I);
                 ALTER TABLE feature_views.%2$I RENAME refresh_no TO since;
                 ALTER TABLE feature_views.%2$I ADD until bigint NOT NULL;
                 CREATE VIEW feature_views.%3$I AS
                 SELECT symbol, bucket, %4$s, refresh_no AS since, NULL::bigint AS until FROM feature_views.%1$I
                 UNION ALL SELECT symbol, bucket, %4$s, since, until FROM feature_views.%2$I',
                old.id || '_rows', old.id || '_history', old.id || '_versions', old.columns);
            IF old.served THEN      -- new columns can only follow the old ones
                EXECUTE format(
                    'CREATE OR REPLACE VIEW public.%I AS SELECT symbol, bucket, %s, refresh_no FROM feature_views.%I',
                    old.name, old.columns, old.id || '_rows');
            END IF;
        END LOOP;
    END IF;
    IF to_regtype('feature_platform.refresh_work') IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute a JOIN pg_type t ON t.typrelid = a.attrelid
        WHERE t.oid = to_regtype('feature_platform.refresh_work') AND a.attname = 'before_no') THEN
        ALTER TYPE feature_platform.refresh_work ADD ATTRIBUTE before_no bigint;
    END IF;
    -- Before PostgreSQL 16 DROP FUNCTION raises an error where the type of a parameter does not exist.
    IF to_regtype('feature_platform.view_item') IS NOT NULL THEN
        DROP FUNCTION IF EXISTS feature_platform.features_1m_range(feature_platform.view_item[]);
        DROP FUNCTION IF EXISTS feature_platform.run_ranges(text, text, feature_platform.view_item[]);
    END IF;
END
$$;
DROP FUNCTION IF EXISTS feature_platform.features_1m_step(text[], timestamptz[], timestamptz[], timestamptz[]);
DROP FUNCTION IF EXISTS feature_platform.run_steps(
    text, text, interval, text[], timestamptz[], timestamptz[], timestamptz[]);
DROP FUNCTION IF EXISTS feature_platform.delete_rows_without_bars(regclass, text, tstzrange, interval);
DROP FUNCTION IF EXISTS feature_platform.take_marks(text[], tstzrange, bigint);
DROP FUNCTION IF EXISTS feature_platform.number_at(timestamptz);
DROP FUNCTION IF EXISTS feature_platform.refresh_view_symbols(integer, text[], tstzrange, bigint, integer);

DROP FUNCTION IF EXISTS public.set_features_1m_retention(interval, interval, interval, interval, interval);

-- Columns that have another name since.
DO $$
DECLARE
    old_name text;
    new_name text;
BEGIN
    FOR old_name, new_name IN VALUES ('heard_at', 'update_at'), ('refused', 'rejected') LOOP
        IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('feature_platform.heartbeat')
                   AND attname = old_name) THEN
            EXECUTE format('ALTER TABLE feature_platform.heartbeat RENAME COLUMN %I TO %I', old_name, new_name);
        END IF;
    END LOOP;
    -- From PostgreSQL 18 on, NOT NULL is a constraint with a name.
    IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('feature_platform.heartbeat')
               AND conname = 'heartbeat_refused_not_null') THEN
        ALTER TABLE feature_platform.heartbeat
            RENAME CONSTRAINT heartbeat_refused_not_null TO heartbeat_rejected_not_null;
    END IF;
END
$$;

-- Version 2 knew no symbol that is no longer recorded.
DO $$
BEGIN
    IF (SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = to_regclass('feature_platform.heartbeat') AND conname = 'heartbeat_state_check')
       NOT LIKE '%not\_recorded%' THEN
        ALTER TABLE feature_platform.heartbeat DROP CONSTRAINT heartbeat_state_check,
            ADD CONSTRAINT heartbeat_state_check
                CHECK (state IN ('live', 'catching_up', 'down', 'stopped', 'not_recorded'));
    END IF;
END
$$;

-- Version 2 listed missing minutes of a symbol that is no longer recorded as open.
DO $$
BEGIN
    IF (SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = to_regclass('public.ohlcv_1m_gaps') AND conname = 'ohlcv_1m_gaps_state_check')
       NOT LIKE '%not\_recorded%' THEN
        ALTER TABLE public.ohlcv_1m_gaps DROP CONSTRAINT ohlcv_1m_gaps_state_check,
            ADD CONSTRAINT ohlcv_1m_gaps_state_check
                CHECK (state IN ('open', 'filled', 'quiet', 'unavailable', 'not_recorded'));
    END IF;
END
$$;

-- Version 2 had a computation of features_1m of its own, which kept the sums of the newest row in symbol_state.
DROP FUNCTION IF EXISTS feature_platform.compute_features(feature_platform.refresh_item[]);
DROP FUNCTION IF EXISTS feature_platform.delete_rows_without_bars(feature_platform.refresh_item[]);
DROP FUNCTION IF EXISTS feature_platform.range_base(
    text, timestamptz, timestamptz, tstzmultirange, boolean, timestamptz, bigint, numeric, numeric, double precision,
    numeric, timestamptz, timestamptz);
DROP FUNCTION IF EXISTS feature_platform.mark_reach(text, tstzmultirange, timestamptz, timestamptz, timestamptz);
DROP FUNCTION IF EXISTS feature_platform.sums_from(
    timestamptz, numeric, tstzmultirange, boolean, timestamptz, timestamptz);
DROP FUNCTION IF EXISTS feature_platform.delete_view_rows(integer, text, tstzrange, interval, boolean);
DROP TYPE IF EXISTS feature_platform.refresh_item;
ALTER TABLE IF EXISTS feature_platform.symbol_state
    DROP COLUMN IF EXISTS newest_bucket, DROP COLUMN IF EXISTS newest_n, DROP COLUMN IF EXISTS newest_sum,
    DROP COLUMN IF EXISTS newest_sum_sq, DROP COLUMN IF EXISTS newest_close, DROP COLUMN IF EXISTS newest_vol;

-- Version 2 refreshed slices of minutes, whether they had bars or not.
DROP FUNCTION IF EXISTS feature_platform.pick_symbols(tstzrange, bigint, bigint, integer);
DROP FUNCTION IF EXISTS feature_platform.refresh_slice(timestamptz, timestamptz, bigint, bigint, integer);
DROP FUNCTION IF EXISTS feature_platform.starts_cached(timestamptz, boolean, tstzrange);

DO $$
BEGIN
    -- A function's parameters cannot be renamed, and the columns of its result cannot be changed.
    -- Before PostgreSQL 16 to_regprocedure raises an error where the type of a parameter does not exist.
    IF (SELECT 'slice_minutes' = ANY (p.proargnames) FROM pg_proc p
        WHERE p.oid = to_regprocedure('feature_platform.refresh_symbols(text[], tstzrange, bigint)')) THEN
        DROP FUNCTION feature_platform.refresh_symbols(text[], tstzrange, bigint);
    END IF;
    IF (SELECT 'day' <> ALL (p.proargnames) FROM pg_proc p
        WHERE p.oid = to_regprocedure('feature_platform.due_gaps(text[])')) THEN
        DROP FUNCTION feature_platform.due_gaps(text[]);
    END IF;
END
$$;
