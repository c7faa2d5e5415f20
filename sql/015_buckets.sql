-- The minute that holds a time. It is immutable, so that an index can use it.
CREATE OR REPLACE FUNCTION feature_platform.bucket_of(moment timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN date_bin('1 minute', moment, '1970-01-01 00:00:00+00');
COMMENT ON FUNCTION feature_platform.bucket_of(timestamptz) IS 'The UTC start of the minute that holds a time.';
