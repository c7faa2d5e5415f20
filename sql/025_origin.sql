-- Whether the bars of this database are simulated ones. Only such a database follows a session's clock: in any other one, a
-- forgotten setting would close minutes that are still open, or let the retention delete everything.
CREATE TABLE IF NOT EXISTS feature_platform.database_origin (
    only_one   boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    simulated  boolean     NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    exchange     text,
    exchange_url text
);
COMMENT ON TABLE feature_platform.database_origin IS 'Where this database''s bars come from; final once there are bars.';
COMMENT ON COLUMN feature_platform.database_origin.simulated IS 'Whether the bars are simulated, so that a session may set feature_platform.clock.';

COMMENT ON COLUMN feature_platform.database_origin.exchange IS 'The exchange of symbols without a prefix, by ccxt''s id; NULL before bars of one were fetched.';
COMMENT ON COLUMN feature_platform.database_origin.exchange_url IS 'The URLs of simulated exchanges, as FEATURE_PLATFORM_EXCHANGE_URL.';

CREATE OR REPLACE FUNCTION feature_platform.keep_origin() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM public.ohlcv_1m) AND (TG_OP <> 'UPDATE' OR NEW.simulated <> OLD.simulated) THEN
        RAISE EXCEPTION 'this database was not set up as % one, and it has bars', CASE TG_OP
                WHEN 'UPDATE' THEN CASE WHEN NEW.simulated THEN 'a simulated' ELSE 'a real' END ELSE 'another' END
            USING HINT = 'Nothing was changed. Use another database: simulated and real bars are never mixed.';
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END
$$;
COMMENT ON FUNCTION feature_platform.keep_origin() IS 'Trigger of database_origin: rejects a change once there are bars.';
CREATE OR REPLACE TRIGGER database_origin_kept BEFORE UPDATE OR DELETE ON feature_platform.database_origin
    FOR EACH ROW EXECUTE FUNCTION feature_platform.keep_origin();

-- The set-up decides it: by the setting feature_platform.set_up_as, which is `simulated` or `real`; `clock` (simulated, since the
-- process has a simulated clock) counts on a first set-up only. Without it, a new database is a real one, and any other stays
-- what it is. A database that had bars before this table existed is real, unless the set-up names it `simulated`.
DO $$
DECLARE
    set_up_as CONSTANT text := coalesce(current_setting('feature_platform.set_up_as', true), '');
    was_simulated CONSTANT boolean := (SELECT o.simulated FROM feature_platform.database_origin o);
BEGIN
    IF set_up_as NOT IN ('', 'simulated', 'real', 'clock') THEN
        RAISE EXCEPTION 'feature_platform.set_up_as is %, neither simulated nor real', quote_literal(set_up_as)
            USING HINT = 'Nothing was changed.';
    ELSIF set_up_as = 'clock' AND NOT coalesce(was_simulated, NOT EXISTS (SELECT FROM public.ohlcv_1m)) THEN
        RAISE EXCEPTION 'FEATURE_PLATFORM_CLOCK is set, and this database was not set up as a simulated one'
            USING HINT = 'Nothing was changed. Unset FEATURE_PLATFORM_CLOCK, or use another database.';
    END IF;
    INSERT INTO feature_platform.database_origin (simulated) VALUES (set_up_as IN ('simulated', 'clock')) ON CONFLICT DO NOTHING;
    UPDATE feature_platform.database_origin o SET simulated = (set_up_as = 'simulated'), decided_at = clock_timestamp()
    WHERE set_up_as IN ('simulated', 'real') AND o.simulated <> (set_up_as = 'simulated');
END
$$;

-- Keeps the exchange of symbols without a prefix, and the URLs of simulated exchanges; returns the one that is kept. Another one
-- takes its place only while there are no bars.
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
COMMENT ON FUNCTION feature_platform.claim_exchange(text, text) IS 'Keeps the exchange of symbols without a prefix; returns the one that is kept.';
