-- name: unresolved_dead_letters
-- $1 the workspace (null: all), $2 … $6 the place to begin behind, $7 how many
SELECT
    workspace_id, thread_id, turn_id, payload_hash, reason, sqlstate, octet_length(payload) AS payload_bytes, created_at,
    resolved_at, resolution, resolved_by, resolved_because
FROM memory.dead_letters
WHERE resolved_at IS NULL AND ($1::text IS NULL OR workspace_id = $1)
    AND (created_at, workspace_id, thread_id, turn_id, payload_hash) > ($2::timestamptz, $3::text, $4::text, $5::text, $6::bytea)
ORDER BY created_at, workspace_id, thread_id, turn_id, payload_hash
LIMIT $7;

-- name: all_dead_letters
-- As unresolved_dead_letters.
SELECT
    workspace_id, thread_id, turn_id, payload_hash, reason, sqlstate, octet_length(payload) AS payload_bytes, created_at,
    resolved_at, resolution, resolved_by, resolved_because
FROM memory.dead_letters
WHERE ($1::text IS NULL OR workspace_id = $1)
    AND (created_at, workspace_id, thread_id, turn_id, payload_hash) > ($2::timestamptz, $3::text, $4::text, $5::text, $6::bytea)
ORDER BY created_at, workspace_id, thread_id, turn_id, payload_hash
LIMIT $7;

-- name: dead_letter
-- Two, if $4 is null and there are several.
SELECT
    workspace_id, thread_id, turn_id, payload_hash, reason, sqlstate, octet_length(payload) AS payload_bytes, created_at,
    resolved_at, resolution, resolved_by, resolved_because, payload
FROM memory.dead_letters
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3 AND ($4::bytea IS NULL OR payload_hash = $4)
LIMIT 2;

-- name: lock_dead_letter
-- As dead_letter. Behind the conversation's row, which is locked first: an erasure takes them in this order.
SELECT
    workspace_id, thread_id, turn_id, payload_hash, reason, sqlstate, octet_length(payload) AS payload_bytes, created_at,
    resolved_at, resolution, resolved_by, resolved_because, payload
FROM memory.dead_letters
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3 AND ($4::bytea IS NULL OR payload_hash = $4)
LIMIT 2
FOR UPDATE;

-- name: resolve_dead_letter
UPDATE memory.dead_letters
SET resolved_at = now(), resolution = $5, resolved_by = $6, resolved_because = $7
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3 AND payload_hash = $4
RETURNING
    workspace_id, thread_id, turn_id, payload_hash, reason, sqlstate, octet_length(payload) AS payload_bytes, created_at,
    resolved_at, resolution, resolved_by, resolved_because;
