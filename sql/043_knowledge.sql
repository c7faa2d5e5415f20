-- The record of what was known at each time. Knowledge is counted in the numbers of refreshes, which order the
-- refreshes of one symbol; a number is known since a time that was written after its commit. The times inside of a
-- transaction do not show this, because a reader does not see its rows before the commit.

-- One row for each transaction of a refresh that had work. A refresher draws its number after it has locked the
-- symbols. So of two refreshes of one symbol the later one has the greater number.
CREATE TABLE IF NOT EXISTS feature_platform.refresh (
    no           bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT refresh_pkey PRIMARY KEY,
    known_by     timestamptz,   -- from this time on, all readers see its rows; NULL: not noted yet
    newest_known bigint,        -- the greatest number that was known at that time
    overtaken_by bigint         -- the greatest number that was known before that time
);
CREATE INDEX IF NOT EXISTS refresh_known_by_idx ON feature_platform.refresh (known_by, newest_known);
CREATE INDEX IF NOT EXISTS refresh_not_noted_idx ON feature_platform.refresh (no) WHERE known_by IS NULL;
-- Finds the numbers that were not known yet when a greater one was.
CREATE INDEX IF NOT EXISTS refresh_overtaken_idx ON feature_platform.refresh
    USING gist (int8range(no, overtaken_by, '[]')) WHERE overtaken_by > no;
COMMENT ON TABLE feature_platform.refresh IS 'The number of each refresh, and since when its rows are known.';
INSERT INTO feature_platform.mutex (name) VALUES ('known') ON CONFLICT DO NOTHING;

-- Draw the number of a refresh. The caller has locked the symbols.
CREATE OR REPLACE FUNCTION feature_platform.next_refresh() RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    drawn bigint;
BEGIN
    INSERT INTO feature_platform.refresh DEFAULT VALUES RETURNING no INTO drawn;
    RETURN drawn;
END
$$;
COMMENT ON FUNCTION feature_platform.next_refresh() IS 'Draws the number of a refresh.';

-- Note since when the committed refreshes are known, in a transaction of its own after their commit. It also notes what
-- a process that was killed has left. One session at a time, so that of one symbol no number is known before a smaller
-- one.
CREATE OR REPLACE FUNCTION feature_platform.note_known() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan    -- by the indexes, independent of statistics
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    last feature_platform.refresh;
    now timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM feature_platform.refresh r WHERE r.known_by IS NULL) THEN
        RETURN;
    END IF;
    -- A crash that loses these times leaves them to be noted again, later.
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM feature_platform.mutex m WHERE m.name = 'known' FOR UPDATE;
    SELECT * INTO last FROM feature_platform.refresh r WHERE r.known_by IS NOT NULL
    ORDER BY r.known_by DESC, r.newest_known DESC LIMIT 1;
    now := greatest(feature_platform.clock(), last.known_by);       -- also where the clock went back
    WITH noted AS MATERIALIZED (
        SELECT r.no, max(r.no) OVER () AS newest FROM feature_platform.refresh r WHERE r.known_by IS NULL
    )
    UPDATE feature_platform.refresh r
    SET known_by = now, overtaken_by = coalesce(last.newest_known, 0),
        newest_known = greatest(n.newest, last.newest_known)
    FROM noted n WHERE r.no = n.no;
END
$$;
COMMENT ON FUNCTION feature_platform.note_known() IS 'Notes since when the committed refreshes are known.';

-- Which numbers were known at a time: those up to `upto`, except `late`. NULL: the time is before all numbers.
CREATE OR REPLACE FUNCTION feature_platform.known_at(moment timestamptz, OUT upto bigint, OUT late bigint[])
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
BEGIN
    SELECT r.newest_known INTO upto FROM feature_platform.refresh r WHERE r.known_by <= moment
    ORDER BY r.known_by DESC, r.newest_known DESC LIMIT 1;
    late := ARRAY(
        SELECT r.no FROM feature_platform.refresh r
        WHERE r.overtaken_by > r.no AND int8range(r.no, r.overtaken_by, '[]') @> upto AND r.no < upto
          AND r.known_by > moment
        UNION ALL
        SELECT r.no FROM feature_platform.refresh r WHERE r.known_by IS NULL AND r.no < upto);
END
$$;
COMMENT ON FUNCTION feature_platform.known_at(timestamptz) IS
    'The numbers of refreshes that were known at a time: up to one, except some.';

