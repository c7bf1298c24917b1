-- A deleted one can be restored until it is purged: then only its id is left, so that it is never used again.
ALTER TABLE registry.workspaces ADD COLUMN purge_at timestamptz, ADD COLUMN purged_at timestamptz;
ALTER TABLE registry.users ADD COLUMN purge_at timestamptz, ADD COLUMN purged_at timestamptz;
ALTER TABLE registry.agents ADD COLUMN purge_at timestamptz, ADD COLUMN purged_at timestamptz;

-- What was deleted before gets the time that it was not promised.
UPDATE registry.workspaces SET purge_at = now() + interval '30 days' WHERE deleted_at IS NOT NULL;
UPDATE registry.users SET purge_at = now() + interval '30 days' WHERE deleted_at IS NOT NULL;
UPDATE registry.agents SET purge_at = now() + interval '30 days' WHERE deleted_at IS NOT NULL;

ALTER TABLE registry.workspaces
    -- Since when nothing is left in it either.
    ADD COLUMN emptied_at timestamptz,
    ADD COLUMN plan text COLLATE "C" NOT NULL DEFAULT 'default',
    ADD COLUMN state text COLLATE "C" NOT NULL DEFAULT 'active',
    -- One limit in each place of the three.
    ADD COLUMN limit_kinds text[] NOT NULL DEFAULT '{}',
    ADD COLUMN limit_amounts bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN limit_shadows boolean[] NOT NULL DEFAULT '{}',
    -- Days; 0 is for ever.
    ADD COLUMN conversation_days integer NOT NULL DEFAULT 0,
    ADD COLUMN session_days integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT workspaces_are_purged_when_deleted
        CHECK ((deleted_at IS NULL) = (purge_at IS NULL) AND (purged_at IS NULL OR deleted_at IS NOT NULL)),
    DROP CONSTRAINT workspaces_have_names,
    ADD CONSTRAINT workspaces_have_names
        CHECK (octet_length(display_name) BETWEEN 1 AND 255 AND octet_length(plan) BETWEEN 1 AND 63 OR purged_at IS NOT NULL),
    ADD CONSTRAINT workspace_states_are_known CHECK (state IN ('active', 'suspended')),
    ADD CONSTRAINT workspace_limits_are_whole CHECK (
        cardinality(limit_kinds) <= 16 AND cardinality(limit_amounts) = cardinality(limit_kinds)
        AND cardinality(limit_shadows) = cardinality(limit_kinds) AND 0 <= ALL (limit_amounts)
    ),
    ADD CONSTRAINT retentions_are_bounded CHECK (conversation_days BETWEEN 0 AND 36500 AND session_days BETWEEN 0 AND 36500);

