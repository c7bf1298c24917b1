-- Every primary key begins with the workspace, but that of the head, which is one for all. Ids compare by bytes
-- (COLLATE "C"): faster, and the same on every machine.

-- The history of all metadata. A change takes the next revision under this row's lock and holds it to its commit, so
-- revisions are gapless and in the order of the commits. The epoch tells this history from every other one.
CREATE TABLE registry.registry_head (
    singleton boolean PRIMARY KEY DEFAULT true,
    epoch bigint NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT there_is_one_head CHECK (singleton)
) WITH (fillfactor = 50);

INSERT INTO registry.registry_head (epoch, revision)
VALUES ((extract(epoch FROM clock_timestamp()) * 1000)::bigint, 0);

-- Deleted rows of these three tables stay: ids are never used again.
CREATE TABLE registry.workspaces (
    workspace_id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    namespace text NOT NULL,
    allowed_url_suffixes text[] NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    -- Of the last change.
    revision bigint NOT NULL,
    CONSTRAINT workspace_ids_are_unique PRIMARY KEY (workspace_id),
    CONSTRAINT workspace_ids_fit CHECK (octet_length(workspace_id) BETWEEN 1 AND 255),
    CONSTRAINT workspaces_have_names CHECK (octet_length(display_name) BETWEEN 1 AND 255),
    CONSTRAINT url_suffixes_are_few CHECK (cardinality(allowed_url_suffixes) <= 50)
);

CREATE TABLE registry.users (
    workspace_id text COLLATE "C" NOT NULL REFERENCES registry.workspaces,
    user_id text COLLATE "C" NOT NULL,
    -- Case-folded; empty for machines that have none.
    email text COLLATE "C" NOT NULL,
    identity_id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    role text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    revision bigint NOT NULL,
    CONSTRAINT user_ids_are_unique PRIMARY KEY (workspace_id, user_id),
    CONSTRAINT user_ids_fit CHECK (octet_length(user_id) BETWEEN 1 AND 255),
    CONSTRAINT emails_fit CHECK (octet_length(email) <= 254),
    CONSTRAINT people_have_emails CHECK (email <> '' OR role = 'service'),
    CONSTRAINT roles_are_known CHECK (role IN ('owner', 'admin', 'member', 'service'))
);

CREATE UNIQUE INDEX emails_are_unique ON registry.users (workspace_id, email) WHERE deleted_at IS NULL AND email <> '';
CREATE UNIQUE INDEX identities_are_unique ON registry.users (workspace_id, identity_id)
    WHERE deleted_at IS NULL AND identity_id <> '';

CREATE TABLE registry.agents (
    workspace_id text COLLATE "C" NOT NULL REFERENCES registry.workspaces,
    agent_id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    url text NOT NULL,
    state text NOT NULL,
    instructions text NOT NULL,
    model text NOT NULL,
    context_delivery text NOT NULL,
    context_messages_max integer NOT NULL,
    context_tokens_max integer NOT NULL,
    first_token_timeout_us bigint NOT NULL,
    turn_timeout_us bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    revision bigint NOT NULL,
    CONSTRAINT agent_ids_are_unique PRIMARY KEY (workspace_id, agent_id),
    CONSTRAINT agent_ids_fit CHECK (octet_length(agent_id) BETWEEN 1 AND 255),
    CONSTRAINT agents_have_names CHECK (octet_length(display_name) BETWEEN 1 AND 255),
    CONSTRAINT urls_fit CHECK (octet_length(url) BETWEEN 1 AND 2048),
    CONSTRAINT states_are_known CHECK (state IN ('draft', 'published', 'paused')),
    CONSTRAINT instructions_fit CHECK (octet_length(instructions) <= 65536),
    CONSTRAINT deliveries_are_known CHECK (context_delivery IN ('instructions', 'messages')),
    CONSTRAINT contexts_are_bounded CHECK (context_messages_max BETWEEN 1 AND 100 AND context_tokens_max BETWEEN 1 AND 1000000),
    CONSTRAINT timeouts_are_positive CHECK (first_token_timeout_us > 0 AND turn_timeout_us > 0)
);

-- A revoked grant is deleted, what it was stays in the audit; grants of deleted users and agents stay and do not count.
CREATE TABLE registry.grants (
    workspace_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    expires_at timestamptz,
    granted_by text NOT NULL,
    granted_at timestamptz NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (workspace_id, user_id, agent_id),
    FOREIGN KEY (workspace_id, user_id) REFERENCES registry.users,
    FOREIGN KEY (workspace_id, agent_id) REFERENCES registry.agents,
    CONSTRAINT grants_begin_valid CHECK (expires_at > granted_at)
);

CREATE INDEX grants_of_an_agent ON registry.grants (workspace_id, agent_id, user_id);

-- An event is never changed and never forgotten: its id must refuse another body for ever. The user and the agent need
-- not exist any more.
CREATE TABLE registry.usage_events (
    workspace_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    event_time timestamptz NOT NULL,
    messages bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    body_hash bytea NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, event_id),
    CONSTRAINT amounts_are_not_negative CHECK (messages >= 0 AND input_tokens >= 0 AND output_tokens >= 0),
    CONSTRAINT hashes_are_whole CHECK (octet_length(body_hash) = 32)
);

CREATE INDEX usage_by_time ON registry.usage_events (workspace_id, event_time);

CREATE TABLE registry.audit_entries (
    workspace_id text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    ordinal integer NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    resource_kind text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C" NOT NULL,
    -- JSON as text, because it is kept as it was said, to the byte.
    before_json text NOT NULL,
    after_json text NOT NULL,
    request_id text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, revision, ordinal),
    CONSTRAINT something_changed CHECK (before_json <> '' OR after_json <> '')
);

CREATE INDEX audit_of_a_kind ON registry.audit_entries (workspace_id, resource_kind, revision, ordinal);
CREATE INDEX audit_of_a_resource ON registry.audit_entries (workspace_id, resource_kind, resource_id, revision, ordinal);

CREATE FUNCTION registry.refuse_to_rewrite_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON registry.audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION registry.refuse_to_rewrite_audit();

-- First answers, for repeats; see twofold_chassis.requests. The workspace is empty for the creation of workspaces.
CREATE TABLE registry.requests (
    workspace_id text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    rpc text NOT NULL,
    body_hash bytea NOT NULL,
    answer bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, request_id)
);

CREATE INDEX requests_by_age ON registry.requests (created_at);
