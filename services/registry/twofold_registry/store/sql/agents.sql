-- name: get_agent
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    a.workspace_id, a.agent_id, a.display_name, a.url, a.state, a.instructions, a.model, a.context_delivery,
    a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.revision
FROM registry.registry_head h
CROSS JOIN registry.agents a
JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
WHERE a.workspace_id = $1 AND a.agent_id = $2 AND a.deleted_at IS NULL;

-- name: list_agents
SELECT a.workspace_id, a.agent_id, a.display_name, a.url, a.state, a.instructions, a.model, a.context_delivery,
    a.context_messages_max, a.context_tokens_max, a.first_token_timeout_us, a.turn_timeout_us,
    a.created_at, a.updated_at, a.revision
FROM registry.agents a
JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
WHERE a.workspace_id = $1 AND a.agent_id > $2 AND a.deleted_at IS NULL
ORDER BY a.agent_id
LIMIT $3;

-- name: insert_agent
INSERT INTO registry.agents
    (workspace_id, agent_id, created_at, updated_at, revision, display_name, url, state, instructions, model,
    context_delivery, context_messages_max, context_tokens_max, first_token_timeout_us, turn_timeout_us)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- name: update_agent
UPDATE registry.agents
SET updated_at = $3, revision = $4, display_name = $5, url = $6, state = $7, instructions = $8, model = $9,
    context_delivery = $10, context_messages_max = $11, context_tokens_max = $12, first_token_timeout_us = $13,
    turn_timeout_us = $14
WHERE workspace_id = $1 AND agent_id = $2;

-- name: delete_agent
UPDATE registry.agents SET deleted_at = $3, updated_at = $3, revision = $4 WHERE workspace_id = $1 AND agent_id = $2;
