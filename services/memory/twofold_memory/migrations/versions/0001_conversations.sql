-- Every primary key begins with the workspace. Ids compare by bytes (COLLATE "C"): faster, and the same on every machine.

CREATE TABLE memory.conversations (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    title text NOT NULL DEFAULT '',
    metadata jsonb NOT NULL DEFAULT '{}',
    -- Messages 1 .. next_seq - 1 exist. Only append_turns changes it, under this row's lock: seq order is commit order.
    next_seq bigint NOT NULL DEFAULT 1,
    -- Rises when the past changes (a deletion, later edits): copies of an older epoch are void.
    epoch bigint NOT NULL DEFAULT 1,
    -- Version of title and metadata.
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (workspace_id, thread_id),
    CONSTRAINT numbering_starts_at_one CHECK (next_seq >= 1),
    CONSTRAINT epochs_start_at_one CHECK (epoch >= 1)
);

CREATE INDEX conversations_of_a_workspace ON memory.conversations (workspace_id, updated_at DESC, thread_id DESC)
    WHERE deleted_at IS NULL;
CREATE INDEX conversations_of_a_user ON memory.conversations (workspace_id, user_id, updated_at DESC, thread_id DESC)
    WHERE deleted_at IS NULL;

CREATE TABLE memory.messages (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    turn_id text COLLATE "C" NOT NULL,
    turn_index integer NOT NULL,
    -- twofold.memory.v1.Role: 1 system, 2 user, 3 assistant, 4 tool
    role smallint NOT NULL,
    -- null is not the same as empty: a message that only calls tools has none
    content text,
    -- twofold.memory.v1.Message without role, content and token_count: tool calls, names, metadata
    rest bytea NOT NULL,
    token_count integer,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, thread_id, seq),
    CONSTRAINT content_fits CHECK (octet_length(content) <= 1048576),
    CONSTRAINT role_is_known CHECK (role BETWEEN 1 AND 4)
);

CREATE TABLE memory.turns (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    -- the request_id of the append: what makes a retry harmless, for ever
    turn_id text COLLATE "C" NOT NULL,
    payload_hash bytea NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    epoch bigint NOT NULL,
    input_tokens bigint,
    output_tokens bigint,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, thread_id, turn_id),
    CONSTRAINT a_turn_has_messages CHECK (last_seq >= first_seq)
);

-- Windows in Redis that must go because their conversation's past has changed: written with the change, repeated until it has
-- been done, and done again when Redis may have come back with old data. Kept for as long as a window can live.
CREATE TABLE memory.window_purges (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT now(),
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (workspace_id, thread_id)
);

CREATE INDEX window_purges_due ON memory.window_purges (asked_at) WHERE NOT done;
CREATE INDEX window_purges_by_age ON memory.window_purges (asked_at);

CREATE TABLE memory.preference_versions (
    workspace_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (workspace_id, user_id)
) WITH (fillfactor = 80);

CREATE TABLE memory.preferences (
    workspace_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    value text NOT NULL,
    version bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, user_id, key),
    CONSTRAINT value_fits CHECK (octet_length(value) <= 4096)
);

-- Answers of writes by their request id, kept for 24 hours. Appends have their own memory: turns.
CREATE TABLE memory.requests (
    workspace_id text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    rpc text NOT NULL,
    body_hash bytea NOT NULL,
    answer bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, request_id)
);

CREATE INDEX requests_by_age ON memory.requests (created_at);

-- A group commit: many turns of many threads, stored in one transaction and one round trip.
--
-- Arrays t_* have one element a turn, in order of arrival; arrays m_* one element a message, m_turn being the turn's place.
-- No turn may stand in it twice. Returns one row a turn: STORED with its numbers; DUPLICATE with the numbers it was
-- stored under before; CONFLICT (its id was used for something else); DELETED; FOREIGN (another user's conversation);
-- MISSING (no such conversation, and t_new did not say that it may be made).
--
-- Three statements, each with a snapshot of its own (READ COMMITTED), and that matters: 1 makes the threads, 2 locks them in
-- one order for everybody (no deadlocks), 3 looks the turn ids up only then, so that it sees what the lock's former holder stored.
--
-- Plans are generic: planning these statements anew for each call would cost more than running them. So that a plan that was made
-- while the tables were small stays right when they have grown, every row is looked up by its key (LATERAL … LIMIT 1 cannot
-- become a join of whole tables), and none is looked for by reading a table.
CREATE FUNCTION memory.append_turns(
    t_workspace text[], t_thread text[], t_user text[], t_turn text[], t_hash bytea[], t_size integer[],
    t_new boolean[], t_input bigint[], t_output bigint[],
    m_turn integer[], m_index integer[], m_role smallint[], m_content text[], m_rest bytea[], m_tokens integer[]
) RETURNS TABLE (
    place integer, outcome text, first_seq bigint, last_seq bigint, epoch bigint, created_at timestamptz, owner text
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
            c.next_seq, c.epoch AS thread_epoch, c.user_id AS owner,
            k.first_seq AS kept_first, k.last_seq AS kept_last, k.created_at AS kept_at,
            CASE
                WHEN c.thread_id IS NULL THEN 'MISSING'
                WHEN c.user_id <> t.user_id THEN 'FOREIGN'
                WHEN c.deleted_at IS NOT NULL THEN 'DELETED'
                WHEN k.payload_hash = t.payload_hash THEN 'DUPLICATE'
                WHEN k.turn_id IS NOT NULL THEN 'CONFLICT'
                ELSE 'STORED'
            END AS verdict
        FROM unnest(t_workspace, t_thread, t_user, t_turn, t_hash, t_size, t_input, t_output) WITH ORDINALITY
            AS t (workspace_id, thread_id, user_id, turn_id, payload_hash, size, input, output, place)
        LEFT JOIN LATERAL (
            SELECT c.thread_id, c.user_id, c.next_seq, c.epoch, c.deleted_at
            FROM memory.conversations c
            WHERE c.workspace_id = t.workspace_id AND c.thread_id = t.thread_id
            LIMIT 1
        ) c ON true
        LEFT JOIN LATERAL (
            SELECT k.turn_id, k.payload_hash, k.first_seq, k.last_seq, k.created_at
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
        SET next_seq = n.last + 1, updated_at = now()
        FROM (SELECT workspace_id, thread_id, max(last) AS last FROM numbered GROUP BY workspace_id, thread_id) n
        WHERE c.workspace_id = n.workspace_id AND c.thread_id = n.thread_id
    ), kept_turns AS (
        INSERT INTO memory.turns (
            workspace_id, thread_id, turn_id, payload_hash, first_seq, last_seq, epoch, input_tokens, output_tokens, created_at
        )
        SELECT workspace_id, thread_id, turn_id, payload_hash, first, last, thread_epoch, input, output, now()
        FROM numbered
    ), kept_messages AS (
        INSERT INTO memory.messages (
            workspace_id, thread_id, seq, turn_id, turn_index, role, content, rest, token_count, created_at
        )
        SELECT
            n.workspace_id, n.thread_id, n.first + m.index, n.turn_id, m.index, m.role, m.content, m.rest, m.tokens, now()
        FROM unnest(m_turn, m_index, m_role, m_content, m_rest, m_tokens) AS m (place, index, role, content, rest, tokens)
        JOIN numbered n ON n.place = m.place
    )
    SELECT
        j.place, j.verdict, coalesce(n.first, j.kept_first), coalesce(n.last, j.kept_last), j.thread_epoch,
        coalesce(j.kept_at, now()), j.owner
    FROM judged j
    LEFT JOIN numbered n ON n.place = j.place
    ORDER BY j.place;
END
$$;
