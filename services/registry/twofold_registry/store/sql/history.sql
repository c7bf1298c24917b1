-- name: read_head
-- The epoch is NULL if this is another Postgres, or another past, than the history was last read in: then it is to be renewed
-- before anything is answered.
SELECT CASE WHEN fingerprint = registry.fingerprint() THEN epoch END AS epoch, revision FROM registry.registry_head;

-- name: read_replayed_head
-- At a replica: what it has replayed. Without the fingerprint, which fails there; no row where there is no replica any more.
SELECT epoch, revision FROM registry.registry_head WHERE pg_is_in_recovery();

-- name: renew_epoch
UPDATE registry.registry_head
SET epoch = greatest(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint), epoch_at = clock_timestamp(),
    fingerprint = registry.fingerprint()
WHERE fingerprint <> registry.fingerprint();

-- name: take_revision
-- The last lock of a change, held to its commit. The time is read under it, so times follow the order of revisions.
UPDATE registry.registry_head h
SET revision = h.revision + 1, tag = $1, fingerprint = here.print,
    epoch = CASE WHEN h.fingerprint = here.print THEN h.epoch
        ELSE greatest(h.epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) END,
    epoch_at = CASE WHEN h.fingerprint = here.print THEN h.epoch_at ELSE clock_timestamp() END
FROM registry.fingerprint() AS here (print)
RETURNING h.epoch, h.revision, h.tag, clock_timestamp() AS at;

-- name: lock_workspace
-- The first lock of a change inside a workspace: what it reads afterwards nobody else changes. The end of the audit chain has a
-- row of its own, so that a reader of the workspace is not in the way.
SELECT w.workspace_id, w.display_name, w.namespace, w.plan, w.state, w.limit_kinds, w.limit_amounts, w.limit_shadows,
    w.allowed_url_suffixes, w.conversation_days, w.session_days,
    w.created_at, w.updated_at, w.deleted_at, w.purge_at, w.revision, c.seq AS chain_seq, c.hash AS chain_hash
FROM registry.workspaces w
JOIN registry.audit_heads c ON c.workspace_id = w.workspace_id
WHERE w.workspace_id = $1 AND (w.deleted_at IS NULL OR $2::boolean AND w.purged_at IS NULL)
FOR NO KEY UPDATE;

-- name: lock_chain
-- The same lock where a workspace may be deleted, and purged.
SELECT c.seq AS chain_seq, c.hash AS chain_hash
FROM registry.workspaces w
JOIN registry.audit_heads c ON c.workspace_id = w.workspace_id
WHERE w.workspace_id = $1
FOR NO KEY UPDATE;

-- name: rehearse_revision
-- For a change that is only tried: nobody waits for it.
SELECT CASE WHEN fingerprint = registry.fingerprint() THEN epoch END AS epoch, clock_timestamp() AS at
FROM registry.registry_head;

-- name: insert_audit_head
INSERT INTO registry.audit_heads (workspace_id) VALUES ($1);

-- name: record_change
-- Audit entries, the new end of their chain, and change rows in one statement: all of it while everybody waits for the head.
WITH chain AS (
    UPDATE registry.audit_heads SET seq = $2, hash = $3 WHERE workspace_id = $1
), entries AS (
    INSERT INTO registry.audit_entries
        (workspace_id, seq, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json,
        request_id, created_at, prev_hash, hash)
    SELECT $1, e.* FROM unnest($4::bigint[], $5::bigint[], $6::integer[], $7::text[], $8::text[], $9::text[], $10::text[],
        $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::bytea[], $16::bytea[]) AS e
)
INSERT INTO registry.changes (revision, tag, at, wait, workspace_id, ordinal, kind, user_id, agent_id, after)
SELECT $17::bigint, $18::bigint, $19::timestamptz, $20::boolean, $1, i.ordinal, i.kind, i.user_id, i.agent_id, i.after
FROM unnest($21::text[], $22::text[], $23::text[], $24::bytea[]) WITH ORDINALITY AS i
    (kind, user_id, agent_id, after, ordinal);

-- name: workspace_lives
SELECT EXISTS (SELECT FROM registry.workspaces WHERE workspace_id = $1 AND deleted_at IS NULL);

-- name: workspace_ever_was
SELECT EXISTS (SELECT FROM registry.workspaces WHERE workspace_id = $1);
