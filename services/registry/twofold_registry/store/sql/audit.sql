-- name: list_audit
SELECT seq, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id, created_at
FROM registry.audit_entries
WHERE workspace_id = $1 AND (revision, ordinal) < ($2, $3)
ORDER BY revision DESC, ordinal DESC
LIMIT $4;

-- name: list_audit_of_kind
SELECT seq, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id, created_at
FROM registry.audit_entries
WHERE workspace_id = $1 AND (revision, ordinal) < ($2, $3) AND resource_kind = $5
ORDER BY revision DESC, ordinal DESC
LIMIT $4;

-- name: list_audit_of_resource
SELECT seq, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id, created_at
FROM registry.audit_entries
WHERE workspace_id = $1 AND (revision, ordinal) < ($2, $3) AND resource_kind = $5 AND resource_id = $6
ORDER BY revision DESC, ordinal DESC
LIMIT $4;
