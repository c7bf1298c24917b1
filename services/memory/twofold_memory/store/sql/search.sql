-- name: search_within
SET LOCAL statement_timeout = '5s';

-- name: search_has_words
SELECT numnode(websearch_to_tsquery('simple', $1)) > 0;

-- name: search_workspace
-- $2 the words, $3 a user or null, $4 and $5 from when and until when or null, $6 whether the rank comes first, $7 … $10 the hit to
-- begin behind (null on the first page), $11 how many. What is not in the index yet, or stands there as it was before a change, is
-- looked at itself.
SELECT f.thread_id, f.seq, f.created_at, f.rank, f.micros
FROM (
    SELECT
        e.thread_id, e.seq, e.created_at, e.rank,
        CASE WHEN $6::boolean THEN round(e.rank::numeric * 1000000)::bigint ELSE 0 END AS micros
    FROM (
        SELECT e.thread_id, e.seq, e.created_at, ts_rank(e.words, websearch_to_tsquery('simple', $2)) AS rank
        FROM memory.search_entries e
        WHERE e.words @@ memory.search_query($1, $2) AND e.workspace_id = $1
            AND NOT EXISTS (
                SELECT FROM memory.search_pending p
                WHERE p.workspace_id = $1 AND p.thread_id = e.thread_id AND e.seq BETWEEN p.first_seq AND p.last_seq
            )
        UNION
        SELECT m.thread_id, m.seq, m.created_at, ts_rank(v.words, websearch_to_tsquery('simple', $2))
        FROM memory.search_pending p
        JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = p.thread_id
            AND m.seq BETWEEN p.first_seq AND p.last_seq
        CROSS JOIN LATERAL (SELECT memory.search_words(m.workspace_id, m.content, m.rest) AS words OFFSET 0) v
        WHERE p.workspace_id = $1 AND m.status IN (0, 1) AND v.words @@ memory.search_query($1, $2)
    ) e
    WHERE e.created_at >= coalesce($4::timestamptz, '-infinity') AND e.created_at < coalesce($5::timestamptz, 'infinity')
) f
JOIN memory.conversations c ON c.workspace_id = $1 AND c.thread_id = f.thread_id
WHERE c.deleted_at IS NULL AND c.erased_at IS NULL AND ($3::text IS NULL OR c.user_id = $3)
    AND ($7::bigint IS NULL OR (f.micros, f.created_at, f.thread_id, f.seq) < ($7, $8::timestamptz, $9::text, $10::bigint))
ORDER BY f.micros DESC, f.created_at DESC, f.thread_id DESC, f.seq DESC
LIMIT $11;

-- name: search_conversation
-- As search_workspace, of what can be read in the conversation $3.
WITH places AS MATERIALIZED (
    SELECT s.thread_id, s.after_seq, s.last_seq
    FROM memory.conversations c
    CROSS JOIN LATERAL memory.segments(c) s
    WHERE c.workspace_id = $1 AND c.thread_id = $3
)
SELECT f.thread_id, f.seq, f.created_at, f.rank, f.micros
FROM (
    SELECT
        e.thread_id, e.seq, e.created_at, e.rank,
        CASE WHEN $6::boolean THEN round(e.rank::numeric * 1000000)::bigint ELSE 0 END AS micros
    FROM (
        SELECT e.thread_id, e.seq, e.created_at, ts_rank(e.words, websearch_to_tsquery('simple', $2)) AS rank
        FROM places s
        JOIN memory.search_entries e ON e.workspace_id = $1 AND e.thread_id = s.thread_id
            AND e.seq > s.after_seq AND e.seq <= s.last_seq
        WHERE e.words @@ memory.search_query($1, $2)
            AND NOT EXISTS (
                SELECT FROM memory.search_pending p
                WHERE p.workspace_id = $1 AND p.thread_id = e.thread_id AND e.seq BETWEEN p.first_seq AND p.last_seq
            )
        UNION
        SELECT m.thread_id, m.seq, m.created_at, ts_rank(v.words, websearch_to_tsquery('simple', $2))
        FROM places s
        JOIN memory.search_pending p ON p.workspace_id = $1 AND p.thread_id = s.thread_id
        JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = p.thread_id
            AND m.seq BETWEEN greatest(p.first_seq, s.after_seq + 1) AND least(p.last_seq, s.last_seq)
        CROSS JOIN LATERAL (SELECT memory.search_words(m.workspace_id, m.content, m.rest) AS words OFFSET 0) v
        WHERE m.status IN (0, 1) AND v.words @@ memory.search_query($1, $2)
    ) e
    WHERE e.created_at >= coalesce($4::timestamptz, '-infinity') AND e.created_at < coalesce($5::timestamptz, 'infinity')
) f
WHERE $7::bigint IS NULL OR (f.micros, f.created_at, f.thread_id, f.seq) < ($7, $8::timestamptz, $9::text, $10::bigint)
ORDER BY f.micros DESC, f.created_at DESC, f.thread_id DESC, f.seq DESC
LIMIT $11;

