-- name: conversations_to_export
SELECT thread_id, user_id, title, metadata, next_seq, epoch, created_at, updated_at, deleted_at
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id > $2 AND erased_at IS NULL
ORDER BY thread_id
LIMIT $3;

-- name: conversations_of_a_user_to_export
SELECT thread_id, user_id, title, metadata, next_seq, epoch, created_at, updated_at, deleted_at
FROM memory.conversations
WHERE workspace_id = $1 AND user_id = $4 AND thread_id > $2 AND erased_at IS NULL
ORDER BY thread_id
LIMIT $3;

-- name: these_conversations_to_export
SELECT thread_id, user_id, title, metadata, next_seq, epoch, created_at, updated_at, deleted_at
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = ANY ($4::text[]) AND thread_id > $2 AND erased_at IS NULL
ORDER BY thread_id
LIMIT $3;
