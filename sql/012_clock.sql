-- The clock of the platform: the wall clock, or in a simulated database a clock of another speed.

-- Convert a time of the wall clock to a time of a simulated clock. `setting` is START@SINCExSPEED, as in
-- 2026-03-01T00:00Z@2026-11-25T13:30Zx60: the simulated clock showed START at the wall clock's SINCE, and runs SPEED
-- times as fast.
CREATE OR REPLACE FUNCTION feature_platform.simulated_clock(setting text, moment timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts CONSTANT text[] := regexp_match(setting,
        '^\s*([0-9]{4}-[^@]*(?:Z|[+-][0-9]{2}:[0-9]{2}))\s*@'
        '\s*([0-9]{4}-[^@]*(?:Z|[+-][0-9]{2}:[0-9]{2}))\s*x'
        '\s*([0-9]+(?:\.[0-9]+)?)\s*$');
BEGIN
    IF parts IS NULL OR parts[3]::double precision NOT BETWEEN 0.001 AND 10000 THEN
        RAISE EXCEPTION 'feature_platform.clock is %, which is not a valid clock', quote_literal(setting)
            USING HINT = 'RESET it for the wall clock, or write START@SINCExSPEED,'
                ' as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60.';
    END IF;
    -- Seconds, because interval * speed would give days, which are not all 24 hours long.
    RETURN parts[1]::timestamptz
         + make_interval(secs => extract(epoch FROM moment - parts[2]::timestamptz)::double precision
                                 * parts[3]::double precision);
END
$$;
COMMENT ON FUNCTION feature_platform.simulated_clock(text, timestamptz) IS
    'Converts a time of the wall clock to a time of a simulated clock.';

-- The time of a session whose setting feature_platform.clock is set. Only a simulated database follows the setting: the
-- engine's functions run with their owner's rights and must not trust the clocks of their callers. Other databases
-- reject the setting instead of ignoring it, because the process would otherwise use another time than its database.
CREATE OR REPLACE FUNCTION feature_platform.session_clock(moment timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (SELECT o.simulated FROM feature_platform.database_origin o) IS NOT TRUE THEN
        RAISE EXCEPTION 'feature_platform.clock is set, but this database was not set up as a simulated one'
            USING HINT = 'RESET feature_platform.clock, or unset FEATURE_PLATFORM_CLOCK of the process.';
    END IF;
    RETURN feature_platform.simulated_clock(current_setting('feature_platform.clock'), moment);
END
$$;
COMMENT ON FUNCTION feature_platform.session_clock(timestamptz) IS
    'The time of a session that has a clock of its own, in a simulated database.';

-- The platform's time at a time of the wall clock. The two differ only in sessions that set feature_platform.clock, as
-- all processes of the platform do where FEATURE_PLATFORM_CLOCK is set.
CREATE OR REPLACE FUNCTION feature_platform.clock_at(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN current_setting('feature_platform.clock', true) <> ''
                THEN feature_platform.session_clock(moment) ELSE moment END;
COMMENT ON FUNCTION feature_platform.clock_at(timestamptz) IS 'The platform''s time at a time of the wall clock.';

-- The platform's time now. Only this clock decides whether a minute is closed or a row is due. PostgreSQL inlines it;
-- it reads a table only in sessions that set feature_platform.clock.
CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN CASE WHEN current_setting('feature_platform.clock', true) <> ''
                THEN feature_platform.session_clock(clock_timestamp())
                ELSE clock_timestamp() END;
COMMENT ON FUNCTION feature_platform.clock() IS 'The platform''s time now.';
