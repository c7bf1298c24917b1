-- name: get_workspace
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision
FROM registry.registry_head h CROSS JOIN registry.workspaces w
WHERE w.workspace_id = $1 AND w.purged_at IS NULL AND (w.deleted_at IS NULL OR $2::boolean);

-- name: batch_get_workspaces
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision
FROM registry.registry_head h
LEFT JOIN registry.workspaces w ON w.workspace_id = ANY ($1::text[]) AND w.purged_at IS NULL
    AND (w.deleted_at IS NULL OR $2::boolean);

-- name: list_workspaces
SELECT w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision
FROM registry.workspaces w
WHERE w.purged_at IS NULL AND (w.deleted_at IS NULL OR $2::boolean)
    AND ($3::text IS NULL OR w.state = $3) AND ($4::text IS NULL OR w.plan = $4)
    AND ($5::text IS NULL OR starts_with(w.display_name, $5))
    AND w.workspace_id > $6
ORDER BY w.workspace_id
LIMIT $1;

-- name: list_workspaces_desc
SELECT w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision
FROM registry.workspaces w
WHERE w.purged_at IS NULL AND (w.deleted_at IS NULL OR $2::boolean)
    AND ($3::text IS NULL OR w.state = $3) AND ($4::text IS NULL OR w.plan = $4)
    AND ($5::text IS NULL OR starts_with(w.display_name, $5))
    AND w.workspace_id < $6
ORDER BY w.workspace_id DESC
LIMIT $1;

-- name: list_workspaces_by_time
SELECT w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision
FROM registry.workspaces w
WHERE w.purged_at IS NULL AND (w.deleted_at IS NULL OR $2::boolean)
    AND ($3::text IS NULL OR w.state = $3) AND ($4::text IS NULL OR w.plan = $4)
    AND ($5::text IS NULL OR starts_with(w.display_name, $5))
    AND (w.created_at, w.workspace_id) > ($6, $7)
ORDER BY w.created_at, w.workspace_id
LIMIT $1;

-- name: list_workspaces_by_time_desc
SELECT w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision
FROM registry.workspaces w
WHERE w.purged_at IS NULL AND (w.deleted_at IS NULL OR $2::boolean)
    AND ($3::text IS NULL OR w.state = $3) AND ($4::text IS NULL OR w.plan = $4)
    AND ($5::text IS NULL OR starts_with(w.display_name, $5))
    AND (w.created_at, w.workspace_id) < ($6, $7)
ORDER BY w.created_at DESC, w.workspace_id DESC
LIMIT $1;

-- name: insert_workspace
INSERT INTO registry.workspaces
    (workspace_id, created_at, updated_at, revision, display_name, namespace, plan, state, limit_kinds, limit_amounts,
    limit_shadows, allowed_url_suffixes, conversation_days, session_days)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);

-- name: update_workspace
UPDATE registry.workspaces
SET updated_at = $2, revision = $3, display_name = $4, namespace = $5, plan = $6, state = $7, limit_kinds = $8,
    limit_amounts = $9, limit_shadows = $10, allowed_url_suffixes = $11, conversation_days = $12, session_days = $13
WHERE workspace_id = $1;

-- name: delete_workspace
UPDATE registry.workspaces SET deleted_at = $2, updated_at = $2, revision = $3, purge_at = $4 WHERE workspace_id = $1;

-- name: undelete_workspace
UPDATE registry.workspaces SET deleted_at = NULL, purge_at = NULL, updated_at = $2, revision = $3 WHERE workspace_id = $1;

-- name: purge_workspace
-- What is in it is emptied afterwards, some at a time: nobody can see it any more.
UPDATE registry.workspaces
SET purged_at = $2, updated_at = $2, revision = $3, display_name = '', namespace = '', plan = '', limit_kinds = '{}',
    limit_amounts = '{}', limit_shadows = '{}', allowed_url_suffixes = '{}'
WHERE workspace_id = $1;
