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
