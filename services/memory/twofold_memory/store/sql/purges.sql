-- name: due_purges
SELECT workspace_id, thread_id, epoch, erased FROM memory.window_purges WHERE NOT done ORDER BY asked_at LIMIT $1;

-- name: purge_done
UPDATE memory.window_purges SET done = true WHERE workspace_id = $1 AND thread_id = $2 AND epoch = $3;

-- name: recent_purges
-- $1, $2 the thread to begin behind, $3 how long a window can live, $4 how many
SELECT workspace_id, thread_id, epoch, erased FROM memory.window_purges
WHERE (workspace_id, thread_id) > ($1, $2) AND asked_at > now() - $3::interval
ORDER BY workspace_id, thread_id LIMIT $4;

-- name: forget_purges
-- $1 how long a window can live, $2 how many at a time
DELETE FROM memory.window_purges
WHERE (workspace_id, thread_id) IN (
    SELECT workspace_id, thread_id FROM memory.window_purges
    WHERE asked_at <= now() - $1::interval AND done
    ORDER BY asked_at LIMIT $2 FOR UPDATE SKIP LOCKED
);
