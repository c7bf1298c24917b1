-- name: hold_conversation
-- Shared: writers of records do not wait for each other; appends and deletions wait until the record is committed.
SELECT next_seq, epoch, user_id AS owner
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL
FOR SHARE;

-- name: find_conversation
SELECT next_seq, epoch, user_id AS owner
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL;
