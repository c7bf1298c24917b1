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

-- A group commit --------------------------------------------------------------------------------------------------------------
--
-- Many turns of many threads, stored in one transaction and one round trip.
--
-- Arrays t_* have one element a turn, in order of arrival; arrays m_* one element a message, m_turn being the turn's place.
-- No turn may stand in it twice. Returns one row a turn: STORED with its numbers; DUPLICATE with the numbers it was
-- stored under before; CONFLICT (its id was used for something else); DEAD (it is a dead letter); ERASED; DELETED;
-- FOREIGN (another user's conversation); AFTER_MISSING (t_after names a turn that is not there); MISSING (no such
-- conversation, and t_new did not say that it may be made).
--
-- Three statements, each with a snapshot of its own (READ COMMITTED), and that matters: 1 makes the threads, 2 locks them in
-- one order for everybody (no deadlocks), 3 looks the turn ids up only then, so that it sees what the lock's former holder stored.
--
-- Plans are generic: planning these statements anew for each call would cost more than running them. So that a plan that was made
-- while the tables were small stays right when they have grown, every row is looked up by its key (LATERAL … LIMIT 1 cannot
-- become a join of whole tables), and none is looked for by reading a table.
DROP FUNCTION memory.append_turns(
    text[], text[], text[], text[], bytea[], integer[], boolean[], bigint[], bigint[],
    integer[], integer[], smallint[], text[], bytea[], integer[]
);

