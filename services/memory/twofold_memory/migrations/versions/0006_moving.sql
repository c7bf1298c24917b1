-- Erasures, retention.

-- Receipts. An erasure is worked on in small steps by whichever worker finds it due; what it has still to do stands here.
CREATE TABLE memory.erasures (
    workspace_id text COLLATE "C" NOT NULL,
    erasure_id text COLLATE "C" NOT NULL,
    -- twofold.memory.v1.ErasureKind: 1 conversation, 2 user, 3 workspace, 4 retention
    kind smallint NOT NULL,
    thread_id text COLLATE "C",
    user_id text COLLATE "C",
    -- Of a retention: it is for conversations that were last changed before this.
    unchanged_since timestamptz,
    actor text NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT now(),
    -- All conversations that it is for have become tombstones.
    swept_at timestamptz,
    -- Of a workspace: up to this user preferences are gone.
    users_until text COLLATE "C" NOT NULL DEFAULT '',
    -- What belongs to the user or the workspace, and to no conversation, is gone.
    records_gone_at timestamptz,
    rows_gone_at timestamptz,
    windows_gone_at timestamptz,
    copies_gone_at timestamptz,
    done_at timestamptz,
    -- Of the tombstone, if it is for one conversation.
    epoch bigint,
    conversation_count bigint NOT NULL DEFAULT 0,
    window_count bigint NOT NULL DEFAULT 0,
    copy_count bigint NOT NULL DEFAULT 0,
    -- Rows that were erased, by table.
    row_counts jsonb NOT NULL DEFAULT '{}',
    due_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, erasure_id),
    CONSTRAINT kind_is_known CHECK (kind BETWEEN 1 AND 4)
) WITH (fillfactor = 80);

CREATE INDEX erasures_by_age ON memory.erasures (workspace_id, asked_at DESC, erasure_id DESC);
CREATE INDEX erasures_due ON memory.erasures (due_at) WHERE done_at IS NULL;

-- Conversations of erasures that are not done, and branches that shared messages with them.
CREATE TABLE memory.erasure_threads (
    workspace_id text COLLATE "C" NOT NULL,
    erasure_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    -- The conversation's since then: copies of an older one must go.
    epoch bigint NOT NULL,
    -- False for a branch, which goes on.
    erased boolean NOT NULL,
    rows_left boolean NOT NULL,
    copies_left boolean NOT NULL DEFAULT true,
    PRIMARY KEY (workspace_id, erasure_id, thread_id)
);

CREATE INDEX erasures_of_a_conversation ON memory.erasure_threads (workspace_id, thread_id);
CREATE INDEX erasure_threads_with_rows ON memory.erasure_threads (workspace_id, erasure_id, thread_id) WHERE rows_left;
CREATE INDEX erasure_threads_with_copies ON memory.erasure_threads (workspace_id, erasure_id, thread_id) WHERE copies_left;

-- Copies of users' preferences in Redis that must go, as window_purges are for windows.
CREATE TABLE memory.preference_purges (
    workspace_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    -- Copies before this version must go.
    version bigint NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT now(),
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (workspace_id, user_id)
);

CREATE INDEX preference_purges_due ON memory.preference_purges (asked_at) WHERE NOT done;
CREATE INDEX preference_purges_of_a_workspace ON memory.preference_purges (workspace_id, user_id) WHERE NOT done;
CREATE INDEX preference_purges_by_age ON memory.preference_purges (asked_at);

CREATE TABLE memory.retentions (
    workspace_id text COLLATE "C" NOT NULL PRIMARY KEY,
    -- Days after the last change of a conversation until it is erased; 0: it is kept for ever.
    days integer NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- When somebody shall look next.
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT days_are_not_negative CHECK (days >= 0)
);

CREATE INDEX retentions_due ON memory.retentions (due_at) WHERE days > 0;

-- In both, what is erased leaves the index: the next ones are always the first.
CREATE INDEX conversations_to_erase ON memory.conversations (workspace_id, user_id, thread_id) WHERE erased_at IS NULL;
CREATE INDEX deleted_conversations ON memory.conversations (workspace_id, listed_at)
    WHERE deleted_at IS NOT NULL AND erased_at IS NULL;

-- What a kept answer is about: an answer may hold content, and goes when that is erased.
ALTER TABLE memory.requests
    ADD COLUMN thread_id text COLLATE "C",
    ADD COLUMN user_id text COLLATE "C";

CREATE INDEX requests_of_a_thread ON memory.requests (workspace_id, thread_id) WHERE thread_id IS NOT NULL;
CREATE INDEX requests_of_a_user ON memory.requests (workspace_id, user_id) WHERE user_id IS NOT NULL;
CREATE INDEX requests_of_no_thread ON memory.requests (workspace_id) WHERE thread_id IS NULL;

-- Deletes at most p_limit rows of one table that belong to a conversation, if that is erased; returns how many there were.
-- The application's role can delete no message otherwise, and through this none of a conversation that is not erased.
CREATE FUNCTION memory.erase_rows(p_workspace text, p_thread text, p_table text, p_limit integer)
RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone integer;
BEGIN
    IF p_table IN ('conversations', 'window_purges', 'erasures', 'erasure_threads') THEN
        RAISE insufficient_privilege USING MESSAGE = format('rows of %I are not erased', p_table);
    END IF;
    -- Held, so that it cannot be begun anew meanwhile.
    PERFORM FROM memory.conversations c
    WHERE c.workspace_id = p_workspace AND c.thread_id = p_thread AND c.erased_at IS NOT NULL
    FOR SHARE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    EXECUTE format(
        'DELETE FROM memory.%1$I WHERE ctid = ANY (ARRAY('
        'SELECT ctid FROM memory.%1$I WHERE workspace_id = $1 AND thread_id = $2 LIMIT $3 FOR UPDATE))',
        p_table
    ) USING p_workspace, p_thread, p_limit;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;
