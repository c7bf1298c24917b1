-- name: lock_parent
-- So that what it shares, and with whom, does not change until the branch is there.
SELECT
    thread_id, user_id, title, next_seq, ancestors, shared_until, floor_seq,
    deleted_at IS NOT NULL AS deleted, erased_at IS NOT NULL AS erased
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2
FOR UPDATE;

-- name: count_descendants
-- Not more than $3 are counted.
SELECT count(*)
FROM (
    SELECT FROM memory.conversations
    WHERE workspace_id = $1 AND ancestors <> '{}' AND ancestors @> ARRAY[$2::text]
    LIMIT $3
) d;

-- name: create_branch
INSERT INTO memory.conversations (
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, ancestors, shared_until
)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10)
ON CONFLICT (workspace_id, thread_id) DO NOTHING
RETURNING
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at;

-- name: branches
-- $5 a user or null: of nobody's conversation anybody makes branches, and these are theirs.
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND parent_thread_id = $2 AND thread_id > $3 AND deleted_at IS NULL AND erased_at IS NULL
    AND ($5::text IS NULL OR user_id IS NULL OR user_id = $5)
ORDER BY thread_id
LIMIT $4;
