-- Full-text search, and documents linked to conversations.

-- Search ----------------------------------------------------------------------------------------------------------------------

-- What can be found: one row for each message that some worker has looked at. A message that must not be found (deleted, redacted)
-- has a row without words, so that a worker who looked at it before that cannot put them back.
CREATE TABLE memory.search_entries (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    -- The message's, when it was looked at: a later one is never replaced by an earlier one.
    revision integer NOT NULL,
    created_at timestamptz NOT NULL,
    words tsvector NOT NULL,
    PRIMARY KEY (workspace_id, thread_id, seq)
);

CREATE INDEX search_entries_by_word ON memory.search_entries USING gin (words);

-- What is still to be looked at: written with the messages themselves, and searched word by word until then, so that no search lags
-- behind. Rows are only added and removed: who removes one has looked at the messages as they were when it was written, or later.
-- No key and no index: each append writes here, and there are few rows at a time.
CREATE TABLE memory.search_pending (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- What a message says: its content, or the text among its parts (Message.parts is field 9, Part.text is field 1). At most
-- 100,000 characters: as a tsvector these stay below the megabyte that one can hold.
CREATE FUNCTION memory.spoken(content text, rest bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    said text := '';
    place integer := 0;
    part_end integer;
    tag integer;
    size integer;
    shift integer;
    byte integer;
BEGIN
    IF content IS NOT NULL OR rest = '' THEN
        RETURN left(content, 100000);
    END IF;
    WHILE place < octet_length(rest) LOOP
        tag := get_byte(rest, place);
        place := place + 1;
        EXIT WHEN tag & 7 <> 2;  -- fields of a message up to its parts all have a length
        size := 0;
        shift := 0;
        LOOP
            byte := get_byte(rest, place);
            place := place + 1;
            size := size | ((byte & 127) << shift);
            shift := shift + 7;
            EXIT WHEN byte < 128;
        END LOOP;
        part_end := place + size;
        IF tag = 74 AND size > 0 AND get_byte(rest, place) = 10 THEN
            LOOP
                place := place + 1;
                EXIT WHEN get_byte(rest, place) < 128;
            END LOOP;
            said := said || convert_from(substr(rest, place + 2, part_end - place - 1), 'UTF8') || ' ';
            EXIT WHEN length(said) > 100000;
        END IF;
        place := part_end;
    END LOOP;
    RETURN left(said, 100000);
END
$$;

-- A word that every entry of a workspace has and no other: one index for all serves each as if it were its own.
CREATE FUNCTION memory.word_of_workspace(workspace_id text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 'w:' || workspace_id $$;

CREATE FUNCTION memory.search_words(workspace_id text, content text, rest bytea) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT array_to_tsvector(ARRAY[memory.word_of_workspace(workspace_id)])
        || to_tsvector('simple', coalesce(memory.spoken(content, rest), ''))
$$;

-- What to look for: words as people write them, in one workspace.
CREATE FUNCTION memory.search_query(workspace_id text, words text) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT ('''' || replace(replace(memory.word_of_workspace(workspace_id), '\', '\\'), '''', '''''') || '''')::tsquery
        && websearch_to_tsquery('simple', words)
$$;

-- Whoever changes a message need not know of all this.
CREATE FUNCTION memory.note_changed_message() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO memory.search_pending (workspace_id, thread_id, first_seq, last_seq)
    VALUES (new.workspace_id, new.thread_id, new.seq, new.seq);
    RETURN NULL;
END
$$;

CREATE TRIGGER changed_messages_are_noted
AFTER UPDATE OF content, rest, status ON memory.messages
FOR EACH ROW
WHEN (old.content IS DISTINCT FROM new.content OR old.rest IS DISTINCT FROM new.rest OR old.status <> new.status)
EXECUTE FUNCTION memory.note_changed_message();

-- What was said before there was a search.
INSERT INTO memory.search_pending (workspace_id, thread_id, first_seq, last_seq)
SELECT workspace_id, thread_id, first_seq, last_seq FROM memory.turns WHERE NOT dead;

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
--
-- Each turn that is stored is noted for the search, without a key or an index that would have to be kept.
CREATE OR REPLACE FUNCTION memory.append_turns(
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
    ), noted AS (
        INSERT INTO memory.search_pending (workspace_id, thread_id, first_seq, last_seq)
        SELECT workspace_id, thread_id, first, last FROM numbered
    )
    SELECT
        j.place, j.verdict, coalesce(n.first, j.kept_first), coalesce(n.last, j.kept_last), j.thread_epoch,
        coalesce(j.kept_at, now()), j.owner, coalesce(j.kept_unverified, j.unverified)
    FROM judged j
    LEFT JOIN numbered n ON n.place = j.place
    ORDER BY j.place;
END
$$;

-- Documents -------------------------------------------------------------------------------------------------------------------

CREATE TABLE memory.documents (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    document_id text COLLATE "C" NOT NULL,
    title text NOT NULL,
    url text NOT NULL,
    media_type text NOT NULL,
    metadata jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, thread_id, document_id)
);
