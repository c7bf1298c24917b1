-- name: feed_look
-- Head, what came behind revision $1, and who is registered: one statement, so that all of it is of one moment. Of the changes
-- whole revisions: those of the first $2 rows, as far as $3 bytes reach, but one at least: each who catches up holds all of them.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch,
    h.revision AS head, h.tag AS head_tag, h.compacted, now() AS at,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(w.router_id, w.incarnation,
        floor(extract(epoch FROM w.expires_at - now()) * 1000)::bigint)), '[]')
    FROM registry.watchers w WHERE w.expires_at > now()) AS routers,
    c.revision, c.tag, c.at AS changed_at, c.wait, c.kind, c.workspace_id, c.user_id, c.agent_id, c.after
FROM registry.registry_head h
LEFT JOIN LATERAL (
    SELECT * FROM registry.changes WHERE revision > $1 AND revision <= (
        SELECT coalesce(max(first.revision) FILTER (WHERE first.bytes <= $3), min(first.revision)) FROM (
            SELECT revision, sum(coalesce(octet_length(after), 0)) OVER (ORDER BY revision, ordinal) AS bytes
            FROM registry.changes WHERE revision > $1 ORDER BY revision, ordinal LIMIT $2
        ) first
    )
) c ON true
ORDER BY c.revision, c.ordinal;

-- name: feed_open
-- The head; the tag that revision $1 has, if it is kept; and the revision of ten minutes ago, or the oldest that is kept.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch,
    h.revision AS head, h.tag AS head_tag, h.compacted, there.tag AS tag_there,
    coalesce(old.revision, h.compacted) AS old,
    coalesce(old.tag, CASE WHEN h.compacted = h.revision THEN h.tag ELSE 0 END) AS old_tag
FROM registry.registry_head h
LEFT JOIN LATERAL (SELECT tag FROM registry.changes WHERE revision = $1 LIMIT 1) there ON true
LEFT JOIN LATERAL (
    SELECT revision, tag FROM registry.changes WHERE at < now() - interval '10 minutes' ORDER BY revision DESC LIMIT 1
) old ON true;

-- name: end_epoch
-- Somebody has seen a past that is not ours.
UPDATE registry.registry_head
SET epoch = greatest(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint), epoch_at = clock_timestamp()
WHERE epoch = $1;

-- name: feed_place
SELECT CASE WHEN fingerprint = registry.fingerprint() THEN epoch END AS epoch, revision, tag FROM registry.registry_head;

-- name: state_of_workspaces
SELECT * FROM registry.workspaces WHERE workspace_id > $1 AND deleted_at IS NULL ORDER BY workspace_id LIMIT $2;

-- name: state_of_users
-- Of deleted workspaces too, and below all grants: they count again when what hides them is restored, and nobody tells then.
SELECT * FROM registry.users WHERE (workspace_id, user_id) > ($1, $2) AND deleted_at IS NULL
ORDER BY workspace_id, user_id LIMIT $3;

-- name: state_of_agents
SELECT a.*, o.observed_targets, o.observed_states, o.observed_generations, o.observed_times, o.observed_messages
FROM (  -- the part first, so that observations are looked up for it only
    SELECT * FROM registry.agents WHERE (workspace_id, agent_id) > ($1, $2) AND deleted_at IS NULL
    ORDER BY workspace_id, agent_id LIMIT $3
) a
CROSS JOIN LATERAL registry.observations_of(a.workspace_id, a.agent_id, a.generation) o
ORDER BY a.workspace_id, a.agent_id;

-- name: state_of_grants
SELECT * FROM registry.grants WHERE (workspace_id, user_id, agent_id) > ($1, $2, $3)
ORDER BY workspace_id, user_id, agent_id LIMIT $4;

-- name: register_router
INSERT INTO registry.watchers (router_id, incarnation, expires_at) VALUES ($1, $2, now() + $3::interval)
ON CONFLICT (router_id, incarnation) DO UPDATE SET expires_at = excluded.expires_at;

-- name: renew_routers
UPDATE registry.watchers w SET expires_at = now() + $3::interval
FROM unnest($1::text[], $2::text[]) AS r (router_id, incarnation)
WHERE w.router_id = r.router_id AND w.incarnation = r.incarnation AND w.expires_at > now();

-- name: forget_router
DELETE FROM registry.watchers WHERE router_id = $1 AND incarnation = $2;

-- name: ack_changes
UPDATE registry.watchers w SET acked_epoch = a.epoch, acked_revision = a.revision
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS a (router_id, incarnation, epoch, revision)
WHERE w.router_id = a.router_id AND w.incarnation = a.incarnation
    AND (w.acked_epoch, w.acked_revision) < (a.epoch, a.revision);

-- name: routers_progress
-- One row at least: without routers its other columns are NULL. In another Postgres than that of the epoch the next one has yet
-- to begin: it is as young as can be.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN extract(epoch FROM clock_timestamp() - h.epoch_at) ELSE 0
    END::float8 AS epoch_age_s, w.router_id, w.incarnation,
    w.expires_at, w.acked_epoch, w.acked_revision
FROM registry.registry_head h
LEFT JOIN registry.watchers w ON w.expires_at > now()
ORDER BY w.router_id, w.incarnation;
