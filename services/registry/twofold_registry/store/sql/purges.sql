-- name: purges_due
-- What was deleted for long enough, by the clock of the database; run as the system role. What is in a deleted workspace goes
-- with it.
(SELECT 'workspace' AS kind, w.workspace_id, '' AS resource_id, w.revision, w.updated_at
FROM registry.workspaces w
WHERE w.purge_at <= now() AND w.purged_at IS NULL AND w.deleted_at IS NOT NULL
ORDER BY w.purge_at
LIMIT $1)
UNION ALL
(SELECT 'user', u.workspace_id, u.user_id, u.revision, u.updated_at
FROM registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.purge_at <= now() AND u.purged_at IS NULL AND u.deleted_at IS NOT NULL
ORDER BY u.purge_at
LIMIT $1)
UNION ALL
(SELECT 'agent', a.workspace_id, a.agent_id, a.revision, a.updated_at
FROM registry.agents a
JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
WHERE a.purge_at <= now() AND a.purged_at IS NULL AND a.deleted_at IS NOT NULL
ORDER BY a.purge_at
LIMIT $1)
LIMIT $1;

-- name: workspaces_to_empty
-- Run as the system role.
SELECT workspace_id FROM registry.workspaces WHERE purged_at IS NOT NULL AND emptied_at IS NULL ORDER BY purged_at LIMIT $1;

-- name: empty_users
-- Some users of a purged workspace, and their grants.
WITH those AS (
    SELECT user_id FROM registry.users WHERE workspace_id = $1 AND purged_at IS NULL ORDER BY user_id LIMIT $2
    FOR NO KEY UPDATE
), grants AS (
    DELETE FROM registry.grants g USING those WHERE g.workspace_id = $1 AND g.user_id = those.user_id
), emptied AS (
    UPDATE registry.users u
    SET purged_at = now(), deleted_at = coalesce(u.deleted_at, now()), purge_at = coalesce(u.purge_at, now()), email = '',
        identity_id = '', display_name = '', limit_kinds = '{}', limit_amounts = '{}', limit_shadows = '{}'
    FROM those
    WHERE u.workspace_id = $1 AND u.user_id = those.user_id
    RETURNING u.user_id
)
SELECT count(*) FROM emptied;

-- name: empty_agents
-- Some agents of a purged workspace; their grants went with its users.
WITH those AS (
    SELECT agent_id FROM registry.agents WHERE workspace_id = $1 AND purged_at IS NULL ORDER BY agent_id LIMIT $2
    FOR NO KEY UPDATE
), observations AS (
    DELETE FROM registry.agent_observations o USING those WHERE o.workspace_id = $1 AND o.agent_id = those.agent_id
), emptied AS (
    UPDATE registry.agents a
    SET purged_at = now(), deleted_at = coalesce(a.deleted_at, now()), purge_at = coalesce(a.purge_at, now()),
        display_name = '', url = '', target_names = '{}', target_urls = '{}', target_weights = '{}', instructions = '',
        model = ''
    FROM those
    WHERE a.workspace_id = $1 AND a.agent_id = those.agent_id
    RETURNING a.agent_id
)
SELECT count(*) FROM emptied;

-- name: workspace_is_empty
-- If it is.
UPDATE registry.workspaces
SET emptied_at = now()
WHERE workspace_id = $1 AND NOT EXISTS (SELECT FROM registry.users WHERE workspace_id = $1 AND purged_at IS NULL)
    AND NOT EXISTS (SELECT FROM registry.agents WHERE workspace_id = $1 AND purged_at IS NULL);