-- name: messages_around
-- Of each hit the message itself first, then those around it from the nearest on, as far as all of them have $5 bytes; `there` is
-- how many there would be. $2 and $3 the hits, $4 how many before and after, $6 the words, $7 the conversation that they are read
-- in (null: each in its own): a branch goes on otherwise than the conversation that a hit was said in.
SELECT
    m.place, m.there, m.owner,
    CASE WHEN m.distance = 0 THEN left(ts_headline(
        'simple', coalesce(memory.spoken(m.content, m.rest), ''), websearch_to_tsquery('simple', $6),
        'StartSel=«, StopSel=», MaxFragments=2, MaxWords=20, MinWords=8, FragmentDelimiter=" … "'
    ), 400) END AS snippet,
    m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
FROM (
    SELECT
        h.place, o.user_id AS owner, abs(m.seq - h.seq) AS distance, count(*) OVER (PARTITION BY h.place) AS there,
        sum(octet_length(m.rest) + coalesce(octet_length(m.content), 0) + 100) OVER (
            ORDER BY h.place, abs(m.seq - h.seq), m.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS bytes,
        m.seq, m.turn_id, m.turn_index, m.role, m.content, m.rest, m.token_count, m.created_at, m.status, m.revision
    FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS h (thread_id, seq, place)
    JOIN memory.conversations o ON o.workspace_id = $1 AND o.thread_id = h.thread_id
    JOIN memory.conversations c ON c.workspace_id = $1 AND c.thread_id = coalesce($7, h.thread_id)
    CROSS JOIN LATERAL memory.segments(c) s
    JOIN memory.messages m ON m.workspace_id = $1 AND m.thread_id = s.thread_id
        AND m.seq BETWEEN greatest(h.seq - $4::bigint, s.after_seq + 1) AND least(h.seq + $4::bigint, s.last_seq)
) m
WHERE m.bytes <= $5::bigint OR (m.place = 1 AND m.distance = 0)
ORDER BY m.place, m.seq;

-- name: index_pending
-- Looks at what some turns and changes have left to be looked at; returns how many of these there were. One statement is one
-- snapshot: what it finds noted, it finds as it was noted, or later.
WITH taken AS (
    SELECT p.ctid AS row, p.workspace_id, p.thread_id, p.first_seq, p.last_seq
    FROM memory.search_pending p
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM memory.search_pending p USING taken t WHERE p.ctid = t.row
), seen AS (
    INSERT INTO memory.search_entries AS e (workspace_id, thread_id, seq, revision, created_at, words)
    SELECT DISTINCT ON (m.workspace_id, m.thread_id, m.seq)
        m.workspace_id, m.thread_id, m.seq, m.revision, m.created_at,
        CASE WHEN m.status IN (0, 1) THEN memory.search_words(m.workspace_id, m.content, m.rest) ELSE '' END
    FROM taken t
    JOIN memory.messages m ON m.workspace_id = t.workspace_id AND m.thread_id = t.thread_id
        AND m.seq BETWEEN t.first_seq AND t.last_seq
    ORDER BY m.workspace_id, m.thread_id, m.seq
    ON CONFLICT (workspace_id, thread_id, seq) DO UPDATE
    SET revision = excluded.revision, words = excluded.words
    WHERE e.revision <= excluded.revision
)
SELECT count(*) FROM taken;
