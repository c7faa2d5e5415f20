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
