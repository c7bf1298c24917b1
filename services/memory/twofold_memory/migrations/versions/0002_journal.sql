-- Journaled turns, changes to the past, branches.

-- Conversations -------------------------------------------------------------------------------------------------------------

ALTER TABLE memory.conversations
    -- Set: nothing of it is left but this row, which keeps late writers out.
    ADD COLUMN erased_at timestamptz,
    -- A branch shares the messages before its own with the conversations that it came from: ancestors[i] holds those after
    -- shared_until[i - 1] up to shared_until[i], and its own come after the last of these. Oldest first, 16 at most.
    ADD COLUMN ancestors text[] COLLATE "C" NOT NULL DEFAULT '{}',
    ADD COLUMN shared_until bigint[] NOT NULL DEFAULT '{}',
    -- The conversation that it was branched off, as information; that one may be erased by now.
    ADD COLUMN parent_thread_id text COLLATE "C",
    -- Messages up to this one went with an ancestor that was erased.
    ADD COLUMN floor_seq bigint NOT NULL DEFAULT 0,
    -- Orders the lists: when it was last changed, to the minute, so that an append mostly changes no index.
    ADD COLUMN listed_at timestamptz NOT NULL DEFAULT now(),
    ADD CONSTRAINT ancestors_are_bounded CHECK (cardinality(ancestors) <= 16),
    ADD CONSTRAINT ancestors_have_bounds CHECK (cardinality(ancestors) = cardinality(shared_until));

UPDATE memory.conversations SET listed_at = updated_at;
ALTER TABLE memory.conversations SET (fillfactor = 80);

DROP INDEX memory.conversations_of_a_workspace;
DROP INDEX memory.conversations_of_a_user;
CREATE INDEX conversations_of_a_workspace ON memory.conversations (workspace_id, listed_at DESC, thread_id DESC)
    WHERE deleted_at IS NULL AND erased_at IS NULL;
CREATE INDEX conversations_of_a_user ON memory.conversations (workspace_id, user_id, listed_at DESC, thread_id DESC)
    WHERE deleted_at IS NULL AND erased_at IS NULL;
CREATE INDEX branches_of_a_conversation ON memory.conversations (workspace_id, parent_thread_id, thread_id)
    WHERE parent_thread_id IS NOT NULL;
CREATE INDEX descendants_of_a_conversation ON memory.conversations USING gin (ancestors) WHERE ancestors <> '{}';

-- Where the messages of a conversation stand: after_seq < seq <= last_seq in thread_id. One row unless it is a branch.
CREATE FUNCTION memory.segments(c memory.conversations)
RETURNS TABLE (thread_id text, after_seq bigint, last_seq bigint)
LANGUAGE sql STABLE
AS $$
    SELECT s.thread_id, greatest(s.after_seq, c.floor_seq), s.last_seq
    FROM unnest(c.ancestors || c.thread_id, 0::bigint || c.shared_until, c.shared_until || c.next_seq - 1)
        AS s (thread_id, after_seq, last_seq)
$$;

-- Messages and turns --------------------------------------------------------------------------------------------------------

ALTER TABLE memory.messages
    -- How often it was changed since it was said.
    ADD COLUMN revision integer NOT NULL DEFAULT 0,
    -- twofold.memory.v1.MessageStatus: 0 as said, 1 interrupted, 2 deleted, 3 redacted. The latter two have no content.
    ADD COLUMN status smallint NOT NULL DEFAULT 0,
    ADD CONSTRAINT status_is_known CHECK (status BETWEEN 0 AND 3);

ALTER TABLE memory.turns
    -- It could not be stored and is a dead letter: it has no messages, and first_seq and last_seq are 0.
    ADD COLUMN dead boolean NOT NULL DEFAULT false,
    -- It was numbered while nobody could know whether turns that were accepted before it were waiting.
    ADD COLUMN order_unverified boolean NOT NULL DEFAULT false,
    -- 0 whole, 1 interrupted: its agent did not come to an end, 2 taken back.
    ADD COLUMN status smallint NOT NULL DEFAULT 0,
    ADD CONSTRAINT turn_status_is_known CHECK (status BETWEEN 0 AND 2);

-- What a message was before it was changed; of a redaction only that there was one.
CREATE TABLE memory.message_revisions (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    -- The revision that came to be by the change: 1, 2, 3 …
    revision integer NOT NULL,
    -- twofold.memory.v1.RevisionKind: 1 edit, 2 redact, 3 delete, 4 pop
    kind smallint NOT NULL,
    -- As it was before. Gone once the message is redacted.
    content text,
    rest bytea,
    token_count integer,
    reason text NOT NULL DEFAULT '',
    actor text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, thread_id, seq, revision)
);

-- Turns that were acknowledged as journaled and cannot be stored, until somebody replays or discards them.
CREATE TABLE memory.dead_letters (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    turn_id text COLLATE "C" NOT NULL,
    payload_hash bytea NOT NULL,
    -- KEY_CONFLICT, INVALID, CONVERSATION_DELETED, FOREIGN
    reason text NOT NULL,
    sqlstate text NOT NULL DEFAULT '',
    -- The turn as it was journaled (journal.py says how).
    payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Set when an operator has dealt with it; how, by whom and why.
    resolved_at timestamptz,
    resolution text,
    resolved_by text,
    resolved_because text,
    PRIMARY KEY (workspace_id, thread_id, turn_id, payload_hash)
);

CREATE INDEX dead_letters_by_age ON memory.dead_letters (created_at, workspace_id, thread_id, turn_id)
    WHERE resolved_at IS NULL;

ALTER TABLE memory.window_purges
    -- The conversation is erased: what waits for it in the journal goes as well.
    ADD COLUMN erased boolean NOT NULL DEFAULT false;

-- 0005 makes it anew, with what it must know of all this.
DROP FUNCTION memory.append_turns(
    text[], text[], text[], text[], bytea[], integer[], boolean[], bigint[], bigint[],
    integer[], integer[], smallint[], text[], bytea[], integer[]
);

-- Conversations found by their labels -----------------------------------------------------------------------------------------

-- A number for each label of a conversation, with its workspace in it: a label that is common elsewhere is none here. Two labels
-- may have one number, so what is found by it is looked at.
CREATE FUNCTION memory.label_hashes(workspace_id text, metadata jsonb) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
    SELECT coalesce(array_agg(hashtextextended(
        (length(workspace_id)::text || ':' || workspace_id || length(label.key)::text || ':' || label.key || label.value)
        COLLATE "C", 0
    )), '{}')
    FROM jsonb_each_text(metadata) AS label (key, value)
$$;

CREATE INDEX conversations_by_label ON memory.conversations USING gin (memory.label_hashes(workspace_id, metadata))
    WHERE metadata <> '{}' AND deleted_at IS NULL AND erased_at IS NULL;
