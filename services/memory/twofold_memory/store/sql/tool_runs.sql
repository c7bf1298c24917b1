-- name: create_tool_run
-- No row: the id is taken.
INSERT INTO memory.tool_runs AS r (
    workspace_id, tool_run_id, thread_id, turn_id, tool_call_id, name, arguments, metadata, body_hash, state, version, attempt,
    attempts_max, backoff, due_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, 1, 1, 0, $10, $11, now())
ON CONFLICT (workspace_id, tool_run_id) DO NOTHING
RETURNING
    workspace_id, tool_run_id, number, thread_id, turn_id, tool_call_id, name, body_hash, state, version, attempt, attempts_max,
    backoff, holder, due_at, retryable, created_at, updated_at;

-- name: tool_run
-- Not of a deleted conversation.
SELECT
    r.workspace_id, r.tool_run_id, r.number, r.thread_id, r.turn_id, r.tool_call_id, r.name, r.body_hash, r.state, r.version,
    r.attempt, r.attempts_max, r.backoff, r.holder, r.due_at, r.retryable, r.created_at, r.updated_at,
    c.user_id AS owner
FROM memory.tool_runs r
LEFT JOIN memory.conversations c ON c.workspace_id = r.workspace_id AND c.thread_id = r.thread_id
WHERE r.workspace_id = $1 AND r.tool_run_id = $2
    AND (r.thread_id IS NULL OR (c.thread_id IS NOT NULL AND c.deleted_at IS NULL AND c.erased_at IS NULL));

-- name: tool_run_contents
SELECT arguments, metadata, result, error FROM memory.tool_runs WHERE workspace_id = $1 AND tool_run_id = $2;

-- name: lock_tool_run
-- Not of a deleted conversation. (Asked with CASE, here and below: of OR and EXISTS Postgres may make a hash of all conversations.)
SELECT
    r.workspace_id, r.tool_run_id, r.number, r.thread_id, r.turn_id, r.tool_call_id, r.name, r.state, r.version,
    r.attempt, r.attempts_max, r.backoff, r.holder, r.due_at, r.retryable, r.created_at, r.updated_at, now() AS now
FROM memory.tool_runs r
WHERE r.workspace_id = $1 AND r.tool_run_id = $2
    AND CASE WHEN r.thread_id IS NULL THEN true ELSE (
        SELECT c.deleted_at IS NULL AND c.erased_at IS NULL
        FROM memory.conversations c
        WHERE c.workspace_id = r.workspace_id AND c.thread_id = r.thread_id
    ) END
FOR UPDATE OF r;

-- name: lock_due_tool_run
-- The run of a name that has been due for longest, of those that nobody else is just claiming.
SELECT
    r.workspace_id, r.tool_run_id, r.number, r.thread_id, r.turn_id, r.tool_call_id, r.name, r.state, r.version,
    r.attempt, r.attempts_max, r.backoff, r.holder, r.due_at, r.retryable, r.created_at, r.updated_at, now() AS now
FROM memory.tool_runs r
WHERE r.workspace_id = $1 AND r.name = $2 AND r.due_at <= now() AND r.attempt < r.attempts_max
    AND CASE WHEN r.thread_id IS NULL THEN true ELSE (
        SELECT c.deleted_at IS NULL AND c.erased_at IS NULL
        FROM memory.conversations c
        WHERE c.workspace_id = r.workspace_id AND c.thread_id = r.thread_id
    ) END
ORDER BY r.due_at
LIMIT 1
FOR UPDATE OF r SKIP LOCKED;

-- name: change_tool_run
-- $9 and $10 are result and error; null leaves the error as it is.
UPDATE memory.tool_runs
SET
    state = $3::smallint, version = $4, attempt = $5, holder = $6, due_at = $7, retryable = $8,
    result = $9, error = CASE WHEN $3::smallint = 3::smallint THEN NULL ELSE coalesce($10, error) END, updated_at = now()
WHERE workspace_id = $1 AND tool_run_id = $2;

-- name: give_up_tool_runs
-- Runs whose last attempt's lease has ended: nobody will begin another one.
UPDATE memory.tool_runs
SET
    state = 4, version = version + 1, holder = NULL, due_at = NULL, retryable = false,
    error = 'the lease of the last attempt has ended', updated_at = now()
WHERE (workspace_id, tool_run_id) IN (
    SELECT workspace_id, tool_run_id FROM memory.tool_runs
    WHERE state = 2 AND due_at <= now() AND attempt >= attempts_max
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
RETURNING 1;

-- name: tool_runs_of_workspace
SELECT
    workspace_id, tool_run_id, number, thread_id, turn_id, tool_call_id, name, state, version, attempt, attempts_max, backoff,
    holder, due_at, retryable, created_at, updated_at
FROM memory.tool_runs r
WHERE workspace_id = $1 AND number < $2
    AND CASE WHEN r.thread_id IS NULL THEN true ELSE (
        SELECT c.deleted_at IS NULL AND c.erased_at IS NULL
        FROM memory.conversations c
        WHERE c.workspace_id = r.workspace_id AND c.thread_id = r.thread_id
    ) END
ORDER BY number DESC
LIMIT $3;

-- name: tool_runs_of_state
SELECT
    workspace_id, tool_run_id, number, thread_id, turn_id, tool_call_id, name, state, version, attempt, attempts_max, backoff,
    holder, due_at, retryable, created_at, updated_at
FROM memory.tool_runs r
WHERE workspace_id = $1 AND state = $4 AND number < $2
    AND CASE WHEN r.thread_id IS NULL THEN true ELSE (
        SELECT c.deleted_at IS NULL AND c.erased_at IS NULL
        FROM memory.conversations c
        WHERE c.workspace_id = r.workspace_id AND c.thread_id = r.thread_id
    ) END
ORDER BY number DESC
LIMIT $3;

-- name: tool_runs_of_name
SELECT
    workspace_id, tool_run_id, number, thread_id, turn_id, tool_call_id, name, state, version, attempt, attempts_max, backoff,
    holder, due_at, retryable, created_at, updated_at
FROM memory.tool_runs r
WHERE workspace_id = $1 AND name = $5 AND ($4::smallint IS NULL OR state = $4) AND number < $2
    AND CASE WHEN r.thread_id IS NULL THEN true ELSE (
        SELECT c.deleted_at IS NULL AND c.erased_at IS NULL
        FROM memory.conversations c
        WHERE c.workspace_id = r.workspace_id AND c.thread_id = r.thread_id
    ) END
ORDER BY number DESC
LIMIT $3;

-- name: tool_runs_of_thread
-- Of a conversation that is there.
SELECT
    workspace_id, tool_run_id, number, thread_id, turn_id, tool_call_id, name, state, version, attempt, attempts_max, backoff,
    holder, due_at, retryable, created_at, updated_at
FROM memory.tool_runs
WHERE workspace_id = $1 AND thread_id = $6 AND ($4::smallint IS NULL OR state = $4) AND ($5::text IS NULL OR name = $5)
    AND number < $2
ORDER BY number DESC
LIMIT $3;
