-- name: count_summary_change
INSERT INTO memory.record_heads AS h (workspace_id, thread_id, summary_version)
VALUES ($1, $2, 1)
ON CONFLICT (workspace_id, thread_id) DO UPDATE SET summary_version = h.summary_version + 1
RETURNING summary_version;

-- name: put_summary
-- No row: the id is taken.
INSERT INTO memory.summaries (
    workspace_id, thread_id, version, summary_id, first_seq, last_seq, text, token_count, model, author, metadata, epoch
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12)
ON CONFLICT (workspace_id, thread_id, summary_id) DO NOTHING
RETURNING created_at;

-- name: summary
SELECT version, summary_id, first_seq, last_seq, text, token_count, model, author, metadata, epoch, created_at
FROM memory.summaries
WHERE workspace_id = $1 AND thread_id = $2 AND summary_id = $3;

-- name: summaries_before
-- A page ends with the summary that makes it larger than $5 bytes.
SELECT version, summary_id, first_seq, last_seq, text, token_count, model, author, metadata, epoch, created_at
FROM (
    SELECT
        version, summary_id, first_seq, last_seq, text, token_count, model, author, metadata, epoch, created_at,
        sum(octet_length(text) + octet_length(metadata::text))
            OVER (ORDER BY version DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT version, summary_id, first_seq, last_seq, text, token_count, model, author, metadata, epoch, created_at
        FROM memory.summaries
        WHERE workspace_id = $1 AND thread_id = $2 AND version < $3
        ORDER BY version DESC
        LIMIT $4
    ) s
) s
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY version DESC;

-- name: newest_summaries
-- One row for each of the $3 newest summaries of each asked conversation, with the place of that in the question; one row
-- without a summary if it has none. (LATERAL … LIMIT 1: a plan from when the tables were small looks rows up by their keys as well.)
SELECT
    k.place, c.epoch AS thread_epoch, coalesce(h.summary_version, 0) AS version_of_all,
    s.version, s.summary_id, s.first_seq, s.last_seq, s.text, s.token_count, s.model, s.author, s.metadata, s.epoch, s.created_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (workspace_id, thread_id, place)
CROSS JOIN LATERAL (
    SELECT epoch
    FROM memory.conversations
    WHERE workspace_id = k.workspace_id AND thread_id = k.thread_id AND deleted_at IS NULL AND erased_at IS NULL
    LIMIT 1
) c
LEFT JOIN LATERAL (
    SELECT summary_version FROM memory.record_heads WHERE workspace_id = k.workspace_id AND thread_id = k.thread_id LIMIT 1
) h ON true
LEFT JOIN LATERAL (
    SELECT version, summary_id, first_seq, last_seq, text, token_count, model, author, metadata, epoch, created_at
    FROM memory.summaries
    WHERE workspace_id = k.workspace_id AND thread_id = k.thread_id
    ORDER BY version DESC
    LIMIT $3
) s ON true
ORDER BY k.place, s.version DESC;

-- name: delete_summary
DELETE FROM memory.summaries WHERE workspace_id = $1 AND thread_id = $2 AND summary_id = $3 RETURNING version;
