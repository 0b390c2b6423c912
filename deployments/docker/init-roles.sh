#!/bin/sh
# The databases and who may do what in them; run once by PostgreSQL's image, or by hand as a superuser:
#   LEDGER_PASSWORD=… LEDGER_OWNER_PASSWORD=… PREFECT_PASSWORD=… MLFLOW_PASSWORD=… sh deployments/docker/init-roles.sh
# ledger_owner makes and changes the ledger's tables (`ninefold init-storage`); ledger, the workers' role, reads and writes rows, and
# can neither change a table nor delete anything that has been asked. Prefect and MLflow own their databases and see no other.
set -eu
quoted() { printf "'%s'" "$(printf %s "$1" | sed "s/'/''/g")"; }
psql --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
CREATE ROLE ledger_owner LOGIN PASSWORD $(quoted "$LEDGER_OWNER_PASSWORD");
CREATE ROLE ledger LOGIN PASSWORD $(quoted "$LEDGER_PASSWORD");
CREATE ROLE prefect LOGIN PASSWORD $(quoted "$PREFECT_PASSWORD");
CREATE ROLE mlflow LOGIN PASSWORD $(quoted "$MLFLOW_PASSWORD");
CREATE DATABASE ledger OWNER ledger_owner;
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE ledger, prefect, mlflow, postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE ledger TO ledger;
SQL
psql --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname ledger <<SQL
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT ALL ON SCHEMA public TO ledger_owner;
GRANT USAGE ON SCHEMA public TO ledger;
ALTER DEFAULT PRIVILEGES FOR ROLE ledger_owner IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO ledger;
ALTER DEFAULT PRIVILEGES FOR ROLE ledger_owner IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO ledger;
SQL
