-- name: newest_changed
SELECT workspace_id, thread_id FROM memory.conversations
WHERE workspace_id = $1 AND deleted_at IS NULL AND erased_at IS NULL
ORDER BY listed_at DESC, thread_id DESC
LIMIT $2;

-- name: newest_changed_of_all
-- Reads all conversations: no index has them in this order across workspaces. For operators, on connections for long work.
SELECT workspace_id, thread_id FROM memory.conversations
WHERE deleted_at IS NULL AND erased_at IS NULL
ORDER BY listed_at DESC, workspace_id DESC, thread_id DESC
LIMIT $1;

-- name: audited_messages
-- A head and its messages from $3 on and before $4, in one statement: one snapshot. Not much more than $5 bytes of them.
SELECT
    c.next_seq, c.epoch, c.user_id AS owner, c.erased_at IS NOT NULL AS erased,
    coalesce(c.deleted_at, c.erased_at) IS NOT NULL AS deleted,
    m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
FROM memory.conversations c
LEFT JOIN LATERAL (
    SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
    FROM (
        SELECT
            m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision,
            sum(octet_length(m.rest) + coalesce(octet_length(m.content), 0))
                OVER (ORDER BY m.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM memory.segments(c) s
        CROSS JOIN LATERAL (
            SELECT seq, turn_id, turn_index, role, content, rest, token_count, created_at, status, revision
            FROM memory.messages m
            WHERE m.workspace_id = c.workspace_id AND m.thread_id = s.thread_id
                AND m.seq > s.after_seq AND m.seq <= s.last_seq AND m.seq >= $3::bigint AND m.seq < $4::bigint
            ORDER BY m.seq
            LIMIT 500
        ) m
    ) m
    WHERE coalesce(bytes_before, 0) <= $5
) m ON true
WHERE c.workspace_id = $1 AND c.thread_id = $2
ORDER BY m.seq;

-- name: audited_numbers
-- Over all segments of a conversation: numbers without a message, messages without a turn that covers them in their place, and
-- messages of its own beyond the last number. Reads the whole conversation.
WITH segments AS (
    SELECT s.thread_id, s.after_seq, s.last_seq
    FROM memory.conversations c
    CROSS JOIN LATERAL memory.segments(c) s
    WHERE c.workspace_id = $1 AND c.thread_id = $2 AND s.last_seq > s.after_seq
), looked AS (
    SELECT
        s.thread_id, m.seq, lag(m.seq, 1, s.after_seq) OVER (PARTITION BY s.thread_id ORDER BY m.seq) AS former_seq,
        t.turn_id IS NULL AS stray
    FROM segments s
    JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = s.thread_id
        AND m.seq > s.after_seq AND m.seq <= s.last_seq
    LEFT JOIN memory.turns t ON t.workspace_id = $1 AND t.thread_id = s.thread_id AND t.turn_id = m.turn_id
        AND NOT t.dead AND m.seq BETWEEN t.first_seq AND t.last_seq AND m.seq - t.first_seq = m.turn_index
), judged AS (
    SELECT
        s.last_seq - s.after_seq - count(l.seq) AS missing_count,
        least(
            min(l.former_seq + 1) FILTER (WHERE l.seq > l.former_seq + 1),
            CASE WHEN coalesce(max(l.seq), s.after_seq) < s.last_seq THEN coalesce(max(l.seq), s.after_seq) + 1 END
        ) AS missing_seq,
        count(*) FILTER (WHERE l.stray) AS stray_count,
        min(l.seq) FILTER (WHERE l.stray) AS stray_seq
    FROM segments s
    LEFT JOIN looked l ON l.thread_id = s.thread_id
    GROUP BY s.thread_id, s.after_seq, s.last_seq
)
SELECT
    coalesce(sum(missing_count), 0)::bigint AS missing_count, coalesce(min(missing_seq), 0) AS missing_seq,
    coalesce(sum(stray_count), 0)::bigint AS stray_count, coalesce(min(stray_seq), 0) AS stray_seq,
    (
        SELECT count(*)
        FROM memory.conversations c
        JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = $2 AND m.seq >= c.next_seq
        WHERE c.workspace_id = $1 AND c.thread_id = $2
    ) AS beyond_count
FROM judged;
