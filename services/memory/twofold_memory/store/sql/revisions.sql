-- name: lock_family
-- A conversation and all that share messages of it, locked in the order of appends. One can be branched off while this waits:
-- to be asked again until nobody is new.
SELECT
    c.thread_id, c.user_id, c.next_seq, c.epoch, c.ancestors, c.shared_until, c.floor_seq,
    coalesce(c.deleted_at, c.erased_at) IS NOT NULL AS deleted
FROM memory.conversations c
WHERE c.workspace_id = $1 AND c.thread_id = ANY (ARRAY(
    SELECT $2::text
    UNION ALL
    SELECT d.thread_id
    FROM memory.conversations d
    WHERE d.workspace_id = $1 AND d.ancestors <> '{}' AND d.ancestors @> ARRAY[$2::text]
))
ORDER BY c.thread_id
FOR UPDATE OF c;

-- name: family_epochs
SELECT c.thread_id, c.epoch
FROM memory.conversations c
WHERE c.workspace_id = $1 AND c.thread_id = ANY (ARRAY(
    SELECT $2::text
    UNION ALL
    SELECT d.thread_id
    FROM memory.conversations d
    WHERE d.workspace_id = $1 AND d.ancestors <> '{}' AND d.ancestors @> ARRAY[$2::text]
));

-- name: raise_epochs
-- Of the conversation and of those that share its message $3, out of the ones that are locked ($4); asks for the end of their
-- windows.
WITH raised AS (
    UPDATE memory.conversations c
    SET
        epoch = c.epoch + 1,
        updated_at = now(),
        listed_at = CASE WHEN c.listed_at < now() - interval '1 minute' THEN now() ELSE c.listed_at END
    WHERE c.workspace_id = $1 AND c.thread_id = ANY ($4::text[]) AND c.erased_at IS NULL
        AND (c.thread_id = $2 OR c.shared_until[array_position(c.ancestors, $2)] >= $3::bigint)
    RETURNING c.thread_id, c.epoch
), asked AS (
    INSERT INTO memory.window_purges (workspace_id, thread_id, epoch)
    SELECT $1, thread_id, epoch FROM raised
    ON CONFLICT (workspace_id, thread_id)
    DO UPDATE SET epoch = excluded.epoch, asked_at = now(), done = false, erased = false
)
SELECT thread_id, epoch FROM raised;

-- name: ask_purges
INSERT INTO memory.window_purges (workspace_id, thread_id, epoch)
SELECT $1, p.thread_id, p.epoch FROM unnest($2::text[], $3::bigint[]) AS p (thread_id, epoch)
ON CONFLICT (workspace_id, thread_id)
DO UPDATE SET epoch = excluded.epoch, asked_at = now(), done = false, erased = false;

-- name: message_body
SELECT role, content, rest, token_count, status, revision, turn_id
FROM memory.messages
WHERE workspace_id = $1 AND thread_id = $2 AND seq = $3;

-- name: turn_bytes
SELECT sum(octet_length(m.rest) + coalesce(octet_length(m.content), 0))::bigint
FROM memory.turns t
JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = $2 AND m.seq BETWEEN t.first_seq AND t.last_seq
WHERE t.workspace_id = $1 AND t.thread_id = $2 AND t.turn_id = $3;

-- name: revise_message
-- $4 … $8 what it becomes, $9 … $11 which change that is, and why, and by whom. What it was is kept.
WITH kept AS (
    INSERT INTO memory.message_revisions (
        workspace_id, thread_id, seq, revision, kind, content, rest, token_count, reason, actor
    )
    SELECT workspace_id, thread_id, seq, $8, $9, content, rest, token_count, $10, $11
    FROM memory.messages
    WHERE workspace_id = $1 AND thread_id = $2 AND seq = $3
)
UPDATE memory.messages
SET content = $4, rest = $5, token_count = $6, status = $7, revision = $8
WHERE workspace_id = $1 AND thread_id = $2 AND seq = $3;

-- name: redact_revisions
UPDATE memory.message_revisions
SET content = NULL, rest = NULL, token_count = NULL
WHERE workspace_id = $1 AND thread_id = $2 AND seq = $3;

