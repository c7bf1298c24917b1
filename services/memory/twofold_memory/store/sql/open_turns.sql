-- name: make_thread
INSERT INTO memory.conversations (workspace_id, thread_id, user_id)
VALUES ($1, $2, $3)
ON CONFLICT (workspace_id, thread_id) DO NOTHING;

-- name: lock_thread
SELECT
    next_seq, epoch, user_id AS owner, erased_at IS NOT NULL AS erased,
    coalesce(deleted_at, erased_at) IS NOT NULL AS deleted
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2
FOR UPDATE;

-- name: lock_free_thread
-- No row: there is none, or somebody else is at work there.
SELECT
    next_seq, epoch, user_id AS owner, erased_at IS NOT NULL AS erased,
    coalesce(deleted_at, erased_at) IS NOT NULL AS deleted
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2
FOR UPDATE SKIP LOCKED;

-- name: closed_turn
SELECT payload_hash, first_seq, last_seq, epoch, created_at, status, order_unverified
FROM memory.turns
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3;

-- name: open_turn
SELECT
    turn_id, user_id, body_hash, fence, holder, lease_until, began_at, roles, contents, rests, token_counts, bytes,
    partial_roles, partial_contents, partial_rests, partial_token_counts, partial_bytes,
    lease_until > clock_timestamp() AS alive
FROM memory.open_turns
WHERE workspace_id = $1 AND thread_id = $2;

-- name: lock_open_turn
-- As open_turn, and no heartbeat can change it any more. $3 the grace behind a lease
SELECT
    turn_id, user_id, body_hash, fence, holder, lease_until, began_at, roles, contents, rests, token_counts, bytes,
    partial_roles, partial_contents, partial_rests, partial_token_counts, partial_bytes,
    lease_until > clock_timestamp() AS alive, lease_until <= clock_timestamp() - $3::interval AS left_behind
FROM memory.open_turns
WHERE workspace_id = $1 AND thread_id = $2
FOR UPDATE;

-- name: next_fence
-- A change as an append is: what is kept for so many days after it does not go while somebody talks.
UPDATE memory.conversations
SET
    turn_fence = turn_fence + 1,
    updated_at = now(),
    listed_at = CASE WHEN listed_at < now() - interval '1 minute' THEN now() ELSE listed_at END
WHERE workspace_id = $1 AND thread_id = $2
RETURNING turn_fence;

-- name: keep_open_turn
-- $7 the lease, $8 the grace behind it
INSERT INTO memory.open_turns (
    workspace_id, thread_id, turn_id, user_id, body_hash, fence, holder, lease, lease_until, sweep_at, roles, contents, rests,
    token_counts, bytes
)
VALUES (
    $1, $2, $3, $4, $5, $6, $9, $7, clock_timestamp() + $7::interval, clock_timestamp() + $7::interval + $8::interval, $10, $11,
    $12, $13, $14
)
RETURNING lease_until;

-- name: extend_lease
-- $5 a new lease or null, $6 the grace behind it
UPDATE memory.open_turns
SET
    lease = coalesce($5::interval, lease),
    lease_until = clock_timestamp() + coalesce($5::interval, lease),
    sweep_at = clock_timestamp() + coalesce($5::interval, lease) + $6::interval
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3 AND fence = $4 AND EXISTS (
    SELECT FROM memory.conversations
    WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL
)
RETURNING lease_until;

-- name: extend_lease_with_partial
UPDATE memory.open_turns
SET
    lease = coalesce($5::interval, lease),
    lease_until = clock_timestamp() + coalesce($5::interval, lease),
    sweep_at = clock_timestamp() + coalesce($5::interval, lease) + $6::interval,
    partial_roles = $7, partial_contents = $8, partial_rests = $9, partial_token_counts = $10, partial_bytes = $11
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3 AND fence = $4 AND EXISTS (
    SELECT FROM memory.conversations
    WHERE workspace_id = $1 AND thread_id = $2 AND deleted_at IS NULL AND erased_at IS NULL
)
RETURNING lease_until;

-- name: hold_open_turn
-- $3 the next fence, $4 the lease, $5 the grace behind it, $6 who holds it now
UPDATE memory.open_turns
SET
    fence = $3, lease = $4::interval, lease_until = clock_timestamp() + $4::interval,
    sweep_at = clock_timestamp() + $4::interval + $5::interval, holder = $6
