-- Which Postgres this is: the start of the process, its timeline, and the table itself. Another answer means that the past may
-- have been rewritten: a restart, a failover, a file restore, a dump restore. It fails on a standby, so none can pass for the primary.
CREATE FUNCTION registry.fingerprint() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM pg_postmaster_start_time())::text
        || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '/' || 'registry.registry_head'::regclass::oid::text
$$;

-- The workspaces that the running transaction may see. NULL, and so none, where nobody has set them.
CREATE FUNCTION registry.tenants() RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT string_to_array(current_setting('twofold.workspaces', true), E'\x1f')
$$;

ALTER TABLE registry.registry_head
    -- A random number that the newest revision was given: tells it from one of the same number in a rewritten past.
    ADD COLUMN tag bigint NOT NULL DEFAULT 0,
    -- Changes up to this revision are not kept any more.
    ADD COLUMN compacted bigint NOT NULL DEFAULT 0,
    ADD COLUMN fingerprint text COLLATE "C" NOT NULL DEFAULT registry.fingerprint(),
    ADD COLUMN epoch_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- What came before is not known one by one: followers begin behind it.
UPDATE registry.registry_head SET compacted = revision;

-- One row for each thing that a revision changed. Read by those who follow, never by tenants.
CREATE TABLE registry.changes (
    revision bigint NOT NULL,
    ordinal integer NOT NULL,
    tag bigint NOT NULL,
    at timestamptz NOT NULL,
    kind text COLLATE "C" NOT NULL,
    workspace_id text COLLATE "C" NOT NULL,
    -- Empty where the kind has none.
    user_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    -- The resource after the change, as its message of the contract; NULL where it is gone.
    after bytea,
    -- Whether somebody waits until every router has it.
    wait boolean NOT NULL,
    PRIMARY KEY (revision, ordinal),
    CONSTRAINT change_kinds_are_known CHECK (kind IN ('workspace', 'plan', 'user', 'agent', 'route', 'permission'))
);

-- One row per router process that may answer from what it knows; see the design of waiting for all routers.
CREATE TABLE registry.watchers (
    router_id text COLLATE "C" NOT NULL,
    incarnation text COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL,
    acked_epoch bigint NOT NULL DEFAULT 0,
    acked_revision bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (router_id, incarnation),
    CONSTRAINT watcher_ids_fit CHECK (octet_length(router_id) BETWEEN 1 AND 255 AND octet_length(incarnation) BETWEEN 1 AND 255)
);

-- The end of each workspace's chain. It is there from the workspace's creation on: who locked the newest entry instead would
-- fork the chain, as two may find the same one newest.
CREATE TABLE registry.audit_heads (
    workspace_id text COLLATE "C" NOT NULL REFERENCES registry.workspaces,
    seq bigint NOT NULL DEFAULT 0,
    hash bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    CONSTRAINT audit_chains_have_one_end PRIMARY KEY (workspace_id),
    CONSTRAINT audit_head_hashes_are_whole CHECK (octet_length(hash) = 32)
) WITH (fillfactor = 50);

ALTER TABLE registry.audit_entries DISABLE TRIGGER audit_is_append_only;
ALTER TABLE registry.audit_entries
    -- Place in the workspace's chain: 1, 2, 3, …
    ADD COLUMN seq bigint,
    ADD COLUMN prev_hash bytea,
    ADD COLUMN hash bytea;
