-- The origin of this database's bars: simulated or real. Only a simulated database follows the clock of a session. In a
-- real database, a forgotten setting would close minutes that are still open, or make the retention delete everything.
CREATE TABLE IF NOT EXISTS feature_platform.database_origin (
    only_one   boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    simulated  boolean     NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    exchange     text,
    exchange_url text
);
COMMENT ON TABLE feature_platform.database_origin IS 'The origin of this database''s bars; final once there are bars.';
COMMENT ON COLUMN feature_platform.database_origin.simulated IS
    'Whether the bars are simulated, so that a session may set feature_platform.clock.';

COMMENT ON COLUMN feature_platform.database_origin.exchange IS
    'The exchange of symbols without a prefix, by ccxt''s id; NULL before bars of one were fetched.';
COMMENT ON COLUMN feature_platform.database_origin.exchange_url IS
    'The URLs of simulated exchanges, as FEATURE_PLATFORM_EXCHANGE_URL.';

CREATE OR REPLACE FUNCTION feature_platform.keep_origin() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM public.ohlcv_1m) AND (TG_OP <> 'UPDATE' OR NEW.simulated <> OLD.simulated) THEN
        RAISE EXCEPTION 'this database was not set up as % one, and it has bars', CASE TG_OP
                WHEN 'UPDATE' THEN CASE WHEN NEW.simulated THEN 'a simulated' ELSE 'a real' END ELSE 'another' END
            USING HINT = 'The database was not changed. Use another database: simulated and real bars are never mixed.';
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END
$$;
COMMENT ON FUNCTION feature_platform.keep_origin() IS
    'Trigger of database_origin: rejects a change once there are bars.';
CREATE OR REPLACE TRIGGER database_origin_kept BEFORE UPDATE OR DELETE ON feature_platform.database_origin
    FOR EACH ROW EXECUTE FUNCTION feature_platform.keep_origin();

-- The set-up decides the origin by the setting feature_platform.set_up_as: `simulated` or `real`, or on a first set-up
-- `clock` (simulated, because the process has a simulated clock). Without the setting, a new database is real, and an
-- existing one keeps its origin. A database that had bars before this table existed is real, unless the set-up names it
-- `simulated`.
DO $$
DECLARE
    set_up_as CONSTANT text := coalesce(current_setting('feature_platform.set_up_as', true), '');
    was_simulated CONSTANT boolean := (SELECT o.simulated FROM feature_platform.database_origin o);
BEGIN
    IF set_up_as NOT IN ('', 'simulated', 'real', 'clock') THEN
        RAISE EXCEPTION 'feature_platform.set_up_as is %, neither simulated nor real', quote_literal(set_up_as)
            USING HINT = 'The database was not changed.';
    ELSIF set_up_as = 'clock' AND NOT coalesce(was_simulated, NOT EXISTS (SELECT FROM public.ohlcv_1m)) THEN
        RAISE EXCEPTION 'FEATURE_PLATFORM_CLOCK is set, and this database was not set up as a simulated one'
            USING HINT = 'The database was not changed. Unset FEATURE_PLATFORM_CLOCK, or use another database.';
    END IF;
    INSERT INTO feature_platform.database_origin (simulated) VALUES (set_up_as IN ('simulated', 'clock'))
        ON CONFLICT DO NOTHING;
    UPDATE feature_platform.database_origin o SET simulated = (set_up_as = 'simulated'), decided_at = clock_timestamp()
    WHERE set_up_as IN ('simulated', 'real') AND o.simulated <> (set_up_as = 'simulated');
END
$$;

-- Store the exchange of symbols without a prefix, and the URLs of simulated exchanges; return the stored exchange.
-- Another exchange replaces it only while there are no bars.
CREATE OR REPLACE FUNCTION feature_platform.claim_exchange(claimed text, url text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE feature_platform.database_origin o SET exchange = claimed, exchange_url = url
    WHERE (o.exchange IS DISTINCT FROM claimed OR o.exchange_url IS DISTINCT FROM url)
      AND (coalesce(o.exchange, claimed) = claimed OR NOT EXISTS (SELECT FROM public.ohlcv_1m));
    RETURN (SELECT o.exchange FROM feature_platform.database_origin o);
END
$$;
COMMENT ON FUNCTION feature_platform.claim_exchange(text, text) IS
    'Stores the exchange of symbols without a prefix; returns the stored one.';
