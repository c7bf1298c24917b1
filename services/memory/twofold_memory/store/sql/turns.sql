-- name: append_turns
SELECT place, outcome, first_seq, last_seq, epoch, created_at, owner, order_unverified
FROM memory.append_turns($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19);

-- name: heads
-- One row for each asked thread that exists, with its place in the question.
SELECT
    k.place, c.next_seq, c.epoch, c.user_id AS owner, c.erased_at IS NOT NULL AS erased,
    coalesce(c.deleted_at, c.erased_at) IS NOT NULL AS deleted
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (workspace_id, thread_id, place)
JOIN memory.conversations c ON c.workspace_id = k.workspace_id AND c.thread_id = k.thread_id;

-- name: newest
-- Head and newest messages in one statement: one snapshot. Not much more than $4 bytes of them, whatever their number.
SELECT
    c.next_seq, c.epoch, c.user_id AS owner, c.erased_at IS NOT NULL AS erased,
    coalesce(c.deleted_at, c.erased_at) IS NOT NULL AS deleted,
    m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
FROM memory.conversations c
LEFT JOIN LATERAL (
    SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
    FROM (
        SELECT
            seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision,
            sum(octet_length(rest) + coalesce(octet_length(content), 0))
                OVER (ORDER BY seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM (
            SELECT m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
            FROM memory.segments(c) s
            CROSS JOIN LATERAL (
                SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
                FROM memory.messages m
                WHERE m.workspace_id = c.workspace_id AND m.thread_id = s.thread_id
                    AND m.seq > s.after_seq AND m.seq <= s.last_seq
                ORDER BY m.seq DESC
                LIMIT $3
            ) m
            ORDER BY m.seq DESC
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
SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
FROM (
    SELECT
        seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision,
        sum(octet_length(rest) + coalesce(octet_length(content), 0))
            OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
        FROM memory.conversations c
        CROSS JOIN LATERAL memory.segments(c) s
        CROSS JOIN LATERAL (
            SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
            FROM memory.messages m
            WHERE m.workspace_id = $1 AND m.thread_id = s.thread_id
                AND m.seq > s.after_seq AND m.seq <= s.last_seq AND m.seq > $3
            ORDER BY m.seq
            LIMIT $4
        ) m
        WHERE c.workspace_id = $1 AND c.thread_id = $2
        ORDER BY m.seq
        LIMIT $4
    ) m
) m
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY seq;

-- name: messages_before
-- As messages_after, in the other direction.
SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
FROM (
    SELECT
        seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision,
        sum(octet_length(rest) + coalesce(octet_length(content), 0))
            OVER (ORDER BY seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
        FROM memory.conversations c
        CROSS JOIN LATERAL memory.segments(c) s
        CROSS JOIN LATERAL (
            SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
            FROM memory.messages m
            WHERE m.workspace_id = $1 AND m.thread_id = s.thread_id
                AND m.seq > s.after_seq AND m.seq <= s.last_seq AND m.seq < $3
            ORDER BY m.seq DESC
            LIMIT $4
        ) m
        WHERE c.workspace_id = $1 AND c.thread_id = $2
        ORDER BY m.seq DESC
        LIMIT $4
    ) m
) m
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY seq DESC;

-- name: turn
-- A branch has the turns that it shares, too, up to where it was branched off.
SELECT t.first_seq, least(t.last_seq, s.last_seq) AS last_seq, c.epoch, t.input_tokens, t.output_tokens, t.created_at
FROM memory.conversations c
CROSS JOIN LATERAL memory.segments(c) s
JOIN memory.turns t ON t.workspace_id = $1 AND t.thread_id = s.thread_id AND t.turn_id = $3
WHERE c.workspace_id = $1 AND c.thread_id = $2 AND t.first_seq > s.after_seq AND t.first_seq <= s.last_seq
ORDER BY t.first_seq DESC
LIMIT 1;

-- name: messages_between
-- Of one turn: 500 at most. (LIMIT also keeps each segment a look-up of its own.)
SELECT m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
FROM memory.conversations c
CROSS JOIN LATERAL memory.segments(c) s
CROSS JOIN LATERAL (
    SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
    FROM memory.messages m
    WHERE m.workspace_id = $1 AND m.thread_id = s.thread_id
        AND m.seq > s.after_seq AND m.seq <= s.last_seq AND m.seq >= $3::bigint AND m.seq <= $4::bigint
    ORDER BY m.seq
    LIMIT 500
) m
WHERE c.workspace_id = $1 AND c.thread_id = $2
ORDER BY m.seq;
