#!/bin/sh
# Set up the database server for the services, or bring it up to date; may be run again at any time.
#
# PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD: the administrator of the server.
# FEATURE_PLATFORM_OWNER_PASSWORD ... _READER_PASSWORD: the passwords of these roles.
set -eu

as_role() {
    role=$1 password=$2
    shift 2
    env FEATURE_PLATFORM_DATABASE_URL="postgresql://feature_platform_$role@$PGHOST:$PGPORT/$PGDATABASE" PGUSER= PGPASSWORD="$password" "$@"
}

export FEATURE_PLATFORM_DATABASE_URL="postgresql://$PGUSER@$PGHOST:$PGPORT/$PGDATABASE"
feature-platform db logins
# The owner of the database, not the server's administrator, owns the tables of the set-up.
feature-platform db psql -- --quiet --no-psqlrc --set=ON_ERROR_STOP=1 \
    --command="ALTER DATABASE \"$PGDATABASE\" OWNER TO feature_platform_owner"
as_role owner "$FEATURE_PLATFORM_OWNER_PASSWORD" feature-platform db apply
as_role orchestrator "$FEATURE_PLATFORM_ORCHESTRATOR_PASSWORD" dagster instance migrate
