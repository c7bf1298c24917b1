-- All of these run as the system role, take how many rows at most ($1), and answer how many they were. Several processes at once
-- do each other no harm: what one has locked the others leave to it. Their time is the database's.

-- name: compact_changes
-- The head says which changes are gone before they are; the newest revision's stay, so that who is at the head can go on. Only
-- whole revisions go, so it may be some rows more.
WITH oldest AS (
    SELECT revision, at FROM registry.changes ORDER BY revision, ordinal LIMIT $1
), bound AS (
    SELECT least(
        max(revision),
        min(revision) FILTER (WHERE at >= now() - make_interval(secs => $2)) - 1,
        (SELECT revision - 1 FROM registry.registry_head)
    ) AS revision
    FROM oldest
    HAVING count(*) > 0
), head AS (
    UPDATE registry.registry_head h SET compacted = bound.revision
    FROM bound
    WHERE bound.revision > h.compacted
    RETURNING h.compacted
), gone AS (
    DELETE FROM registry.changes c USING head WHERE c.revision <= head.compacted RETURNING c.revision
)
SELECT count(*) FROM gone;

-- name: forget_watchers
WITH gone AS (
    DELETE FROM registry.watchers WHERE (router_id, incarnation) IN (
        SELECT router_id, incarnation FROM registry.watchers WHERE expires_at < now() ORDER BY expires_at LIMIT $1
        FOR UPDATE SKIP LOCKED)
    RETURNING router_id
)
SELECT count(*) FROM gone;

-- name: forget_sessions
WITH gone AS (
    DELETE FROM registry.sessions WHERE (workspace_id, session_id, fence) IN (
        SELECT workspace_id, session_id, fence FROM registry.sessions WHERE heard_at < now() - make_interval(days => $2)
        ORDER BY heard_at LIMIT $1
        FOR UPDATE SKIP LOCKED)
    RETURNING session_id
)
SELECT count(*) FROM gone;

-- name: forget_sessions_by_retention
-- Of workspaces that have a retention of their own, and of those that are purged: what was told of these before the time that the
-- registry keeps any ($2) is gone already.
WITH gone AS (
    DELETE FROM registry.sessions WHERE (workspace_id, session_id, fence) IN (
        SELECT s.workspace_id, s.session_id, s.fence
        FROM registry.workspaces w
        CROSS JOIN LATERAL (
            SELECT workspace_id, session_id, fence FROM registry.sessions
            WHERE workspace_id = w.workspace_id
                AND heard_at < now() - make_interval(days => CASE WHEN w.purged_at IS NULL THEN w.session_days ELSE 0 END)
            ORDER BY heard_at LIMIT $1
            FOR UPDATE SKIP LOCKED
        ) s
        WHERE w.session_days > 0 OR w.purged_at > now() - make_interval(days => $2)
        LIMIT $1)
    RETURNING session_id
)
SELECT count(*) FROM gone;

-- name: give_up_silent_pods
-- Whoever holds a pod's lease asks about it; of one that nobody asks about nobody will tell that it died.
WITH given_up AS (
    UPDATE registry.pods
    SET state = 'dead', dead_at = now(), dead_reason = 'nobody has asked about it for too long', marked_by = 'registry'
    WHERE pod_id IN (
        SELECT pod_id FROM registry.pods WHERE state = 'live' AND seen_at < now() - make_interval(days => $2)
        ORDER BY seen_at LIMIT $1
        FOR UPDATE SKIP LOCKED)
    RETURNING pod_id
)
SELECT count(*) FROM given_up;

-- name: forget_pods
-- Then its incarnations are unknown, which none that is alive can become either.
WITH gone AS (
    DELETE FROM registry.pods WHERE pod_id IN (
        SELECT pod_id FROM registry.pods WHERE state = 'dead' AND dead_at < now() - make_interval(days => $2)
        ORDER BY dead_at LIMIT $1
        FOR UPDATE SKIP LOCKED)
    RETURNING pod_id
)
SELECT count(*) FROM gone;
