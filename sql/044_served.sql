-- The log of served rows, which the model service writes where it is configured. Each entry has the numbers from which
-- `feature-platform skew` computes again what was served.
CREATE TABLE IF NOT EXISTS feature_platform.served (
    id         bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT served_pkey PRIMARY KEY,
    view       text               NOT NULL,     -- features_1m, or the name of a feature view
    version    integer            NOT NULL DEFAULT 0,   -- of the feature view; 0 for features_1m
    symbol     text COLLATE "C"   NOT NULL,
    bucket     timestamptz        NOT NULL,     -- of the newest row, which was served
    refresh_no bigint             NOT NULL,     -- of the row: the refresh that gave it its values
    symbol_no  bigint             NOT NULL,     -- of the symbol: its last refresh that the reader saw
    waiting    tstzmultirange     NOT NULL DEFAULT '{}',    -- dirty buckets from `bucket` on that had been put back
    waiting_no bigint,                          -- the symbol's number before the oldest of these; NULL without them
    values     double precision[] NOT NULL,     -- the columns, in the order of the view
    served_at  timestamptz        NOT NULL DEFAULT feature_platform.clock()
);
CREATE INDEX IF NOT EXISTS served_at_idx ON feature_platform.served (served_at);
COMMENT ON TABLE feature_platform.served IS 'The log of rows that the model service has served.';

-- The results of the hourly check of a sample of served rows.
CREATE TABLE IF NOT EXISTS feature_platform.skew_check (
    at       timestamptz NOT NULL DEFAULT feature_platform.clock() CONSTRAINT skew_check_pkey PRIMARY KEY,
    rows     bigint      NOT NULL,      -- served rows that were computed again
    mismatch bigint      NOT NULL,      -- of these: values that differ
    missing  bigint      NOT NULL,      -- a newer row existed
    extra    bigint      NOT NULL,      -- the row did not exist
    not_kept bigint      NOT NULL,      -- served rows that are older than the history
    examples jsonb       NOT NULL       -- the first rows that were wrong
);
COMMENT ON TABLE feature_platform.skew_check IS 'The results of the hourly check of a sample of served rows.';

CREATE OR REPLACE FUNCTION feature_platform.note_skew(result jsonb) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM feature_platform.skew_check c WHERE c.at < feature_platform.clock() - interval '30 days';
    INSERT INTO feature_platform.skew_check (rows, mismatch, missing, extra, not_kept, examples)
    SELECT r.rows, r.mismatch, r.missing, r.extra, r.not_kept, r.examples
    FROM jsonb_to_record(result) AS r (rows bigint, mismatch bigint, missing bigint, extra bigint, not_kept bigint,
                                       examples jsonb)
    ON CONFLICT DO NOTHING;
END;
COMMENT ON FUNCTION feature_platform.note_skew(jsonb) IS 'Stores the result of a check of served rows for 30 days.';
