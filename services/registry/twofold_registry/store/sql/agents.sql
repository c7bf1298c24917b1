-- name: get_agent
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    a.workspace_id, a.agent_id, a.display_name, a.url, a.target_names, a.target_urls, a.target_weights, a.generation,
    a.price_message_micros, a.price_input_micros, a.price_output_micros, a.currency, a.state, a.instructions, a.model,
    a.context_delivery, a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.deleted_at, a.purge_at, a.revision,
    o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM registry.registry_head h
CROSS JOIN registry.agents a
JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o
WHERE a.workspace_id = $1 AND a.agent_id = $2 AND a.purged_at IS NULL AND (a.deleted_at IS NULL OR $3::boolean);

-- name: batch_get_agents
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    a.workspace_id, a.agent_id, a.display_name, a.url, a.target_names, a.target_urls, a.target_weights, a.generation,
    a.price_message_micros, a.price_input_micros, a.price_output_micros, a.currency, a.state, a.instructions, a.model,
    a.context_delivery, a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.deleted_at, a.purge_at, a.revision,
    o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM registry.registry_head h
LEFT JOIN (registry.agents a JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL)
    ON a.workspace_id = $1 AND a.agent_id = ANY ($2::text[]) AND a.purged_at IS NULL
    AND (a.deleted_at IS NULL OR $3::boolean)
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o;

-- name: list_agents
SELECT a.workspace_id, a.agent_id, a.display_name, a.url, a.target_names, a.target_urls, a.target_weights, a.generation,
    a.price_message_micros, a.price_input_micros, a.price_output_micros, a.currency, a.state, a.instructions, a.model,
    a.context_delivery, a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.deleted_at, a.purge_at, a.revision,
    o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM (  -- the page first, so that observations are looked up for it only
    SELECT a.* FROM registry.agents a
    JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
    WHERE a.workspace_id = $1 AND a.purged_at IS NULL AND (a.deleted_at IS NULL OR $3::boolean)
        AND ($4::text IS NULL OR a.state = $4)
        -- All that begin with it, said with operators that may be asked before row-level security: so an index can answer.
        AND ($5::text IS NULL OR a.display_name >= $5 AND a.display_name < $5 || repeat(U&'\+10FFFF', 64))
        AND a.agent_id > $6
    ORDER BY a.agent_id
    LIMIT $2
) a
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o
ORDER BY a.agent_id;

-- name: list_agents_desc
SELECT a.workspace_id, a.agent_id, a.display_name, a.url, a.target_names, a.target_urls, a.target_weights, a.generation,
    a.price_message_micros, a.price_input_micros, a.price_output_micros, a.currency, a.state, a.instructions, a.model,
    a.context_delivery, a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.deleted_at, a.purge_at, a.revision,
    o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM (  -- the page first, so that observations are looked up for it only
    SELECT a.* FROM registry.agents a
    JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
    WHERE a.workspace_id = $1 AND a.purged_at IS NULL AND (a.deleted_at IS NULL OR $3::boolean)
        AND ($4::text IS NULL OR a.state = $4)
        -- All that begin with it, said with operators that may be asked before row-level security: so an index can answer.
        AND ($5::text IS NULL OR a.display_name >= $5 AND a.display_name < $5 || repeat(U&'\+10FFFF', 64))
        AND a.agent_id < $6
    ORDER BY a.agent_id DESC
    LIMIT $2
) a
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o
ORDER BY a.agent_id DESC;

-- name: list_agents_by_time
SELECT a.workspace_id, a.agent_id, a.display_name, a.url, a.target_names, a.target_urls, a.target_weights, a.generation,
    a.price_message_micros, a.price_input_micros, a.price_output_micros, a.currency, a.state, a.instructions, a.model,
    a.context_delivery, a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.deleted_at, a.purge_at, a.revision,
    o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM (  -- the page first, so that observations are looked up for it only
    SELECT a.* FROM registry.agents a
    JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
    WHERE a.workspace_id = $1 AND a.purged_at IS NULL AND (a.deleted_at IS NULL OR $3::boolean)
        AND ($4::text IS NULL OR a.state = $4)
        -- All that begin with it, said with operators that may be asked before row-level security: so an index can answer.
        AND ($5::text IS NULL OR a.display_name >= $5 AND a.display_name < $5 || repeat(U&'\+10FFFF', 64))
        AND (a.created_at, a.agent_id) > ($6, $7)
    ORDER BY a.created_at, a.agent_id
    LIMIT $2
) a
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o
ORDER BY a.created_at, a.agent_id;

