-- name: make_conversation
INSERT INTO memory.conversations (workspace_id, thread_id, user_id) VALUES ($1, $2, $3)
ON CONFLICT (workspace_id, thread_id) DO NOTHING;

-- name: lock_for_drain
SELECT epoch, user_id, erased_at IS NOT NULL AS erased
FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = $2
FOR UPDATE;

-- name: known_turns
SELECT turn_id, payload_hash, first_seq, last_seq, dead, created_at, order_unverified
FROM memory.turns
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = ANY ($3::text[]);

-- name: bury_turn
INSERT INTO memory.turns (
    workspace_id, thread_id, turn_id, payload_hash, first_seq, last_seq, epoch, created_at, dead
)
VALUES ($1, $2, $3, $4, 0, 0, $5, now(), true);

-- name: keep_dead_letter
INSERT INTO memory.dead_letters (workspace_id, thread_id, turn_id, payload_hash, reason, sqlstate, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (workspace_id, thread_id, turn_id, payload_hash) DO NOTHING;
