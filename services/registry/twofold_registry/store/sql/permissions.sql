-- name: check_facts
-- One statement, so that the revision is that of all facts beside it.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision, now() AS at,
    w.workspace_id IS NOT NULL AS workspace_lives,
    u.role,
    a.agent_id IS NOT NULL AS agent_lives,
    g.agent_id IS NOT NULL AS granted,
    g.expires_at
FROM registry.registry_head h
LEFT JOIN registry.workspaces w ON w.workspace_id = $1 AND w.deleted_at IS NULL
LEFT JOIN registry.users u ON u.workspace_id = $1 AND u.user_id = $2 AND u.deleted_at IS NULL
LEFT JOIN registry.agents a ON a.workspace_id = $1 AND a.agent_id = $3 AND a.deleted_at IS NULL
LEFT JOIN registry.grants g ON g.workspace_id = $1 AND g.user_id = $2 AND g.agent_id = $3;

-- name: pair_with_grant
-- Whether user and agent live, and the grant of the pair. Read under the workspace's lock.
SELECT u.user_id IS NOT NULL AS user_lives, a.agent_id IS NOT NULL AS agent_lives,
    g.expires_at, g.granted_by, g.granted_at
FROM (VALUES (true)) AS one (row)
LEFT JOIN registry.users u ON u.workspace_id = $1 AND u.user_id = $2 AND u.deleted_at IS NULL
LEFT JOIN registry.agents a ON a.workspace_id = $1 AND a.agent_id = $3 AND a.deleted_at IS NULL
LEFT JOIN registry.grants g ON g.workspace_id = $1 AND g.user_id = $2 AND g.agent_id = $3;

-- name: put_grant
INSERT INTO registry.grants (workspace_id, user_id, agent_id, expires_at, granted_by, granted_at, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (workspace_id, user_id, agent_id) DO UPDATE
SET expires_at = excluded.expires_at, granted_by = excluded.granted_by, granted_at = excluded.granted_at,
    revision = excluded.revision;

-- name: delete_grant
DELETE FROM registry.grants WHERE workspace_id = $1 AND user_id = $2 AND agent_id = $3;

-- name: list_grants
SELECT g.workspace_id, g.user_id, g.agent_id, g.expires_at, g.granted_by, g.granted_at
FROM registry.grants g
JOIN registry.workspaces w ON w.workspace_id = g.workspace_id AND w.deleted_at IS NULL
JOIN registry.users u ON u.workspace_id = g.workspace_id AND u.user_id = g.user_id AND u.deleted_at IS NULL
JOIN registry.agents a ON a.workspace_id = g.workspace_id AND a.agent_id = g.agent_id AND a.deleted_at IS NULL
WHERE g.workspace_id = $1 AND (g.user_id, g.agent_id) > ($2, $3) AND (g.expires_at > now() OR g.expires_at IS NULL)
ORDER BY g.user_id, g.agent_id
LIMIT $4;

-- name: list_grants_of_user
SELECT g.workspace_id, g.user_id, g.agent_id, g.expires_at, g.granted_by, g.granted_at
FROM registry.grants g
JOIN registry.workspaces w ON w.workspace_id = g.workspace_id AND w.deleted_at IS NULL
JOIN registry.users u ON u.workspace_id = g.workspace_id AND u.user_id = g.user_id AND u.deleted_at IS NULL
JOIN registry.agents a ON a.workspace_id = g.workspace_id AND a.agent_id = g.agent_id AND a.deleted_at IS NULL
WHERE g.workspace_id = $1 AND g.user_id = $5 AND (g.user_id, g.agent_id) > ($2, $3)
    AND ($6::text IS NULL OR g.agent_id = $6) AND (g.expires_at > now() OR g.expires_at IS NULL)
ORDER BY g.user_id, g.agent_id
LIMIT $4;

-- name: list_grants_of_agent
-- By the index on (workspace_id, agent_id, user_id): of one agent, users follow each other in it.
SELECT g.workspace_id, g.user_id, g.agent_id, g.expires_at, g.granted_by, g.granted_at
FROM registry.grants g
JOIN registry.workspaces w ON w.workspace_id = g.workspace_id AND w.deleted_at IS NULL
JOIN registry.users u ON u.workspace_id = g.workspace_id AND u.user_id = g.user_id AND u.deleted_at IS NULL
JOIN registry.agents a ON a.workspace_id = g.workspace_id AND a.agent_id = g.agent_id AND a.deleted_at IS NULL
WHERE g.workspace_id = $1 AND g.agent_id = $4 AND g.user_id > $2 AND (g.expires_at > now() OR g.expires_at IS NULL)
ORDER BY g.user_id
LIMIT $3;
