-- Statements in Dagster's own database: the purge of old events.

-- ==== orchestration/purge.py, in Dagster's own database ====
-- purge_index --
-- Make an index for the UI's query for the newest execution of each check, which Dagster itself does not make.
CREATE INDEX IF NOT EXISTS feature_platform_check_idx ON asset_check_executions (asset_key, check_name, id);

-- purge_check_executions --
-- Delete a number of old executions of checks, except the newest of each check.
WITH old AS (
    SELECT e.id FROM asset_check_executions e
     WHERE e.create_timestamp < %(before)s::timestamptz AT TIME ZONE 'UTC'
       AND EXISTS (SELECT FROM asset_check_executions n
                    WHERE n.asset_key = e.asset_key AND n.check_name = e.check_name AND n.id > e.id
                      AND n.execution_status <> 'PLANNED')
     ORDER BY e.id LIMIT %(limit)s
)
DELETE FROM asset_check_executions e USING old WHERE e.id = old.id;

-- purge_events --
-- Read a number of old events and delete them. Three groups stay: the newest event of each kind, asset and partition;
-- the newest result of each check; and all events of a run that has not ended.
WITH old AS MATERIALIZED (
    SELECT l.id FROM event_logs l
     WHERE l.timestamp < %(before)s::timestamptz AT TIME ZONE 'UTC' AND l.id > %(after)s
     ORDER BY l.id LIMIT %(limit)s
), gone AS (
    DELETE FROM event_logs l USING old
     WHERE l.id = old.id
       AND NOT EXISTS (SELECT FROM asset_check_executions c WHERE c.evaluation_event_storage_id = l.id)
       AND NOT EXISTS (SELECT FROM runs r WHERE r.run_id = l.run_id
                       AND r.status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED'))
       AND (l.asset_key IS NULL
            OR EXISTS (SELECT FROM event_logs n
                        WHERE n.asset_key = l.asset_key AND n.dagster_event_type = l.dagster_event_type
                          AND n.partition IS NOT DISTINCT FROM l.partition AND n.id > l.id))
    RETURNING l.id
)
SELECT (SELECT max(id) FROM old) AS after, (SELECT count(*) FROM gone) AS deleted;

-- purge_runs --
-- Delete a number of old runs without events, with their tags.
WITH old AS (
    SELECT r.run_id FROM runs r
     WHERE r.update_timestamp < %(before)s::timestamptz AT TIME ZONE 'UTC'
         AND r.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
       AND NOT EXISTS (SELECT FROM event_logs l WHERE l.run_id = r.run_id)
     ORDER BY r.id LIMIT %(limit)s
)
DELETE FROM runs r USING old WHERE r.run_id = old.run_id;

-- purge_size --
-- The size of the database, in bytes.
SELECT pg_database_size(current_database());