-- The number of a symbol's last refresh, where the newest row of features_1m does not have it: a refresh that adds the
-- newest row writes nothing here. Views keep theirs in view_symbol.
CREATE TABLE IF NOT EXISTS feature_platform.symbol_number (
    symbol text COLLATE "C" NOT NULL CONSTRAINT symbol_number_pkey PRIMARY KEY,
    no     bigint           NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE feature_platform.symbol_number IS
    'The number of a symbol''s last refresh, where its newest row does not have it.';

CREATE OR REPLACE FUNCTION feature_platform.number_of(of_symbol text) RETURNS bigint
    LANGUAGE sql STABLE
    RETURN greatest((SELECT s.no FROM feature_platform.symbol_number s WHERE s.symbol = of_symbol),
                    (SELECT f.refresh_no FROM public.features_1m f WHERE f.symbol = of_symbol
                     ORDER BY f.bucket DESC LIMIT 1), 0);
COMMENT ON FUNCTION feature_platform.number_of(text) IS 'The number of a symbol''s last refresh of features_1m.';

-- Which refreshes of a symbol a page of the model service shows, those up to one except some: as of a time, up to a
-- number, or all. `newest` is the number of the symbol's last refresh. `known_from` is the time of the first known
-- refresh, if none was known at the time. `floor_no` is the number before which the symbol's past is not kept.
-- `kept_from` is the time since when versions are kept, if those of the page have been deleted.
CREATE OR REPLACE FUNCTION feature_platform.page_knowledge(
    of_symbol text, newest bigint, as_of timestamptz, until_no bigint,
    OUT upto bigint, OUT late bigint[], OUT is_future boolean, OUT known_from timestamptz, OUT floor_no bigint,
    OUT kept_from timestamptz)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET jit = off
AS $$
DECLARE
    moment timestamptz := as_of;
BEGIN
    upto := coalesce(until_no, newest);
    late := '{}';
    is_future := false;
    IF as_of IS NOT NULL THEN
        SELECT k.upto, k.late INTO upto, late FROM feature_platform.known_at(as_of) AS k;
        is_future := as_of > feature_platform.clock();
    END IF;
    IF upto IS NULL THEN
        known_from := (SELECT r.known_by FROM feature_platform.refresh r WHERE r.known_by IS NOT NULL
                       ORDER BY r.known_by LIMIT 1);
    END IF;
    floor_no := (SELECT k.no FROM feature_platform.knowledge_floor k WHERE k.symbol = of_symbol);
    IF as_of IS NOT NULL OR until_no < newest THEN
        IF as_of IS NULL THEN
            moment := (SELECT r.known_by FROM feature_platform.refresh r WHERE r.no = until_no);
        END IF;
        kept_from := (SELECT t.versions_from FROM feature_platform.retention t
                      WHERE t.versions_from > coalesce(moment, '-infinity'));
    END IF;
END
$$;
COMMENT ON FUNCTION feature_platform.page_knowledge(text, bigint, timestamptz, bigint) IS
    'Which refreshes of a symbol a page of the model service shows.';

-- The versions of rows of features_1m that refreshes have changed or deleted. A version was the row from the refresh
-- `since` (0: from before numbers were counted) until the refresh `until`. Each feature view has such a table.
CREATE TABLE IF NOT EXISTS feature_platform.features_1m_history (
    symbol        text COLLATE "C" NOT NULL,
    bucket        timestamptz      NOT NULL,
    last_close    double precision,
    vol           double precision,
    log_return    double precision,
    n_1d          integer,
    ma_vol_1d     double precision,
    std_vol_1d    double precision,
    volume_z      double precision,
    vwap_gap      double precision,
    parkinson_vol double precision,
    since         bigint           NOT NULL,
    until         bigint           NOT NULL
);
CREATE INDEX IF NOT EXISTS features_1m_history_idx ON feature_platform.features_1m_history (symbol, bucket, until);
-- Finds the versions that are too old. Versions are added in about the order of `until`, so a few pages are enough.
CREATE INDEX IF NOT EXISTS features_1m_history_until_idx ON feature_platform.features_1m_history USING brin (until);
COMMENT ON TABLE feature_platform.features_1m_history IS
    'The versions of rows of features_1m that a refresh has changed or deleted.';

CREATE OR REPLACE VIEW feature_platform.features_1m_versions AS
SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol,
       refresh_no AS since, NULL::bigint AS until
FROM public.features_1m
UNION ALL
SELECT symbol, bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol,
       since, until
FROM feature_platform.features_1m_history;
COMMENT ON VIEW feature_platform.features_1m_versions IS
    'All versions of the rows of features_1m; `until` is NULL in those that are stored.';

-- Keep the old versions of rows that an UPDATE changes. Its argument is the table of versions, which has the columns of
-- the rows, in their order, and `until`. All rows that one statement changes have one number.
CREATE OR REPLACE FUNCTION feature_platform.keep_versions() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The trigger also fires for an upsert that only adds rows.
    IF EXISTS (SELECT FROM old_rows) THEN
        EXECUTE format('INSERT INTO %s
                        SELECT o.*, n.no FROM old_rows o, (SELECT refresh_no AS no FROM new_rows LIMIT 1) AS n
                        WHERE o.refresh_no < n.no', TG_ARGV[0]);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION feature_platform.keep_versions() IS
    'Triggers of tables of features: keeps the old versions of rows that change.';
REVOKE EXECUTE ON FUNCTION feature_platform.keep_versions() FROM PUBLIC;

CREATE OR REPLACE TRIGGER features_1m_changed AFTER UPDATE ON public.features_1m
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION feature_platform.keep_versions('feature_platform.features_1m_history');