-- name: redact_search_entry
-- At once, and not only when a worker looks at the change. Who looked at the message before cannot put its words back.
INSERT INTO memory.search_entries (workspace_id, thread_id, seq, revision, created_at, words)
SELECT workspace_id, thread_id, seq, revision, created_at, ''
FROM memory.messages
WHERE workspace_id = $1 AND thread_id = $2 AND seq = $3
ON CONFLICT (workspace_id, thread_id, seq) DO UPDATE SET revision = excluded.revision, words = excluded.words;

-- name: last_turn
-- The conversation's own last turn that was not taken back: found from its end, not by reading its turns.
SELECT t.turn_id, t.first_seq, t.last_seq
FROM memory.messages m
CROSS JOIN LATERAL (
    SELECT t.turn_id, t.first_seq, t.last_seq
    FROM memory.turns t
    WHERE t.workspace_id = m.workspace_id AND t.thread_id = m.thread_id AND t.turn_id = m.turn_id AND t.status <> 2
    LIMIT 1
) t
WHERE m.workspace_id = $1 AND m.thread_id = $2
ORDER BY m.seq DESC
LIMIT 1;

-- name: pop_messages
WITH popped AS (
    SELECT seq, content, rest, token_count, revision
    FROM memory.messages
    WHERE workspace_id = $1 AND thread_id = $2 AND seq BETWEEN $3 AND $4 AND status <> 2
), kept AS (
    INSERT INTO memory.message_revisions (
        workspace_id, thread_id, seq, revision, kind, content, rest, token_count, reason, actor
    )
    SELECT $1, $2, seq, revision + 1, 4, content, rest, token_count, $5, $6
    FROM popped
)
UPDATE memory.messages m
SET content = NULL, rest = '', token_count = NULL, status = 2, revision = m.revision + 1
FROM popped
WHERE m.workspace_id = $1 AND m.thread_id = $2 AND m.seq = popped.seq;

-- name: pop_turn
UPDATE memory.turns SET status = 2 WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = $3;

-- name: popped_messages
-- As they were, without those that were redacted since; only the last change of a message can be that it was taken back.
SELECT
    m.seq, m.turn_id, m.turn_index, m.role, r.content, r.rest, r.token_count, m.created_at,
    0::smallint AS status, r.revision - 1 AS revision
FROM memory.turns t
CROSS JOIN LATERAL (
    SELECT m.seq, m.turn_id, m.turn_index, m.role, m.created_at
    FROM memory.messages m
    WHERE m.workspace_id = $1 AND m.thread_id = $2 AND m.seq BETWEEN t.first_seq AND t.last_seq
    ORDER BY m.seq
    LIMIT 500
) m
CROSS JOIN LATERAL (
    SELECT r.revision, r.content, r.rest, r.token_count
    FROM memory.message_revisions r
    WHERE r.workspace_id = $1 AND r.thread_id = $2 AND r.seq = m.seq AND r.kind = 4
    ORDER BY r.revision DESC
    LIMIT 1
) r
WHERE t.workspace_id = $1 AND t.thread_id = $2 AND t.turn_id = $3 AND r.rest IS NOT NULL
ORDER BY m.seq;

-- name: lineage
SELECT
    c.thread_id, c.user_id, c.next_seq, c.epoch, c.ancestors, c.shared_until, c.floor_seq,
    coalesce(c.deleted_at, c.erased_at) IS NOT NULL AS deleted
FROM memory.conversations c
WHERE c.workspace_id = $1 AND c.thread_id = $2;

-- name: revisions_after
-- A page ends with the revision that makes it larger than $6 bytes.
SELECT
    revision, kind, content, rest, token_count, reason, actor, created_at,
    role, turn_id, turn_index, said_at
FROM (
    SELECT
        r.revision, r.kind, r.content, r.rest, r.token_count, r.reason, r.actor, r.created_at,
        m.role, m.turn_id, m.turn_index, m.created_at AS said_at,
        sum(coalesce(octet_length(r.rest), 0) + coalesce(octet_length(r.content), 0))
            OVER (ORDER BY r.revision ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT seq, revision, kind, content, rest, token_count, reason, actor, created_at
        FROM memory.message_revisions
        WHERE workspace_id = $1 AND thread_id = $2 AND seq = $3 AND revision > $4
        ORDER BY revision
        LIMIT $5
    ) r
    JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = $2 AND m.seq = r.seq
) r
WHERE coalesce(bytes_before, 0) <= $6
ORDER BY revision;