WHERE workspace_id = $1 AND thread_id = $2;

-- name: owe_usage
-- A conversation that was begun anew after its erasure may have a turn of the same id: the first one was billed under it.
INSERT INTO memory.owed_usage (
    workspace_id, thread_id, turn_id, event_id, user_id, agent_id, event_time, input_tokens, output_tokens
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (workspace_id, thread_id, turn_id) DO NOTHING;

-- name: owed_usage_after
-- Those that have been owed for $1, from behind ($2, $3, $4) on.
SELECT workspace_id, thread_id, turn_id, event_id, user_id, agent_id, event_time, input_tokens, output_tokens
FROM memory.owed_usage
WHERE (workspace_id, thread_id, turn_id) > ($2, $3, $4) AND owed_since <= clock_timestamp() - $1::interval
ORDER BY workspace_id, thread_id, turn_id
LIMIT $5;

-- name: acknowledge_usage
DELETE FROM memory.owed_usage o
USING unnest($1::text[], $2::text[], $3::text[]) AS a (workspace_id, thread_id, turn_id)
WHERE o.workspace_id = a.workspace_id AND o.thread_id = a.thread_id AND o.turn_id = a.turn_id;

-- name: forget_open_turn
DELETE FROM memory.open_turns WHERE workspace_id = $1 AND thread_id = $2 AND fence = $3;

-- name: claim_open_turns_left_behind
-- Whoever claims them sees to them; if it fails, somebody else does after $2.
UPDATE memory.open_turns
SET sweep_at = clock_timestamp() + $2::interval
WHERE (workspace_id, thread_id) IN (
    SELECT workspace_id, thread_id FROM memory.open_turns
    WHERE sweep_at <= clock_timestamp()
    ORDER BY sweep_at LIMIT $1
    FOR UPDATE SKIP LOCKED
)
RETURNING workspace_id, thread_id;

-- name: sweep_later
UPDATE memory.open_turns SET sweep_at = clock_timestamp() + $3::interval WHERE workspace_id = $1 AND thread_id = $2;

-- name: forget_lost_waiters
DELETE FROM memory.turn_waiters WHERE workspace_id = $1 AND thread_id = $2 AND seen_at < clock_timestamp() - $3::interval;

-- name: waiters
SELECT turn_id FROM memory.turn_waiters WHERE workspace_id = $1 AND thread_id = $2 ORDER BY place;

-- name: wait_for_turn
INSERT INTO memory.turn_waiters (workspace_id, thread_id, place, turn_id, ticket, seen_at)
SELECT $1, $2, coalesce(max(place), 0) + 1, $3, $4, clock_timestamp()
FROM memory.turn_waiters WHERE workspace_id = $1 AND thread_id = $2
ON CONFLICT (workspace_id, thread_id, turn_id) DO UPDATE SET ticket = excluded.ticket, seen_at = excluded.seen_at;

-- name: waiter_is_served
DELETE FROM memory.turn_waiters WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3;

-- name: leave_queue
DELETE FROM memory.turn_waiters WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3 AND ticket = $4;

-- name: waiters_are_here
-- Renews rows of waiters, and says of each whether it may try: it is the first, and nobody holds the conversation. Rows that
-- somebody else works on at the moment are left out, and so are those that are gone.
UPDATE memory.turn_waiters w
SET seen_at = clock_timestamp()
FROM (
    SELECT w.workspace_id, w.thread_id, w.place, k.asked
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (workspace_id, thread_id, turn_id, asked)
    JOIN memory.turn_waiters w ON w.workspace_id = k.workspace_id AND w.thread_id = k.thread_id AND w.turn_id = k.turn_id
    FOR UPDATE OF w SKIP LOCKED
) here
WHERE w.workspace_id = here.workspace_id AND w.thread_id = here.thread_id AND w.place = here.place
RETURNING
    here.asked,
    NOT EXISTS (
        SELECT FROM memory.open_turns o
        WHERE o.workspace_id = w.workspace_id AND o.thread_id = w.thread_id AND o.lease_until > clock_timestamp()
    ) AND NOT EXISTS (
        SELECT FROM memory.turn_waiters f
        WHERE f.workspace_id = w.workspace_id AND f.thread_id = w.thread_id AND f.place < w.place
            AND f.seen_at >= clock_timestamp() - $4::interval
    ) AS may_try;
