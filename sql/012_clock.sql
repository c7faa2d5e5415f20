-- What a clock that runs at another speed tells when the wall clock tells `moment`. `setting` is START@SINCExSPEED, as in
-- 2026-03-01T00:00Z@2026-11-25T13:30Zx60: the one told START when the wall clock told SINCE, and runs so many times as fast.
CREATE OR REPLACE FUNCTION feature_platform.simulated_clock(setting text, moment timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts CONSTANT text[] := regexp_match(setting,
        '^\s*([0-9]{4}-[^@]*(?:Z|[+-][0-9]{2}:[0-9]{2}))\s*@\s*([0-9]{4}-[^@]*(?:Z|[+-][0-9]{2}:[0-9]{2}))\s*x\s*([0-9]+(?:\.[0-9]+)?)\s*$');
BEGIN
    IF parts IS NULL OR parts[3]::double precision NOT BETWEEN 0.001 AND 10000 THEN
        RAISE EXCEPTION 'feature_platform.clock is set to %, which is no clock', quote_literal(setting)
            USING HINT = 'RESET it for the wall clock, or write START@SINCExSPEED, as in 2026-03-01T00:00Z@2026-11-25T13:30Zx60.';
    END IF;
    -- Not interval * speed: that makes days of it, which are not all 24 hours long.
    RETURN parts[1]::timestamptz + make_interval(secs => extract(epoch FROM moment - parts[2]::timestamptz)::double precision * parts[3]::double precision);
END
$$;
COMMENT ON FUNCTION feature_platform.simulated_clock(text, timestamptz) IS 'What a clock of another speed tells at a moment of the wall clock''s.';

-- The time of a session whose setting feature_platform.clock is set. Only a database that was set up as simulated follows it: the
-- engine's functions run with their owner's rights, and must not believe their callers' clocks. Rejected rather than ignored: a
-- process with a clock of its own would go on by another time than its database.
CREATE OR REPLACE FUNCTION feature_platform.session_clock(moment timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (SELECT o.simulated FROM feature_platform.database_origin o) IS NOT TRUE THEN
        RAISE EXCEPTION 'feature_platform.clock is set, and this database was not set up as a simulated one'
            USING HINT = 'RESET feature_platform.clock, or unset FEATURE_PLATFORM_CLOCK of the process.';
    END IF;
    RETURN feature_platform.simulated_clock(current_setting('feature_platform.clock'), moment);
END
$$;
COMMENT ON FUNCTION feature_platform.session_clock(timestamptz) IS 'The time of a session that has a clock of its own, in a simulated database.';

-- The platform's time when the wall clock tells `moment`: the same, unless this is a simulated database and the session has a
-- clock of another speed in its setting feature_platform.clock, as the platform's processes have where FEATURE_PLATFORM_CLOCK is set.
CREATE OR REPLACE FUNCTION feature_platform.clock_at(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN current_setting('feature_platform.clock', true) <> ''
                THEN feature_platform.session_clock(moment) ELSE moment END;
COMMENT ON FUNCTION feature_platform.clock_at(timestamptz) IS 'The platform''s time at a moment of the wall clock''s.';

-- The one clock of the platform: whether a minute is closed or a row due is decided by this, nowhere else. It is inlined, and reads
-- a table only in sessions that have a clock.
CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN CASE WHEN current_setting('feature_platform.clock', true) <> ''
                THEN feature_platform.session_clock(clock_timestamp())
                ELSE clock_timestamp() END;
COMMENT ON FUNCTION feature_platform.clock() IS 'Now, as everything in the platform sees it.';
