-- name: join_sessions
-- Columns of the batch as arrays, each tenure once, sorted, so that two batches wait for each other and never in a circle.
-- Returns those of which something new was told; what is known of them is the least of all that was ever told.
INSERT INTO registry.sessions AS s
    (workspace_id, session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason)
SELECT $1, told.session_id, told.fence, told.user_id, told.agent_id, told.pod_id, told.pod_epoch, told.pod_number,
    told.opened_at, told.closed_at, told.close_reason
FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::timestamptz[],
    $10::timestamptz[], $11::smallint[]) AS told
    (session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason)
ON CONFLICT (workspace_id, session_id, fence) DO UPDATE
SET opened_at = least(s.opened_at, excluded.opened_at),
    closed_at = least(s.closed_at, excluded.closed_at),
    close_reason = CASE
        WHEN s.closed_at IS NULL OR (excluded.closed_at, excluded.close_reason) < (s.closed_at, s.close_reason)
        THEN excluded.close_reason ELSE s.close_reason END,
    heard_at = now()
WHERE (s.user_id, s.agent_id, s.pod_id, s.pod_epoch, s.pod_number)
        = (excluded.user_id, excluded.agent_id, excluded.pod_id, excluded.pod_epoch, excluded.pod_number)
    AND (excluded.opened_at < coalesce(s.opened_at, 'infinity')
        OR (excluded.closed_at, excluded.close_reason) < (coalesce(s.closed_at, 'infinity'), s.close_reason))
RETURNING session_id, fence;

-- name: known_holdings
SELECT s.session_id, s.fence, s.user_id, s.agent_id, s.pod_id, s.pod_epoch, s.pod_number
FROM unnest($2::text[], $3::bigint[]) AS told (session_id, fence)
CROSS JOIN LATERAL (
    SELECT * FROM registry.sessions
    WHERE workspace_id = $1 AND session_id = told.session_id AND fence = told.fence LIMIT 1
) s;

-- name: held_by_others
-- Those tenures that are known with another holding. LIMIT 1 keeps each look-up a walk down one index, whatever is planned.
SELECT s.session_id, s.fence
FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[]) AS told
    (session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number)
CROSS JOIN LATERAL (
    SELECT * FROM registry.sessions
    WHERE workspace_id = $1 AND session_id = told.session_id AND fence = told.fence LIMIT 1
) s
WHERE (s.user_id, s.agent_id, s.pod_id, s.pod_epoch, s.pod_number)
    <> (told.user_id, told.agent_id, told.pod_id, told.pod_epoch, told.pod_number);

-- name: list_sessions
SELECT session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason
FROM registry.sessions
WHERE workspace_id = $1 AND (began_at, session_id, fence) < ($2, $3, $4) AND began_at >= $5
ORDER BY began_at DESC, session_id DESC, fence DESC
LIMIT $6;

-- name: list_open_sessions
SELECT session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason
FROM registry.sessions
WHERE workspace_id = $1 AND (began_at, session_id, fence) < ($2, $3, $4) AND began_at >= $5 AND closed_at IS NULL
ORDER BY began_at DESC, session_id DESC, fence DESC
LIMIT $6;

-- name: list_sessions_of_user
SELECT session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason
FROM registry.sessions
WHERE workspace_id = $1 AND (began_at, session_id, fence) < ($2, $3, $4) AND began_at >= $5 AND user_id = $8
    AND NOT ($7::boolean AND closed_at IS NOT NULL)
    AND ($9::text IS NULL OR pod_id = $9) AND ($10::text IS NULL OR agent_id = $10)
ORDER BY began_at DESC, session_id DESC, fence DESC
LIMIT $6;

-- name: list_sessions_of_pod
SELECT session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason
FROM registry.sessions
WHERE workspace_id = $1 AND (began_at, session_id, fence) < ($2, $3, $4) AND began_at >= $5 AND pod_id = $8
    AND NOT ($7::boolean AND closed_at IS NOT NULL)
    AND ($9::text IS NULL OR agent_id = $9)
ORDER BY began_at DESC, session_id DESC, fence DESC
LIMIT $6;

-- name: list_sessions_of_agent
SELECT session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number, opened_at, closed_at, close_reason
FROM registry.sessions
WHERE workspace_id = $1 AND (began_at, session_id, fence) < ($2, $3, $4) AND began_at >= $5 AND agent_id = $8
    AND NOT ($7::boolean AND closed_at IS NOT NULL)
ORDER BY began_at DESC, session_id DESC, fence DESC
LIMIT $6;
