-- name: schema_is_there
SELECT 1 FROM memory.conversations LIMIT 1;

-- name: create_conversation
INSERT INTO memory.conversations (workspace_id, thread_id, user_id, title, metadata)
VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (workspace_id, thread_id) DO NOTHING
RETURNING workspace_id, thread_id, user_id, title, metadata, next_seq, version, created_at, updated_at, listed_at;

-- name: conversation
SELECT workspace_id, thread_id, user_id, title, metadata, next_seq, version, created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL;

-- name: lock_conversation
SELECT workspace_id, thread_id, user_id, title, metadata, next_seq, version, created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL
FOR UPDATE;

-- name: update_conversation
UPDATE memory.conversations
SET title = $3, metadata = $4::jsonb, version = version + 1, updated_at = now(), listed_at = now()
WHERE workspace_id = $1 AND thread_id = $2
RETURNING workspace_id, thread_id, user_id, title, metadata, next_seq, version, created_at, updated_at, listed_at;

-- name: delete_conversation
-- The epoch rises, so that windows of before are void.
UPDATE memory.conversations
SET deleted_at = now(), updated_at = now(), version = version + 1, epoch = epoch + 1
WHERE workspace_id = $1 AND thread_id = $2
RETURNING epoch;

-- name: conversations_of_workspace
SELECT workspace_id, thread_id, user_id, title, metadata, next_seq, version, created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND deleted_at IS NULL AND erased_at IS NULL
    AND (listed_at, thread_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::text, ''))
ORDER BY listed_at DESC, thread_id DESC
LIMIT $4;

-- name: conversations_of_user
SELECT workspace_id, thread_id, user_id, title, metadata, next_seq, version, created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND user_id = $2 AND deleted_at IS NULL AND erased_at IS NULL
    AND (listed_at, thread_id) < (coalesce($3::timestamptz, 'infinity'), coalesce($4::text, ''))
ORDER BY listed_at DESC, thread_id DESC
LIMIT $5;
