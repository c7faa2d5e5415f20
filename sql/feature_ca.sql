-- The whole set-up of feature_platform in one transaction, for any PostgreSQL 15+ or TimescaleDB:
--
--     psql -X -d DATABASE -f sql/feature_ca.sql
--
-- It may be run again at any time, and then changes only objects that differ. `feature-platform db apply` runs the same
-- files in the same order (it reads the \ir lines below). A database for simulated bars is set up by
-- PGOPTIONS='-c feature_platform.set_up_as=simulated' before that command, or by
-- `feature-platform db apply --simulated`.
\set ON_ERROR_STOP on
\set QUIET on
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '2s';      -- a long transaction makes the set-up fail, not the writers wait
\ir 005_roles.sql
\ir 007_version.sql
\ir 010_guard.sql
\ir 012_clock.sql
\ir 015_buckets.sql
\ir 017_edition.sql
\ir upgrade/002.sql
\ir upgrade/003.sql
\ir 020_bars.sql
\ir 025_origin.sql
\ir 030_features.sql
\ir 035_gaps.sql
\ir 037_heartbeat.sql
\ir 040_dirty_log.sql
\ir 041_bar_history.sql
\ir upgrade/003_end.sql
\ir 043_knowledge.sql
\ir 044_bars_as_of.sql
\ir 044_served.sql
\ir 045_views.sql
\ir 046_features_1m.sql
\ir 047_compute.sql
\ir 048_lake.sql
\ir 049_known_at_close.sql
\ir 050_refresh.sql
\ir 055_retention.sql
\ir 060_policy.sql
\ir 061_view_refresh.sql
\ir 063_view_versions.sql
\ir 064_known_rows.sql
\ir 065_forget.sql
\ir 070_timescaledb.sql
\ir 075_hazards.sql
\ir 077_verification.sql
\ir 080_status.sql
\ir 085_rights.sql
\ir 090_version.sql
COMMIT;