-- name: list_agents_by_time_desc
SELECT a.workspace_id, a.agent_id, a.display_name, a.url, a.target_names, a.target_urls, a.target_weights, a.generation,
    a.price_message_micros, a.price_input_micros, a.price_output_micros, a.currency, a.state, a.instructions, a.model,
    a.context_delivery, a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.deleted_at, a.purge_at, a.revision,
    o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM (  -- the page first, so that observations are looked up for it only
    SELECT a.* FROM registry.agents a
    JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
    WHERE a.workspace_id = $1 AND a.purged_at IS NULL AND (a.deleted_at IS NULL OR $3::boolean)
        AND ($4::text IS NULL OR a.state = $4)
        -- All that begin with it, said with operators that may be asked before row-level security: so an index can answer.
        AND ($5::text IS NULL OR a.display_name >= $5 AND a.display_name < $5 || repeat(U&'\+10FFFF', 64))
        AND (a.created_at, a.agent_id) < ($6, $7)
    ORDER BY a.created_at DESC, a.agent_id DESC
    LIMIT $2
) a
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o
ORDER BY a.created_at DESC, a.agent_id DESC;

-- name: insert_agent
INSERT INTO registry.agents
    (workspace_id, agent_id, created_at, updated_at, revision, display_name, url, target_names, target_urls, target_weights,
    generation, price_message_micros, price_input_micros, price_output_micros, currency, state, instructions, model,
    context_delivery, context_messages_max, context_tokens_max, first_token_timeout_us, turn_timeout_us)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23);

-- name: update_agent
UPDATE registry.agents
SET updated_at = $3, revision = $4, display_name = $5, url = $6, target_names = $7, target_urls = $8, target_weights = $9,
    generation = $10, price_message_micros = $11, price_input_micros = $12, price_output_micros = $13, currency = $14,
    state = $15, instructions = $16, model = $17, context_delivery = $18, context_messages_max = $19,
    context_tokens_max = $20, first_token_timeout_us = $21, turn_timeout_us = $22
WHERE workspace_id = $1 AND agent_id = $2;

-- name: delete_agent
UPDATE registry.agents SET deleted_at = $3, updated_at = $3, revision = $4, purge_at = $5
WHERE workspace_id = $1 AND agent_id = $2;

-- name: undelete_agent
UPDATE registry.agents SET deleted_at = NULL, purge_at = NULL, updated_at = $3, revision = $4
WHERE workspace_id = $1 AND agent_id = $2;

-- name: purge_agent
WITH grants AS (
    DELETE FROM registry.grants WHERE workspace_id = $1 AND agent_id = $2
), observations AS (
    DELETE FROM registry.agent_observations WHERE workspace_id = $1 AND agent_id = $2
)
UPDATE registry.agents
SET purged_at = $3, updated_at = $3, revision = $4, display_name = '', url = '', target_names = '{}', target_urls = '{}',
    target_weights = '{}', instructions = '', model = ''
WHERE workspace_id = $1 AND agent_id = $2;

-- name: renew_observation
UPDATE registry.agent_observations o
SET observed_at = $6, message = $7
FROM registry.agents a
JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
WHERE o.workspace_id = $1 AND o.agent_id = $2 AND o.target = $3 AND o.state = $4 AND o.generation = $5
    AND o.observed_at < $6
    AND a.workspace_id = $1 AND a.agent_id = $2 AND a.generation = $5 AND a.deleted_at IS NULL
RETURNING true;

-- name: lock_observation
SELECT true FROM registry.agent_observations
WHERE workspace_id = $1 AND agent_id = $2 AND target = $3
FOR UPDATE;

-- name: keep_observation
-- Those of generations that have passed go.
WITH passed AS (
    DELETE FROM registry.agent_observations
    WHERE workspace_id = $1 AND agent_id = $2 AND target <> $3 AND generation < $5
)
INSERT INTO registry.agent_observations (workspace_id, agent_id, target, state, generation, observed_at, message)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (workspace_id, agent_id, target) DO UPDATE
SET state = excluded.state, generation = excluded.generation, observed_at = excluded.observed_at, message = excluded.message;
