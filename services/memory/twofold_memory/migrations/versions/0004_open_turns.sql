-- Turns that are open: leases and those who wait for them.

-- The fence of the turn that was opened last: rises with each, for ever, also beyond an erasure.
ALTER TABLE memory.conversations ADD COLUMN turn_fence bigint NOT NULL DEFAULT 0;

-- The turn that is open on a conversation: by its key one at most. Whoever opens or closes one locks the conversation's row first.
CREATE TABLE memory.open_turns (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    turn_id text COLLATE "C" NOT NULL,
    -- As the caller gave it.
    user_id text COLLATE "C",
    -- What it was opened with: tells a repeat from another turn under the same id.
    body_hash bytea NOT NULL,
    fence bigint NOT NULL,
    holder text NOT NULL,
    lease interval NOT NULL,
    lease_until timestamptz NOT NULL,
    -- From when on the service may close it: when its lease has ended and a grace has passed; later, if it could not be closed then.
    sweep_at timestamptz NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    -- The user's messages: one element each. Bytes are those of the encoded messages.
    roles smallint[] NOT NULL,
    contents text[] NOT NULL,
    rests bytea[] NOT NULL,
    token_counts integer[] NOT NULL,
    bytes integer NOT NULL,
    -- The answer as the last heartbeat brought it, in the same form.
    partial_roles smallint[] NOT NULL DEFAULT '{}',
    partial_contents text[] NOT NULL DEFAULT '{}',
    partial_rests bytea[] NOT NULL DEFAULT '{}',
    partial_token_counts integer[] NOT NULL DEFAULT '{}',
    partial_bytes integer NOT NULL DEFAULT 0,
    PRIMARY KEY (workspace_id, thread_id),
    CONSTRAINT messages_fit CHECK (bytes <= 2097152 AND partial_bytes <= 1048576)
) WITH (fillfactor = 80);

CREATE INDEX open_turns_to_sweep ON memory.open_turns (sweep_at);

-- Who waits for a conversation to be free, in order of arrival. A row that is not renewed belongs to a worker that is gone.
CREATE TABLE memory.turn_waiters (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    place bigint NOT NULL,
    turn_id text COLLATE "C" NOT NULL,
    -- The call that waits, so that an earlier one of the same turn cannot give up its place.
    ticket text NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, thread_id, place),
    CONSTRAINT a_turn_waits_once UNIQUE (workspace_id, thread_id, turn_id)
);
