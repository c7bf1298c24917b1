-- name: check_facts
-- One statement, so that the revision is that of all facts beside it, and that the router is registered at that moment. Where
-- nothing is asked there is one row, of the head alone. LIMIT 1 keeps each look-up a walk down one index, whatever is planned.
WITH head AS MATERIALIZED (
    SELECT CASE WHEN fingerprint = registry.fingerprint() THEN epoch END AS epoch, revision AS head_revision, now() AS at
    FROM registry.registry_head
)
SELECT w.state IS NOT NULL AS workspace_lives, coalesce(w.state = 'suspended', false) AS workspace_suspended,
    u.role, coalesce(u.state = 'suspended', false) AS user_suspended,
    a.state IS NOT NULL AS agent_lives, coalesce(a.state = 'gone', false) AS agent_gone,
    g.granted IS NOT NULL AS granted, g.expires_at,
    head.at, head.epoch, head.head_revision,
    CASE WHEN asked.router_id = '' THEN true ELSE EXISTS (
        SELECT FROM registry.watchers r
        WHERE r.router_id = asked.router_id AND r.incarnation = asked.incarnation AND r.expires_at > now()
    ) END AS registered
FROM head
LEFT JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY
    AS asked (workspace_id, user_id, agent_id, router_id, incarnation, place) ON true
LEFT JOIN LATERAL (
    SELECT state FROM registry.workspaces
    WHERE workspace_id = asked.workspace_id AND deleted_at IS NULL LIMIT 1
) w ON true
LEFT JOIN LATERAL (
    SELECT role, state FROM registry.users
    WHERE workspace_id = asked.workspace_id AND user_id = asked.user_id AND deleted_at IS NULL LIMIT 1
) u ON true
LEFT JOIN LATERAL (
    SELECT state FROM registry.agents
    WHERE workspace_id = asked.workspace_id AND agent_id = asked.agent_id AND deleted_at IS NULL LIMIT 1
) a ON true
LEFT JOIN LATERAL (
    SELECT true AS granted, expires_at FROM registry.grants
    WHERE workspace_id = asked.workspace_id AND user_id = asked.user_id AND agent_id = asked.agent_id LIMIT 1
) g ON true
ORDER BY asked.place;

-- name: explain_facts
-- All that is known of a pair, also what is deleted; of what is purged only the id is left, which is nothing.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision, now() AS at,
    w.state AS workspace_state, w.deleted_at AS workspace_deleted_at,
    u.role, u.state AS user_state, u.deleted_at AS user_deleted_at,
    a.state AS agent_state, a.deleted_at AS agent_deleted_at,
    g.expires_at, g.granted_by, g.granted_at
FROM registry.registry_head h
LEFT JOIN registry.workspaces w ON w.workspace_id = $1 AND w.purged_at IS NULL
LEFT JOIN registry.users u ON u.workspace_id = $1 AND u.user_id = $2 AND u.purged_at IS NULL
LEFT JOIN registry.agents a ON a.workspace_id = $1 AND a.agent_id = $3 AND a.purged_at IS NULL
LEFT JOIN registry.grants g ON g.workspace_id = $1 AND g.user_id = $2 AND g.agent_id = $3;

-- name: usable_agents
-- The rule as a listing: by role or by grant, never both. Each part reads at most a page in the order of its index, and the
-- part that is not asked for reads nothing. LIMIT 1 as above: a join that merges would begin with the first row of both.
WITH viewer AS MATERIALIZED (
    SELECT u.role IN ('owner', 'admin') AS needs_no_grant
    FROM registry.users u
    JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL AND w.state = 'active'
    WHERE u.workspace_id = $1 AND u.user_id = $2 AND u.deleted_at IS NULL AND u.state = 'active'
), by_role AS (
    SELECT a.agent_id, a.display_name, a.state, false AS by_grant, NULL::timestamptz AS expires_at
    FROM registry.agents a
    WHERE a.workspace_id = $1 AND a.agent_id > $3 AND a.deleted_at IS NULL AND a.state <> 'gone'
        AND (SELECT needs_no_grant FROM viewer)
    ORDER BY a.agent_id
    LIMIT $4
), by_grant AS (
    SELECT a.agent_id, a.display_name, a.state, true AS by_grant, g.expires_at
    FROM registry.grants g
    CROSS JOIN LATERAL (
        SELECT agent_id, display_name, state FROM registry.agents
        WHERE workspace_id = $1 AND agent_id = g.agent_id AND deleted_at IS NULL AND state <> 'gone' LIMIT 1
    ) a
    WHERE g.workspace_id = $1 AND g.user_id = $2 AND g.agent_id > $3 AND (g.expires_at > now() OR g.expires_at IS NULL)
        AND NOT (SELECT needs_no_grant FROM viewer)
    ORDER BY g.agent_id
    LIMIT $4
)
SELECT * FROM by_role UNION ALL SELECT * FROM by_grant
ORDER BY agent_id
LIMIT $4;

-- name: user_is_there
SELECT EXISTS (
    SELECT FROM registry.users u
    JOIN registry.workspaces w ON w.workspace_id = u.workspace_id AND w.deleted_at IS NULL
    WHERE u.workspace_id = $1 AND u.user_id = $2 AND u.deleted_at IS NULL
);

-- name: users_of_agent
-- The same from the other side. Of each role its own part, so that each is in the order of an index.
WITH used AS MATERIALIZED (
    SELECT FROM registry.agents a
    JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL AND w.state = 'active'
    WHERE a.workspace_id = $1 AND a.agent_id = $2 AND a.deleted_at IS NULL AND a.state <> 'gone'
), owners AS (
    SELECT u.user_id, u.display_name, u.role, false AS by_grant, NULL::timestamptz AS expires_at
    FROM registry.users u
    WHERE u.workspace_id = $1 AND u.role = 'owner' AND u.user_id > $3 AND u.deleted_at IS NULL AND u.state = 'active'
        AND EXISTS (SELECT FROM used)
    ORDER BY u.user_id
    LIMIT $4
), admins AS (
    SELECT u.user_id, u.display_name, u.role, false AS by_grant, NULL::timestamptz AS expires_at
    FROM registry.users u
    WHERE u.workspace_id = $1 AND u.role = 'admin' AND u.user_id > $3 AND u.deleted_at IS NULL AND u.state = 'active'
        AND EXISTS (SELECT FROM used)
    ORDER BY u.user_id
    LIMIT $4
), granted AS (
    SELECT u.user_id, u.display_name, u.role, true AS by_grant, g.expires_at
    FROM registry.grants g
    CROSS JOIN LATERAL (
        SELECT user_id, display_name, role FROM registry.users
        WHERE workspace_id = $1 AND user_id = g.user_id AND deleted_at IS NULL AND state = 'active'
            AND role NOT IN ('owner', 'admin') LIMIT 1
    ) u
    WHERE g.workspace_id = $1 AND g.agent_id = $2 AND g.user_id > $3 AND (g.expires_at > now() OR g.expires_at IS NULL)
        AND EXISTS (SELECT FROM used)
    ORDER BY g.user_id
    LIMIT $4
)
SELECT * FROM owners UNION ALL SELECT * FROM admins UNION ALL SELECT * FROM granted
ORDER BY user_id
LIMIT $4;

-- name: agent_is_there
SELECT EXISTS (
    SELECT FROM registry.agents a
    JOIN registry.workspaces w ON w.workspace_id = a.workspace_id AND w.deleted_at IS NULL
    WHERE a.workspace_id = $1 AND a.agent_id = $2 AND a.deleted_at IS NULL
);
