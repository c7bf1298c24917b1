-- What an agent must be able to trust later: summaries, tool runs, checkpoints, the event log. Preferences that expire.

-- The counters of a conversation's records: who locks this row decides what comes next, so order is commit order.
CREATE TABLE memory.record_heads (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    -- Offset of the newest event; 1 .. event_offset exist.
    event_offset bigint NOT NULL DEFAULT 0,
    -- Rises with each summary that is put or deleted: of two copies of a conversation's summaries the higher one is newer.
    summary_version bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (workspace_id, thread_id)
) WITH (fillfactor = 80);

-- The event log of a conversation ------------------------------------------------------------------------------------------------

CREATE TABLE memory.events (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    event_offset bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    payload text NOT NULL,
    -- Written by the service in the transaction of what it tells of, not by a caller.
    by_service boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, thread_id, event_offset),
    CONSTRAINT payload_fits CHECK (octet_length(payload) <= 65536)
);

CREATE INDEX events_of_a_kind ON memory.events (workspace_id, thread_id, kind, event_offset);

-- Summaries -------------------------------------------------------------------------------------------------------------------

CREATE TABLE memory.summaries (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    -- The summary_version that it was put under: the newest has the highest.
    version bigint NOT NULL,
    summary_id text COLLATE "C" NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    text text NOT NULL,
    token_count integer,
    model text NOT NULL,
    author text NOT NULL,
    metadata jsonb NOT NULL,
    -- The conversation's when it was put: the past that it tells of has not changed since as long as they are the same.
    epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, thread_id, version),
    CONSTRAINT summaries_have_one_id UNIQUE (workspace_id, thread_id, summary_id),
    CONSTRAINT a_range_goes_upwards CHECK (1 <= first_seq AND first_seq <= last_seq),
    CONSTRAINT text_fits CHECK (octet_length(text) <= 262144)
);

-- Tool runs -------------------------------------------------------------------------------------------------------------------

CREATE TABLE memory.tool_runs (
    workspace_id text COLLATE "C" NOT NULL,
    tool_run_id text COLLATE "C" NOT NULL,
    -- Order of creation, for lists.
    number bigint GENERATED ALWAYS AS IDENTITY,
    thread_id text COLLATE "C",
    turn_id text NOT NULL,
    tool_call_id text NOT NULL,
    name text COLLATE "C" NOT NULL,
    arguments text NOT NULL,
    metadata jsonb NOT NULL,
    -- What was asked for: tells a repeat of the creation from another run under the same id.
    body_hash bytea NOT NULL,
    -- twofold.memory.v1.ToolRunState: 1 pending, 2 running, 3 succeeded, 4 failed, 5 cancelled
    state smallint NOT NULL,
    -- Rises with each change: of two changes that expect the same one, one succeeds.
    version bigint NOT NULL,
    attempt integer NOT NULL,
    attempts_max integer NOT NULL,
    -- How long the first retry waits; each further one twice as long.
    backoff interval NOT NULL,
    holder text,
    -- From when on it may be claimed: pending, when it may begin; running, when the lease ends; null once it has ended.
    due_at timestamptz,
    result text,
    error text,
    retryable boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, tool_run_id),
    CONSTRAINT arguments_fit CHECK (octet_length(arguments) <= 1048576),
    CONSTRAINT result_fits CHECK (octet_length(result) <= 1048576),
    CONSTRAINT state_is_known CHECK (state BETWEEN 1 AND 5),
    CONSTRAINT only_open_runs_are_due CHECK ((due_at IS NOT NULL) = (state <= 2)),
    CONSTRAINT only_running_ones_are_held CHECK ((holder IS NOT NULL) = (state = 2))
);

CREATE INDEX tool_runs_by_number ON memory.tool_runs (workspace_id, number DESC);
CREATE INDEX tool_runs_of_a_thread ON memory.tool_runs (workspace_id, thread_id, number DESC) WHERE thread_id IS NOT NULL;
CREATE INDEX tool_runs_of_a_name ON memory.tool_runs (workspace_id, name, number DESC);
CREATE INDEX tool_runs_of_a_state ON memory.tool_runs (workspace_id, state, number DESC);
CREATE INDEX tool_runs_due ON memory.tool_runs (workspace_id, name, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX tool_runs_left_behind ON memory.tool_runs (due_at) WHERE state = 2;

-- Checkpoints -----------------------------------------------------------------------------------------------------------------

CREATE TABLE memory.checkpoint_lines (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    line text COLLATE "C" NOT NULL,
    -- The newest checkpoint: the one that was committed last.
    head_id text COLLATE "C" NOT NULL,
    head_version bigint NOT NULL,
    PRIMARY KEY (workspace_id, thread_id, line)
) WITH (fillfactor = 80);

CREATE TABLE memory.checkpoints (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    line text COLLATE "C" NOT NULL,
    -- 1, 2, 3 … within the line, in order of commit.
    version bigint NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    -- As information: that one may be gone by now.
    parent_id text NOT NULL,
    -- Whole, never a difference to another one: each can be loaded whatever becomes of all others.
    data bytea NOT NULL,
    content_type text NOT NULL,
    metadata jsonb NOT NULL,
    pinned boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, thread_id, line, version),
    CONSTRAINT checkpoints_have_one_id UNIQUE (workspace_id, thread_id, checkpoint_id),
    CONSTRAINT data_fits CHECK (octet_length(data) <= 3145728)
);

-- Preferences -----------------------------------------------------------------------------------------------------------------

ALTER TABLE memory.preferences ADD COLUMN expires_at timestamptz;

CREATE INDEX preferences_by_expiry ON memory.preferences (expires_at) WHERE expires_at IS NOT NULL;
