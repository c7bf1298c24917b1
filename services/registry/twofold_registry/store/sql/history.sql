-- name: read_head
SELECT epoch, revision FROM registry.registry_head;

-- name: take_revision
-- The last lock of a change, held to its commit. The time is read under it, so times follow the order of revisions.
UPDATE registry.registry_head SET revision = revision + 1
RETURNING epoch, revision, clock_timestamp() AS at;

-- name: lock_workspace
-- The first lock of a change inside a workspace: what it reads afterwards nobody else changes.
SELECT workspace_id, display_name, namespace, allowed_url_suffixes, created_at, updated_at, revision
FROM registry.workspaces
WHERE workspace_id = $1 AND deleted_at IS NULL
FOR NO KEY UPDATE;

-- name: workspace_lives
SELECT EXISTS (SELECT FROM registry.workspaces WHERE workspace_id = $1 AND deleted_at IS NULL);

-- name: workspace_ever_was
SELECT EXISTS (SELECT FROM registry.workspaces WHERE workspace_id = $1);