CREATE FUNCTION memory.append_turns(
    t_workspace text[], t_thread text[], t_user text[], t_turn text[], t_hash bytea[], t_size integer[],
    t_new boolean[], t_input bigint[], t_output bigint[], t_after text[], t_unverified boolean[], t_status smallint[],
    m_turn integer[], m_index integer[], m_role smallint[], m_content text[], m_rest bytea[], m_tokens integer[],
    m_status smallint[]
) RETURNS TABLE (
    place integer, outcome text, first_seq bigint, last_seq bigint, epoch bigint, created_at timestamptz, owner text,
    order_unverified boolean
)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
BEGIN
    IF true = ANY (t_new) THEN
        INSERT INTO memory.conversations (workspace_id, thread_id, user_id)
        SELECT DISTINCT ON (t.workspace_id COLLATE "C", t.thread_id COLLATE "C") t.workspace_id, t.thread_id, t.user_id
        FROM unnest(t_workspace, t_thread, t_user, t_new) WITH ORDINALITY
            AS t (workspace_id, thread_id, user_id, is_new, place)
        WHERE t.is_new
        ORDER BY t.workspace_id COLLATE "C", t.thread_id COLLATE "C", t.place
        ON CONFLICT (workspace_id, thread_id) DO NOTHING;
    END IF;

    PERFORM c.locked
    FROM (
        SELECT DISTINCT t.workspace_id COLLATE "C" AS workspace_id, t.thread_id COLLATE "C" AS thread_id
        FROM unnest(t_workspace, t_thread) AS t (workspace_id, thread_id)
        ORDER BY 1, 2
    ) t
    CROSS JOIN LATERAL (
        SELECT true AS locked
        FROM memory.conversations c
        WHERE c.workspace_id = t.workspace_id AND c.thread_id = t.thread_id
        LIMIT 1
        FOR UPDATE
    ) c;

    RETURN QUERY
    WITH judged AS (
        SELECT
            t.place::integer AS place, t.workspace_id, t.thread_id, t.turn_id, t.payload_hash, t.size, t.input, t.output,
            t.unverified, t.status,
            c.next_seq, c.epoch AS thread_epoch, c.user_id AS owner,
            k.first_seq AS kept_first, k.last_seq AS kept_last, k.created_at AS kept_at, k.order_unverified AS kept_unverified,
            CASE
                WHEN c.thread_id IS NULL THEN 'MISSING'
                WHEN c.erased_at IS NOT NULL THEN 'ERASED'
                WHEN c.user_id <> t.user_id THEN 'FOREIGN'
                WHEN c.deleted_at IS NOT NULL THEN 'DELETED'
                WHEN k.payload_hash = t.payload_hash THEN CASE WHEN k.dead THEN 'DEAD' ELSE 'DUPLICATE' END
                WHEN k.turn_id IS NOT NULL THEN 'CONFLICT'
                WHEN t.after IS NOT NULL AND NOT EXISTS (
                    SELECT FROM memory.turns a
                    WHERE a.workspace_id = t.workspace_id AND a.thread_id = t.thread_id AND a.turn_id = t.after
                ) THEN 'AFTER_MISSING'
                ELSE 'STORED'
            END AS verdict
        FROM unnest(t_workspace, t_thread, t_user, t_turn, t_hash, t_size, t_input, t_output, t_after, t_unverified, t_status)
            WITH ORDINALITY AS t (
                workspace_id, thread_id, user_id, turn_id, payload_hash, size, input, output, after, unverified, status, place
            )
        LEFT JOIN LATERAL (
            SELECT c.thread_id, c.user_id, c.next_seq, c.epoch, c.deleted_at, c.erased_at
            FROM memory.conversations c
            WHERE c.workspace_id = t.workspace_id AND c.thread_id = t.thread_id
            LIMIT 1
        ) c ON true
        LEFT JOIN LATERAL (
            SELECT k.turn_id, k.payload_hash, k.first_seq, k.last_seq, k.created_at, k.dead, k.order_unverified
            FROM memory.turns k
            WHERE k.workspace_id = t.workspace_id AND k.thread_id = t.thread_id AND k.turn_id = t.turn_id
            LIMIT 1
        ) k ON true
    ), numbered AS (
        SELECT j.*, j.next_seq + sum(j.size) OVER thread - j.size AS first, j.next_seq + sum(j.size) OVER thread - 1 AS last
        FROM judged j
        WHERE j.verdict = 'STORED'
        WINDOW thread AS (PARTITION BY j.workspace_id, j.thread_id ORDER BY j.place)
    ), counted AS (
        UPDATE memory.conversations c
        SET
            next_seq = n.last + 1,
            updated_at = now(),
            listed_at = CASE WHEN c.listed_at < now() - interval '1 minute' THEN now() ELSE c.listed_at END
        FROM (SELECT workspace_id, thread_id, max(last) AS last FROM numbered GROUP BY workspace_id, thread_id) n
        WHERE c.workspace_id = n.workspace_id AND c.thread_id = n.thread_id
    ), kept_turns AS (
        INSERT INTO memory.turns (
            workspace_id, thread_id, turn_id, payload_hash, first_seq, last_seq, epoch, input_tokens, output_tokens, created_at,
            order_unverified, status
        )
        SELECT
            workspace_id, thread_id, turn_id, payload_hash, first, last, thread_epoch, input, output, now(), unverified, status
        FROM numbered
    ), kept_messages AS (
        INSERT INTO memory.messages (
            workspace_id, thread_id, seq, turn_id, turn_index, role, content, rest, token_count, created_at, status
        )
        SELECT
            n.workspace_id, n.thread_id, n.first + m.index, n.turn_id, m.index, m.role, m.content, m.rest, m.tokens, now(),
            m.status
        FROM unnest(m_turn, m_index, m_role, m_content, m_rest, m_tokens, m_status)
            AS m (place, index, role, content, rest, tokens, status)
        JOIN numbered n ON n.place = m.place
    )
    SELECT
        j.place, j.verdict, coalesce(n.first, j.kept_first), coalesce(n.last, j.kept_last), j.thread_epoch,
        coalesce(j.kept_at, now()), j.owner, coalesce(j.kept_unverified, j.unverified)
    FROM judged j
    LEFT JOIN numbered n ON n.place = j.place
    ORDER BY j.place;
END
$$;

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
