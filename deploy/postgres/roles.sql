-- Two roles and the database, run once by a superuser with psql: by the container of docker-compose.yml on its empty
-- volume, or by hand on a server of one's own:
--
--     OWNER_PASSWORD=… APP_PASSWORD=… psql --set ON_ERROR_STOP=1 --file deploy/postgres/roles.sql
--
-- twofold_owner owns the schemas and runs migrations; twofold_app is who the services are: it may use what the
-- migrations grant it, and create nothing.

\getenv owner_password OWNER_PASSWORD
\getenv app_password APP_PASSWORD

CREATE ROLE twofold_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'owner_password';
CREATE ROLE twofold_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'app_password';

CREATE DATABASE twofold OWNER twofold_owner;
-- Not even temporary tables, and nobody but these two connects.
REVOKE ALL ON DATABASE twofold FROM PUBLIC;
GRANT CONNECT ON DATABASE twofold TO twofold_app;
