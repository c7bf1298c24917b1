-- name: get_user
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.created_at, u.updated_at, u.revision
FROM registry.registry_head h
CROSS JOIN registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.user_id = $2 AND u.deleted_at IS NULL;

-- name: list_users
SELECT u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.created_at, u.updated_at, u.revision
FROM registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.user_id > $2 AND u.deleted_at IS NULL
ORDER BY u.user_id
LIMIT $3;

-- name: insert_user
INSERT INTO registry.users
    (workspace_id, user_id, created_at, updated_at, revision, email, identity_id, display_name, role)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: update_user
UPDATE registry.users
SET updated_at = $3, revision = $4, email = $5, identity_id = $6, display_name = $7, role = $8
WHERE workspace_id = $1 AND user_id = $2;

-- name: delete_user
UPDATE registry.users SET deleted_at = $3, updated_at = $3, revision = $4 WHERE workspace_id = $1 AND user_id = $2;
