-- name: lock_checkpoint_line
SELECT head_id, head_version FROM memory.checkpoint_lines
WHERE workspace_id = $1 AND thread_id = $2 AND line = $3
FOR UPDATE;

-- name: make_checkpoint_line
-- No row: somebody else has just made it.
INSERT INTO memory.checkpoint_lines (workspace_id, thread_id, line, head_id, head_version)
VALUES ($1, $2, $3, $4, 1)
ON CONFLICT (workspace_id, thread_id, line) DO NOTHING
RETURNING head_version;

-- name: move_checkpoint_line
UPDATE memory.checkpoint_lines SET head_id = $4, head_version = $5 WHERE workspace_id = $1 AND thread_id = $2 AND line = $3;

-- name: put_checkpoint
-- No row: the id is taken.
INSERT INTO memory.checkpoints (
    workspace_id, thread_id, line, version, checkpoint_id, parent_id, data, content_type, metadata, pinned
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10)
ON CONFLICT (workspace_id, thread_id, checkpoint_id) DO NOTHING
RETURNING
    checkpoint_id, line, version, parent_id, NULL::bytea AS data, octet_length(data) AS data_bytes, content_type, metadata,
    pinned, created_at;

-- name: fork_checkpoint
-- The first checkpoint of a line, with the state of another one. No row: that one is not there, or the new id is taken.
INSERT INTO memory.checkpoints (
    workspace_id, thread_id, line, version, checkpoint_id, parent_id, data, content_type, metadata, pinned
)
SELECT workspace_id, thread_id, $4, 1, $5, checkpoint_id, data, content_type, metadata, false
FROM memory.checkpoints
WHERE workspace_id = $1 AND thread_id = $2 AND checkpoint_id = $3
ON CONFLICT (workspace_id, thread_id, checkpoint_id) DO NOTHING
RETURNING
    checkpoint_id, line, version, parent_id, NULL::bytea AS data, octet_length(data) AS data_bytes, content_type, metadata,
    pinned, created_at;

-- name: checkpoint_is_there
SELECT true FROM memory.checkpoints WHERE workspace_id = $1 AND thread_id = $2 AND checkpoint_id = $3;

-- name: checkpoint
SELECT
    checkpoint_id, line, version, parent_id, data, octet_length(data) AS data_bytes, content_type, metadata, pinned, created_at
FROM memory.checkpoints
WHERE workspace_id = $1 AND thread_id = $2 AND checkpoint_id = $3;

-- name: newest_checkpoint
SELECT
    checkpoint_id, line, version, parent_id, data, octet_length(data) AS data_bytes, content_type, metadata, pinned, created_at
FROM memory.checkpoints
WHERE workspace_id = $1 AND thread_id = $2 AND line = $3
ORDER BY version DESC
LIMIT 1;

-- name: checkpoints_before
-- A page ends with the checkpoint that makes it larger than $6 bytes. $7: with data.
SELECT
    checkpoint_id, line, version, parent_id, CASE WHEN $7 THEN data END AS data, data_bytes, content_type, metadata, pinned,
    created_at
FROM (
    SELECT
        checkpoint_id, line, version, parent_id, data, octet_length(data) AS data_bytes, content_type, metadata, pinned,
        created_at,
        sum(octet_length(metadata::text) + CASE WHEN $7 THEN octet_length(data) ELSE 0 END)
            OVER (ORDER BY version DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT checkpoint_id, line, version, parent_id, data, content_type, metadata, pinned, created_at
        FROM memory.checkpoints
        WHERE workspace_id = $1 AND thread_id = $2 AND line = $3 AND version < $4
        ORDER BY version DESC
        LIMIT $5
    ) p
) p
WHERE coalesce(bytes_before, 0) <= $6
ORDER BY version DESC;

-- name: pin_checkpoint
UPDATE memory.checkpoints SET pinned = $4
WHERE workspace_id = $1 AND thread_id = $2 AND checkpoint_id = $3
RETURNING
    checkpoint_id, line, version, parent_id, NULL::bytea AS data, octet_length(data) AS data_bytes, content_type, metadata,
    pinned, created_at;

-- name: delete_checkpoints
-- Up to $5 of those before version $4, the oldest first. Pinned ones are looked at twice: one may be pinned just now.
DELETE FROM memory.checkpoints
WHERE NOT pinned AND (workspace_id, thread_id, line, version) IN (
    SELECT workspace_id, thread_id, line, version FROM memory.checkpoints
    WHERE workspace_id = $1 AND thread_id = $2 AND line = $3 AND version < $4 AND NOT pinned
    ORDER BY version
    LIMIT $5
)
RETURNING 1;

-- name: checkpoints_to_delete
SELECT true FROM memory.checkpoints
WHERE workspace_id = $1 AND thread_id = $2 AND line = $3 AND version < $4 AND NOT pinned
ORDER BY version
LIMIT 1;
