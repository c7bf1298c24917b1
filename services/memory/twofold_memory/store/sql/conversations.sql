-- name: schema_is_there
SELECT 1 FROM memory.conversations LIMIT 1;

-- name: create_conversation
INSERT INTO memory.conversations (workspace_id, thread_id, user_id, title, metadata)
VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (workspace_id, thread_id) DO NOTHING
RETURNING
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at;

-- name: conversation
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL;

-- name: lock_conversation
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL
FOR UPDATE;

-- name: update_conversation
UPDATE memory.conversations
SET title = $3, metadata = $4::jsonb, version = version + 1, updated_at = now(), listed_at = now()
WHERE workspace_id = $1 AND thread_id = $2
RETURNING
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at;

-- name: delete_conversation
-- The epoch rises, so that windows of before are void.
UPDATE memory.conversations
SET deleted_at = now(), updated_at = now(), version = version + 1, epoch = epoch + 1
WHERE workspace_id = $1 AND thread_id = $2
RETURNING epoch;

-- name: lock_deleted_conversation
-- As lock_conversation, also of one that is hidden or erased.
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at, deleted_at IS NOT NULL AS deleted, erased_at IS NOT NULL AS erased
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2
FOR UPDATE;

-- name: undelete_conversation
-- The epoch rises once more: who follows it learns that something has happened.
UPDATE memory.conversations
SET deleted_at = NULL, updated_at = now(), listed_at = now(), version = version + 1, epoch = epoch + 1
WHERE workspace_id = $1 AND thread_id = $2
RETURNING
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at, epoch;

-- name: conversations_of_workspace
-- $5, $6: changed from, and before. Lists are in the order of listed_at, which may be a minute behind updated_at, or, where
-- clocks or long transactions are in play, a little ahead of it.
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND deleted_at IS NULL AND erased_at IS NULL
    AND (listed_at, thread_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::text, ''))
    AND updated_at >= coalesce($5::timestamptz, '-infinity') AND updated_at < coalesce($6::timestamptz, 'infinity')
    AND listed_at >= coalesce($5::timestamptz - interval '2 minutes', '-infinity')
    AND listed_at <= coalesce($6::timestamptz + interval '1 minute', 'infinity')
ORDER BY listed_at DESC, thread_id DESC
LIMIT $4;

-- name: conversations_of_user
-- As conversations_of_workspace, of one user.
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND user_id = $7 AND deleted_at IS NULL AND erased_at IS NULL
    AND (listed_at, thread_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::text, ''))
    AND updated_at >= coalesce($5::timestamptz, '-infinity') AND updated_at < coalesce($6::timestamptz, 'infinity')
    AND listed_at >= coalesce($5::timestamptz - interval '2 minutes', '-infinity')
    AND listed_at <= coalesce($6::timestamptz + interval '1 minute', 'infinity')
ORDER BY listed_at DESC, thread_id DESC
LIMIT $4;

-- name: conversations_with_labels
-- As conversations_of_workspace, of any user (null) or of one, with all of these labels: found by them, and then put in order.
SELECT
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at
FROM memory.conversations
WHERE workspace_id = $1 AND deleted_at IS NULL AND erased_at IS NULL AND metadata <> '{}'
    AND memory.label_hashes(workspace_id, metadata) @> memory.label_hashes($1, $8::jsonb) AND metadata @> $8::jsonb
    AND ($7::text IS NULL OR user_id = $7)
    AND (listed_at, thread_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::text, ''))
    AND updated_at >= coalesce($5::timestamptz, '-infinity') AND updated_at < coalesce($6::timestamptz, 'infinity')
ORDER BY listed_at DESC, thread_id DESC
LIMIT $4;
