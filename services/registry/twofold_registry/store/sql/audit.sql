-- name: insert_audit_entry
INSERT INTO registry.audit_entries
    (workspace_id, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id,
    created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: list_audit
SELECT revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id, created_at
FROM registry.audit_entries
WHERE workspace_id = $1 AND (revision, ordinal) < ($2, $3)
ORDER BY revision DESC, ordinal DESC
LIMIT $4;

-- name: list_audit_of_kind
SELECT revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id, created_at
FROM registry.audit_entries
WHERE workspace_id = $1 AND (revision, ordinal) < ($2, $3) AND resource_kind = $5
ORDER BY revision DESC, ordinal DESC
LIMIT $4;

-- name: list_audit_of_resource
SELECT revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id, created_at
FROM registry.audit_entries
WHERE workspace_id = $1 AND (revision, ordinal) < ($2, $3) AND resource_kind = $5 AND resource_id = $6
ORDER BY revision DESC, ordinal DESC
LIMIT $4;
