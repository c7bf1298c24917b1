-- name: get_user
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.state,
    u.limit_kinds, u.limit_amounts, u.limit_shadows, u.created_at, u.updated_at, u.deleted_at, u.purge_at, u.revision
FROM registry.registry_head h
CROSS JOIN registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.user_id = $2 AND u.purged_at IS NULL AND (u.deleted_at IS NULL OR $3::boolean);

-- name: batch_get_users
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.state,
    u.limit_kinds, u.limit_amounts, u.limit_shadows, u.created_at, u.updated_at, u.deleted_at, u.purge_at, u.revision
FROM registry.registry_head h
LEFT JOIN (registry.users u JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL)
    ON u.workspace_id = $1 AND u.user_id = ANY ($2::text[]) AND u.purged_at IS NULL
    AND (u.deleted_at IS NULL OR $3::boolean);

-- name: list_users
SELECT u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.state,
    u.limit_kinds, u.limit_amounts, u.limit_shadows, u.created_at, u.updated_at, u.deleted_at, u.purge_at, u.revision
FROM registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.purged_at IS NULL AND (u.deleted_at IS NULL OR $3::boolean)
    AND ($4::text IS NULL OR u.role = $4) AND ($5::text IS NULL OR u.state = $5)
    AND ($6::text IS NULL OR u.email = $6) AND ($7::text IS NULL OR u.identity_id = $7)
    AND u.user_id > $8
ORDER BY u.user_id
LIMIT $2;

-- name: list_users_desc
SELECT u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.state,
    u.limit_kinds, u.limit_amounts, u.limit_shadows, u.created_at, u.updated_at, u.deleted_at, u.purge_at, u.revision
FROM registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.purged_at IS NULL AND (u.deleted_at IS NULL OR $3::boolean)
    AND ($4::text IS NULL OR u.role = $4) AND ($5::text IS NULL OR u.state = $5)
    AND ($6::text IS NULL OR u.email = $6) AND ($7::text IS NULL OR u.identity_id = $7)
    AND u.user_id < $8
ORDER BY u.user_id DESC
LIMIT $2;

-- name: list_users_by_time
SELECT u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.state,
    u.limit_kinds, u.limit_amounts, u.limit_shadows, u.created_at, u.updated_at, u.deleted_at, u.purge_at, u.revision
FROM registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.purged_at IS NULL AND (u.deleted_at IS NULL OR $3::boolean)
    AND ($4::text IS NULL OR u.role = $4) AND ($5::text IS NULL OR u.state = $5)
    AND ($6::text IS NULL OR u.email = $6) AND ($7::text IS NULL OR u.identity_id = $7)
    AND (u.created_at, u.user_id) > ($8, $9)
ORDER BY u.created_at, u.user_id
LIMIT $2;

-- name: list_users_by_time_desc
SELECT u.workspace_id, u.user_id, u.email, u.identity_id, u.display_name, u.role, u.state,
    u.limit_kinds, u.limit_amounts, u.limit_shadows, u.created_at, u.updated_at, u.deleted_at, u.purge_at, u.revision
FROM registry.users u
JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
WHERE u.workspace_id = $1 AND u.purged_at IS NULL AND (u.deleted_at IS NULL OR $3::boolean)
    AND ($4::text IS NULL OR u.role = $4) AND ($5::text IS NULL OR u.state = $5)
    AND ($6::text IS NULL OR u.email = $6) AND ($7::text IS NULL OR u.identity_id = $7)
    AND (u.created_at, u.user_id) < ($8, $9)
ORDER BY u.created_at DESC, u.user_id DESC
LIMIT $2;

-- name: insert_user
INSERT INTO registry.users
    (workspace_id, user_id, created_at, updated_at, revision, email, identity_id, display_name, role, state, limit_kinds,
    limit_amounts, limit_shadows)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: update_user
UPDATE registry.users
SET updated_at = $3, revision = $4, email = $5, identity_id = $6, display_name = $7, role = $8, state = $9,
    limit_kinds = $10, limit_amounts = $11, limit_shadows = $12
WHERE workspace_id = $1 AND user_id = $2;

-- name: delete_user
UPDATE registry.users SET deleted_at = $3, updated_at = $3, revision = $4, purge_at = $5
WHERE workspace_id = $1 AND user_id = $2;

-- name: undelete_user
UPDATE registry.users SET deleted_at = NULL, purge_at = NULL, updated_at = $3, revision = $4
WHERE workspace_id = $1 AND user_id = $2;

-- name: purge_user
WITH gone AS (
    DELETE FROM registry.grants WHERE workspace_id = $1 AND user_id = $2
)
UPDATE registry.users
SET purged_at = $3, updated_at = $3, revision = $4, email = '', identity_id = '', display_name = '', limit_kinds = '{}',
    limit_amounts = '{}', limit_shadows = '{}'
WHERE workspace_id = $1 AND user_id = $2;

-- name: other_owner
-- Whether somebody else is an owner who may act. Read under the workspace's lock.
SELECT EXISTS (
    SELECT FROM registry.users
    WHERE workspace_id = $1 AND user_id <> $2 AND role = 'owner' AND state = 'active' AND deleted_at IS NULL
);
