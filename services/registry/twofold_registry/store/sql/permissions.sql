-- name: pairs_with_grants
-- Whether user and agent of each pair live, and its grant. Read under the workspace's lock, and judged by the time of that: the
-- transaction may have waited for it.
SELECT u.user_id IS NOT NULL AS user_lives, a.state AS agent_state, g.expires_at, g.granted_by, g.granted_at,
    statement_timestamp() AS at
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS asked (user_id, agent_id, place)
LEFT JOIN LATERAL (
    SELECT user_id FROM registry.users
    WHERE workspace_id = $1 AND user_id = asked.user_id AND deleted_at IS NULL LIMIT 1
) u ON true
LEFT JOIN LATERAL (
    SELECT state FROM registry.agents
    WHERE workspace_id = $1 AND agent_id = asked.agent_id AND deleted_at IS NULL LIMIT 1
) a ON true
LEFT JOIN LATERAL (
    SELECT expires_at, granted_by, granted_at FROM registry.grants
    WHERE workspace_id = $1 AND user_id = asked.user_id AND agent_id = asked.agent_id LIMIT 1
) g ON true
ORDER BY asked.place;

-- name: put_grants
INSERT INTO registry.grants (workspace_id, user_id, agent_id, expires_at, granted_by, granted_at, revision)
SELECT $1, new.user_id, new.agent_id, new.expires_at, $5::text, $6::timestamptz, $7::bigint
FROM unnest($2::text[], $3::text[], $4::timestamptz[]) AS new (user_id, agent_id, expires_at)
ON CONFLICT (workspace_id, user_id, agent_id) DO UPDATE
SET expires_at = excluded.expires_at, granted_by = excluded.granted_by, granted_at = excluded.granted_at,
    revision = excluded.revision;

-- name: delete_grants
DELETE FROM registry.grants g
USING unnest($2::text[], $3::text[]) AS old (user_id, agent_id)
WHERE g.workspace_id = $1 AND g.user_id = old.user_id AND g.agent_id = old.agent_id;

-- name: list_grants
-- LIMIT 1 keeps the look-ups beside the walk down the index: a join that merges would begin with the first row of both.
SELECT g.workspace_id, g.user_id, g.agent_id, g.expires_at, g.granted_by, g.granted_at
FROM registry.grants g
JOIN registry.workspaces w ON w.workspace_id = g.workspace_id AND w.deleted_at IS NULL
CROSS JOIN LATERAL (
    SELECT FROM registry.users WHERE workspace_id = $1 AND user_id = g.user_id AND deleted_at IS NULL LIMIT 1
) u
CROSS JOIN LATERAL (
    SELECT FROM registry.agents WHERE workspace_id = $1 AND agent_id = g.agent_id AND deleted_at IS NULL LIMIT 1
) a
WHERE g.workspace_id = $1 AND (g.user_id, g.agent_id) > ($2, $3) AND (g.expires_at > now() OR g.expires_at IS NULL)
ORDER BY g.user_id, g.agent_id
LIMIT $4;

-- name: list_grants_of_user
SELECT g.workspace_id, g.user_id, g.agent_id, g.expires_at, g.granted_by, g.granted_at
FROM registry.grants g
JOIN registry.workspaces w ON w.workspace_id = g.workspace_id AND w.deleted_at IS NULL
CROSS JOIN LATERAL (
    SELECT FROM registry.users WHERE workspace_id = $1 AND user_id = g.user_id AND deleted_at IS NULL LIMIT 1
) u
CROSS JOIN LATERAL (
    SELECT FROM registry.agents WHERE workspace_id = $1 AND agent_id = g.agent_id AND deleted_at IS NULL LIMIT 1
) a
WHERE g.workspace_id = $1 AND g.user_id = $5 AND (g.user_id, g.agent_id) > ($2, $3)
    AND ($6::text IS NULL OR g.agent_id = $6) AND (g.expires_at > now() OR g.expires_at IS NULL)
ORDER BY g.user_id, g.agent_id
LIMIT $4;

-- name: list_grants_of_agent
-- By the index on (workspace_id, agent_id, user_id): of one agent, users follow each other in it.
SELECT g.workspace_id, g.user_id, g.agent_id, g.expires_at, g.granted_by, g.granted_at
FROM registry.grants g
JOIN registry.workspaces w ON w.workspace_id = g.workspace_id AND w.deleted_at IS NULL
CROSS JOIN LATERAL (
    SELECT FROM registry.users WHERE workspace_id = $1 AND user_id = g.user_id AND deleted_at IS NULL LIMIT 1
) u
CROSS JOIN LATERAL (
    SELECT FROM registry.agents WHERE workspace_id = $1 AND agent_id = g.agent_id AND deleted_at IS NULL LIMIT 1
) a
WHERE g.workspace_id = $1 AND g.agent_id = $4 AND g.user_id > $2 AND (g.expires_at > now() OR g.expires_at IS NULL)
ORDER BY g.user_id
LIMIT $3;
