-- name: get_workspace
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    w.workspace_id, w.display_name, w.namespace, w.allowed_url_suffixes, w.created_at, w.updated_at, w.revision
FROM registry.registry_head h CROSS JOIN registry.workspaces w
WHERE w.workspace_id = $1 AND w.deleted_at IS NULL;

-- name: list_workspaces
SELECT workspace_id, display_name, namespace, allowed_url_suffixes, created_at, updated_at, revision
FROM registry.workspaces
WHERE workspace_id > $1 AND deleted_at IS NULL
ORDER BY workspace_id
LIMIT $2;

-- name: insert_workspace
INSERT INTO registry.workspaces
    (workspace_id, created_at, updated_at, revision, display_name, namespace, allowed_url_suffixes)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: update_workspace
UPDATE registry.workspaces
SET updated_at = $2, revision = $3, display_name = $4, namespace = $5, allowed_url_suffixes = $6
WHERE workspace_id = $1;

-- name: delete_workspace
UPDATE registry.workspaces SET deleted_at = $2, updated_at = $2, revision = $3 WHERE workspace_id = $1;
