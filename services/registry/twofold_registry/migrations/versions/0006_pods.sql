-- Numbers of incarnations. A restored database may count some of them once more, but in another epoch.
CREATE SEQUENCE registry.pod_incarnation;

-- The newest incarnation of each pod, and the verdict on it; every older one is dead. Of no tenant.
CREATE TABLE registry.pods (
    pod_id text COLLATE "C" NOT NULL,
    address text NOT NULL,
    epoch bigint NOT NULL,
    number bigint NOT NULL,
    state text NOT NULL,
    -- NULL if it was marked dead without being known.
    registered_at timestamptz,
    -- When somebody asked about it last, to the hour.
    seen_at timestamptz NOT NULL,
    dead_at timestamptz,
    dead_reason text NOT NULL DEFAULT '',
    marked_by text NOT NULL DEFAULT '',
    CONSTRAINT pods_have_one_newest_incarnation PRIMARY KEY (pod_id),
    CONSTRAINT pod_ids_fit CHECK (octet_length(pod_id) BETWEEN 1 AND 255),
    CONSTRAINT pod_states_are_known CHECK (state IN ('live', 'dead')),
    CONSTRAINT the_dead_have_a_time CHECK ((state = 'dead') = (dead_at IS NOT NULL)),
    CONSTRAINT the_live_have_registered CHECK (state = 'dead' OR registered_at IS NOT NULL)
);

CREATE INDEX silent_pods ON registry.pods (seen_at) WHERE state = 'live';
CREATE INDEX dead_pods ON registry.pods (dead_at) WHERE state = 'dead';

-- What became of sessions, a row per session and fence. Not partitioned by month: each workspace has a retention of its own, so
-- no partition could be dropped whole; and an open and its close may lie in two months, yet meet in one row by its key.
CREATE TABLE registry.sessions (
    workspace_id text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    fence bigint NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    pod_id text COLLATE "C" NOT NULL,
    pod_epoch bigint NOT NULL,
    pod_number bigint NOT NULL,
    -- NULL while nobody has told.
    opened_at timestamptz,
    closed_at timestamptz,
    -- 0 while it is open; else the number of the contract's SessionCloseReason.
    close_reason smallint NOT NULL,
    -- The place in lists.
    began_at timestamptz NOT NULL GENERATED ALWAYS AS (coalesce(opened_at, closed_at)) STORED,
    -- When it was heard of last: from then on it is kept for the retention.
    heard_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sessions_are_told_once_a_fence PRIMARY KEY (workspace_id, session_id, fence),
    CONSTRAINT something_is_known CHECK (opened_at IS NOT NULL OR closed_at IS NOT NULL),
    CONSTRAINT the_closed_have_a_reason CHECK ((closed_at IS NULL) = (close_reason = 0)),
    CONSTRAINT session_ids_fit CHECK (octet_length(session_id) BETWEEN 1 AND 255)
);

CREATE INDEX sessions_by_time ON registry.sessions (workspace_id, began_at, session_id, fence);
CREATE INDEX sessions_of_a_user ON registry.sessions (workspace_id, user_id, began_at, session_id, fence);
CREATE INDEX sessions_of_an_agent ON registry.sessions (workspace_id, agent_id, began_at, session_id, fence);
CREATE INDEX sessions_of_a_pod ON registry.sessions (workspace_id, pod_id, began_at, session_id, fence);
CREATE INDEX open_sessions ON registry.sessions (workspace_id, began_at, session_id, fence) WHERE closed_at IS NULL;
CREATE INDEX sessions_by_age ON registry.sessions (heard_at);
CREATE INDEX sessions_of_a_workspace_by_age ON registry.sessions (workspace_id, heard_at);
CREATE INDEX workspaces_with_session_retention ON registry.workspaces (workspace_id) WHERE session_days > 0;
CREATE INDEX purged_workspaces ON registry.workspaces (purged_at) WHERE purged_at IS NOT NULL;

-- What sweeps look for.
CREATE INDEX watchers_by_expiry ON registry.watchers (expires_at);