ALTER TABLE registry.users
    ADD COLUMN state text COLLATE "C" NOT NULL DEFAULT 'active',
    ADD COLUMN limit_kinds text[] NOT NULL DEFAULT '{}',
    ADD COLUMN limit_amounts bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN limit_shadows boolean[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT users_are_purged_when_deleted
        CHECK ((deleted_at IS NULL) = (purge_at IS NULL) AND (purged_at IS NULL OR deleted_at IS NOT NULL)),
    DROP CONSTRAINT people_have_emails,
    ADD CONSTRAINT people_have_emails CHECK (email <> '' OR role = 'service' OR purged_at IS NOT NULL),
    ADD CONSTRAINT user_states_are_known CHECK (state IN ('active', 'suspended')),
    ADD CONSTRAINT user_limits_are_whole CHECK (
        cardinality(limit_kinds) <= 16 AND cardinality(limit_amounts) = cardinality(limit_kinds)
        AND cardinality(limit_shadows) = cardinality(limit_kinds) AND 0 <= ALL (limit_amounts)
    );

-- Listings by time; those by id have the primary key. Filters that few pass have an index of their own.
CREATE INDEX workspaces_by_time ON registry.workspaces (created_at, workspace_id);
CREATE INDEX workspaces_of_a_plan ON registry.workspaces (plan, workspace_id);
CREATE INDEX workspaces_by_name ON registry.workspaces (display_name text_pattern_ops, workspace_id);
CREATE INDEX suspended_workspaces ON registry.workspaces (workspace_id) WHERE state = 'suspended';
CREATE INDEX users_by_time ON registry.users (workspace_id, created_at, user_id);
CREATE INDEX users_of_a_role ON registry.users (workspace_id, role, user_id);
CREATE INDEX users_by_email ON registry.users (workspace_id, email);  -- deleted ones, too
CREATE INDEX users_by_identity ON registry.users (workspace_id, identity_id);
CREATE INDEX suspended_users ON registry.users (workspace_id, user_id) WHERE state = 'suspended';
CREATE INDEX agents_by_time ON registry.agents (workspace_id, created_at, agent_id);
CREATE INDEX agents_in_a_state ON registry.agents (workspace_id, state, agent_id);
CREATE INDEX agents_by_name ON registry.agents (workspace_id, display_name, agent_id);

-- What the sweep looks for.
CREATE INDEX workspaces_to_purge ON registry.workspaces (purge_at) WHERE purged_at IS NULL AND deleted_at IS NOT NULL;
CREATE INDEX workspaces_to_empty ON registry.workspaces (purged_at) WHERE purged_at IS NOT NULL AND emptied_at IS NULL;
CREATE INDEX users_to_purge ON registry.users (purge_at) WHERE purged_at IS NULL AND deleted_at IS NOT NULL;
CREATE INDEX agents_to_purge ON registry.agents (purge_at) WHERE purged_at IS NULL AND deleted_at IS NOT NULL;

-- agents
ALTER TABLE registry.agents
    -- By bytes, so that all names that begin alike are a range.
    ALTER COLUMN display_name TYPE text COLLATE "C",
    -- One target in each place of the three.
    ADD COLUMN target_names text[] NOT NULL DEFAULT '{}',
    ADD COLUMN target_urls text[] NOT NULL DEFAULT '{}',
    ADD COLUMN target_weights integer[] NOT NULL DEFAULT '{}',
    -- Of url and targets.
    ADD COLUMN generation bigint NOT NULL DEFAULT 1,
    -- For a message, and for 1,000 tokens in and out, in millionths of the currency's unit.
    ADD COLUMN price_message_micros bigint NOT NULL DEFAULT 0,
    ADD COLUMN price_input_micros bigint NOT NULL DEFAULT 0,
    ADD COLUMN price_output_micros bigint NOT NULL DEFAULT 0,
    ADD COLUMN currency text NOT NULL DEFAULT 'USD',
    ADD CONSTRAINT agents_are_purged_when_deleted
        CHECK ((deleted_at IS NULL) = (purge_at IS NULL) AND (purged_at IS NULL OR deleted_at IS NOT NULL)),
    DROP CONSTRAINT agents_have_names,
    ADD CONSTRAINT agents_have_names CHECK (octet_length(display_name) BETWEEN 1 AND 255 OR purged_at IS NOT NULL),
    DROP CONSTRAINT urls_fit,
    ADD CONSTRAINT urls_fit CHECK (octet_length(url) BETWEEN 1 AND 2048 OR purged_at IS NOT NULL),
    DROP CONSTRAINT states_are_known,
    ADD CONSTRAINT states_are_known CHECK (state IN ('draft', 'published', 'paused', 'gone')),
    ADD CONSTRAINT targets_are_whole CHECK (
        cardinality(target_names) <= 16 AND cardinality(target_urls) = cardinality(target_names)
        AND cardinality(target_weights) = cardinality(target_names)
        AND 0 <= ALL (target_weights) AND 1000 >= ALL (target_weights)
    ),
    ADD CONSTRAINT generations_begin_with_one CHECK (generation >= 1),
    ADD CONSTRAINT prices_are_bounded CHECK (
        price_message_micros BETWEEN 0 AND 1000000000000 AND price_input_micros BETWEEN 0 AND 1000000000000
        AND price_output_micros BETWEEN 0 AND 1000000000000
    ),
    ADD CONSTRAINT currencies_are_codes CHECK (currency ~ '^[A-Z]{3}$');

-- What was seen of a target, last; it counts while the agent is in that generation. The target is empty for the agent's url.
CREATE TABLE registry.agent_observations (
    workspace_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,
    state text NOT NULL,
    generation bigint NOT NULL,
    observed_at timestamptz NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (workspace_id, agent_id, target),
    FOREIGN KEY (workspace_id, agent_id) REFERENCES registry.agents,
    CONSTRAINT observed_states_are_known CHECK (state IN ('ready', 'cold', 'starting', 'draining', 'failing')),
    CONSTRAINT observed_messages_fit CHECK (octet_length(message) <= 255)
);

-- What was seen of an agent in this generation, as one row: the nth of each column belong together.
CREATE FUNCTION registry.observations_of(the_workspace text, the_agent text, the_generation bigint)
RETURNS TABLE (
    observed_targets text[], observed_states text[], observed_generations bigint[], observed_times timestamptz[],
    observed_messages text[]
) LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(target ORDER BY target), '{}'), coalesce(array_agg(state ORDER BY target), '{}'),
        coalesce(array_agg(generation ORDER BY target), '{}'), coalesce(array_agg(observed_at ORDER BY target), '{}'),
        coalesce(array_agg(message ORDER BY target), '{}')
    FROM registry.agent_observations
    WHERE workspace_id = the_workspace AND agent_id = the_agent AND generation = the_generation
$$;
