-- Three roles and the database, run once by a superuser with psql: by the container of docker-compose.yml on its empty
-- volume, or by hand on a server of one's own:
--
--     OWNER_PASSWORD=… APP_PASSWORD=… SYSTEM_PASSWORD=… psql --set ON_ERROR_STOP=1 --file deploy/postgres/roles.sql
--
-- twofold_owner owns the schemas and runs migrations. twofold_app is who the services are: it may use what the
-- migrations grant it, and create nothing; of the registry it sees only the workspaces that a transaction names.
-- twofold_system is who the registry is for work of no workspace (what follows all changes, sweeps): the migrations
-- let it see all of them, by policies of the tables, not by a right that would hold everywhere (NOBYPASSRLS).

\getenv owner_password OWNER_PASSWORD
\getenv app_password APP_PASSWORD
\getenv system_password SYSTEM_PASSWORD

CREATE ROLE twofold_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'owner_password';
CREATE ROLE twofold_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'app_password';
CREATE ROLE twofold_system LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'system_password';

CREATE DATABASE twofold OWNER twofold_owner;
-- Not even temporary tables, and nobody but these three connects.
REVOKE ALL ON DATABASE twofold FROM PUBLIC;
GRANT CONNECT ON DATABASE twofold TO twofold_app, twofold_system;
