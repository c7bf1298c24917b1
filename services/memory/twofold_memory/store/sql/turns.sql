-- name: append_turns
SELECT place, outcome, first_seq, last_seq, epoch, created_at, owner
FROM memory.append_turns($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- name: heads
-- One row for each asked thread that exists, with its place in the question.
SELECT k.place, c.next_seq, c.epoch, c.user_id AS owner, c.deleted_at IS NOT NULL AS deleted
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (workspace_id, thread_id, place)
JOIN memory.conversations c ON c.workspace_id = k.workspace_id AND c.thread_id = k.thread_id;

-- name: newest
-- Head and newest messages in one statement: one snapshot. Not much more than $4 bytes of them, whatever their number.
SELECT
    c.next_seq, c.epoch, c.user_id AS owner, c.deleted_at IS NOT NULL AS deleted,
    m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at
FROM memory.conversations c
LEFT JOIN LATERAL (
    SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
    FROM (
        SELECT
            seq, turn_id, turn_index, role, content, rest, token_count, created_at,
            sum(octet_length(rest) + coalesce(octet_length(content), 0))
                OVER (ORDER BY seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM (
            SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
            FROM memory.messages
            WHERE workspace_id = c.workspace_id AND thread_id = c.thread_id
            ORDER BY seq DESC
            LIMIT $3
        ) m
    ) m
    WHERE coalesce(bytes_before, 0) <= $4
    ORDER BY seq DESC
) m ON true
WHERE c.workspace_id = $1 AND c.thread_id = $2
ORDER BY m.seq;

-- name: messages_after
-- A page ends with the message that makes it larger than $5 bytes.
SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
FROM (
    SELECT
        seq, turn_id, turn_index, role, content, rest, token_count, created_at,
        sum(octet_length(rest) + coalesce(octet_length(content), 0))
            OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
        FROM memory.messages
        WHERE workspace_id = $1 AND thread_id = $2 AND seq > $3
        ORDER BY seq
        LIMIT $4
    ) m
) m
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY seq;

-- name: messages_before
-- As messages_after, in the other direction.
SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
FROM (
    SELECT
        seq, turn_id, turn_index, role, content, rest, token_count, created_at,
        sum(octet_length(rest) + coalesce(octet_length(content), 0))
            OVER (ORDER BY seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
        FROM memory.messages
        WHERE workspace_id = $1 AND thread_id = $2 AND seq < $3
        ORDER BY seq DESC
        LIMIT $4
    ) m
) m
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY seq DESC;

-- name: turn
SELECT first_seq, last_seq, epoch, input_tokens, output_tokens, created_at
FROM memory.turns
WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3;

-- name: messages_between
SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at
FROM memory.messages
WHERE workspace_id = $1 AND thread_id = $2 AND seq BETWEEN $3 AND $4
ORDER BY seq;
