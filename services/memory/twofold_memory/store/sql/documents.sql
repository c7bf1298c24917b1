-- name: count_documents
SELECT count(*) FROM memory.documents WHERE workspace_id = $1 AND thread_id = $2 AND document_id <> $3;

-- name: link_document
INSERT INTO memory.documents AS d (workspace_id, thread_id, document_id, title, url, media_type, metadata)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb)
ON CONFLICT (workspace_id, thread_id, document_id) DO UPDATE
SET
    title = excluded.title, url = excluded.url, media_type = excluded.media_type, metadata = excluded.metadata,
    updated_at = now()
RETURNING document_id, title, url, media_type, metadata, created_at, updated_at;

-- name: unlink_document
DELETE FROM memory.documents WHERE workspace_id = $1 AND thread_id = $2 AND document_id = $3;

-- name: documents_after
SELECT document_id, title, url, media_type, metadata, created_at, updated_at
FROM memory.documents
WHERE workspace_id = $1 AND thread_id = $2 AND document_id > $3
ORDER BY document_id
LIMIT $4;

-- name: documents_of
-- Up to $4 documents of each asked conversation, with the place of that in the question. (LATERAL … LIMIT: a plan from when the
-- tables were small looks rows up by their keys as well.)
SELECT k.place, d.document_id, d.title, d.url, d.media_type, d.metadata, d.created_at, d.updated_at
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (workspace_id, thread_id, user_id, place)
CROSS JOIN LATERAL (
    SELECT c.user_id AS owner
    FROM memory.conversations c
    WHERE c.workspace_id = k.workspace_id AND c.thread_id = k.thread_id AND c.deleted_at IS NULL AND c.erased_at IS NULL
    LIMIT 1
) c
CROSS JOIN LATERAL (
    SELECT document_id, title, url, media_type, metadata, created_at, updated_at
    FROM memory.documents
    WHERE workspace_id = k.workspace_id AND thread_id = k.thread_id
    ORDER BY document_id
    LIMIT $4
) d
WHERE c.owner IS NULL OR k.user_id IS NULL OR c.owner = k.user_id
ORDER BY k.place, d.document_id;
