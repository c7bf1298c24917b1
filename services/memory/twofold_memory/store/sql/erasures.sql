-- name: keep_erasure
INSERT INTO memory.erasures (workspace_id, erasure_id, kind, thread_id, user_id, unchanged_since, actor)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (workspace_id, erasure_id) DO NOTHING
RETURNING true;

-- name: erasure
SELECT
    workspace_id, erasure_id, kind, thread_id, user_id, actor, asked_at, rows_gone_at, windows_gone_at, copies_gone_at, done_at,
    epoch, conversation_count, window_count, copy_count, row_counts
FROM memory.erasures
WHERE workspace_id = $1 AND erasure_id = $2;

-- name: erasures_before
SELECT
    workspace_id, erasure_id, kind, thread_id, user_id, actor, asked_at, rows_gone_at, windows_gone_at, copies_gone_at, done_at,
    epoch, conversation_count, window_count, copy_count, row_counts
FROM memory.erasures
WHERE workspace_id = $1 AND (asked_at, erasure_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::text, ''))
ORDER BY asked_at DESC, erasure_id DESC
LIMIT $4;

-- name: due_erasure
-- Whatever becomes of the step that follows, others come before the next one: one that fails is no hindrance to them.
UPDATE memory.erasures SET due_at = now() + interval '1 second'
WHERE (workspace_id, erasure_id) = (
    SELECT workspace_id, erasure_id FROM memory.erasures
    WHERE done_at IS NULL AND due_at <= now()
    ORDER BY due_at
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING workspace_id, erasure_id;

-- name: open_erasure
-- Who works on one holds its row.
SELECT workspace_id, erasure_id, kind, thread_id, user_id, unchanged_since, asked_at, swept_at, users_until, records_gone_at, due_at
FROM memory.erasures
WHERE workspace_id = $1 AND erasure_id = $2 AND done_at IS NULL
FOR UPDATE SKIP LOCKED;

-- name: conversations_of_a_user_to_erase
SELECT thread_id FROM memory.conversations
WHERE workspace_id = $1 AND user_id = $2 AND erased_at IS NULL AND created_at <= $3
ORDER BY thread_id
LIMIT $4;

-- name: conversations_of_a_workspace_to_erase
SELECT thread_id FROM memory.conversations
WHERE workspace_id = $1 AND erased_at IS NULL AND created_at <= $2
ORDER BY user_id, thread_id
LIMIT $3;

-- name: conversations_kept_long_enough
-- Not those whose messages are shared by a branch that has to be kept.
(
    SELECT c.thread_id FROM memory.conversations c
    WHERE c.workspace_id = $1 AND c.deleted_at IS NULL AND c.erased_at IS NULL AND c.listed_at < $2 AND c.updated_at < $2
        AND NOT EXISTS (
            SELECT FROM memory.conversations b
            WHERE b.workspace_id = $1 AND b.ancestors @> ARRAY[c.thread_id] AND b.ancestors <> '{}'
                AND b.erased_at IS NULL AND b.updated_at >= $2
        )
    ORDER BY c.listed_at
    LIMIT $3
)
UNION ALL
(
    SELECT c.thread_id FROM memory.conversations c
    WHERE c.workspace_id = $1 AND c.deleted_at IS NOT NULL AND c.erased_at IS NULL AND c.listed_at < $2 AND c.updated_at < $2
        AND NOT EXISTS (
            SELECT FROM memory.conversations b
            WHERE b.workspace_id = $1 AND b.ancestors @> ARRAY[c.thread_id] AND b.ancestors <> '{}'
                AND b.erased_at IS NULL AND b.updated_at >= $2
        )
    ORDER BY c.listed_at
    LIMIT $3
);

-- name: branches_of
SELECT thread_id FROM memory.conversations
WHERE workspace_id = $1 AND ancestors && $2::text[] AND ancestors <> '{}' AND erased_at IS NULL;

-- name: lock_conversations
-- In the order in which appends lock them.
SELECT thread_id FROM memory.conversations
WHERE workspace_id = $1 AND thread_id = ANY ($2::text[])
ORDER BY thread_id
FOR UPDATE;

-- name: erase_conversations
-- $3 also those that are erased already; $4 only those that were last changed before and share no message with a later one.
UPDATE memory.conversations c
SET
    user_id = NULL, title = '', metadata = '{}', next_seq = 1, floor_seq = 0, ancestors = '{}', shared_until = '{}',
    parent_thread_id = NULL, deleted_at = NULL, erased_at = now(), updated_at = now(),
    epoch = epoch + 1, version = version + 1
WHERE workspace_id = $1 AND thread_id = ANY ($2::text[]) AND ($3 OR erased_at IS NULL)
    AND ($4::timestamptz IS NULL OR updated_at < $4 AND NOT EXISTS (
        SELECT FROM memory.conversations b
        WHERE b.workspace_id = $1 AND b.ancestors @> ARRAY[c.thread_id] AND b.ancestors <> '{}'
            AND b.erased_at IS NULL AND b.updated_at >= $4
    ))
RETURNING thread_id, epoch;

-- name: cut_branches
-- Branches lose what they shared with conversations that are erased, and all before it.
UPDATE memory.conversations c
SET
    epoch = epoch + 1,
    floor_seq = greatest(c.floor_seq, (
        SELECT max(a.until) FROM unnest(c.ancestors, c.shared_until) AS a (thread_id, until)
        WHERE a.thread_id = ANY ($2::text[])
    ))
WHERE workspace_id = $1 AND ancestors && $2::text[] AND ancestors <> '{}' AND erased_at IS NULL
RETURNING thread_id, epoch;

-- name: erase_summaries_of_branches
-- What was written of messages that a branch has lost.
DELETE FROM memory.summaries s
USING memory.conversations c
WHERE c.workspace_id = $1 AND c.thread_id = ANY ($2::text[])
    AND s.workspace_id = $1 AND s.thread_id = c.thread_id AND s.first_seq <= c.floor_seq;

-- name: ask_erasing_purges
INSERT INTO memory.window_purges (workspace_id, thread_id, epoch, erased)
SELECT $1, t.thread_id, t.epoch, $4 FROM unnest($2::text[], $3::bigint[]) AS t (thread_id, epoch)
ON CONFLICT (workspace_id, thread_id)
DO UPDATE SET epoch = excluded.epoch, erased = excluded.erased, asked_at = now(), done = false;

-- name: keep_erasure_threads
INSERT INTO memory.erasure_threads AS e (workspace_id, erasure_id, thread_id, epoch, erased, rows_left)
SELECT $1, $2, t.thread_id, t.epoch, $5, $5 FROM unnest($3::text[], $4::bigint[]) AS t (thread_id, epoch)
ON CONFLICT (workspace_id, erasure_id, thread_id) DO UPDATE
SET
    epoch = excluded.epoch, erased = e.erased OR excluded.erased, rows_left = e.rows_left OR excluded.rows_left,
    copies_left = true;

-- name: older_transaction
-- Whether a transaction of this role is under way that began before: what it makes counts as made before.
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND xact_start <= $1 AND pid <> pg_backend_pid()
);

-- name: erasure_swept
UPDATE memory.erasures
SET due_at = now(), swept_at = now(), epoch = $3, records_gone_at = CASE WHEN kind IN (1, 4) THEN now() END
WHERE workspace_id = $1 AND erasure_id = $2;

-- name: count_erased
-- $3 conversations, $4 tables, $5 rows of each. It stands behind all others that are due then.
UPDATE memory.erasures e
SET
    due_at = now(),
    conversation_count = conversation_count + $3,
    row_counts = row_counts || coalesce((
        SELECT jsonb_object_agg(t.name, coalesce((e.row_counts ->> t.name)::bigint, 0) + t.count)
        FROM unnest($4::text[], $5::bigint[]) AS t (name, count)
        WHERE t.count > 0
    ), '{}')
WHERE workspace_id = $1 AND erasure_id = $2;

-- name: threads_with_rows
SELECT thread_id FROM memory.erasure_threads
WHERE workspace_id = $1 AND erasure_id = $2 AND rows_left
ORDER BY thread_id
LIMIT $3;

-- name: erase_rows
-- Of each of these tables, in their order.
SELECT t.name, memory.erase_rows($1, $2, t.name, $4) AS gone FROM unnest($3::text[]) AS t (name);

-- name: rows_gone
UPDATE memory.erasure_threads SET rows_left = false WHERE workspace_id = $1 AND erasure_id = $2 AND thread_id = $3;

-- name: void_preferences
-- Raises the version by two: that of an empty copy, which takes the place of every one there is, and behind it the one that stands
-- here, so that the empty copy is not believed either.
UPDATE memory.preference_versions SET version = version + 2
WHERE workspace_id = $1 AND user_id = $2
RETURNING version - 1 AS version;

-- name: erase_preferences
DELETE FROM memory.preferences WHERE workspace_id = $1 AND user_id = $2 AND updated_at <= $3 RETURNING true;

-- name: users_with_preferences
SELECT user_id FROM memory.preference_versions WHERE workspace_id = $1 AND user_id > $2 ORDER BY user_id LIMIT $3;

-- name: users_until
UPDATE memory.erasures SET users_until = $3 WHERE workspace_id = $1 AND erasure_id = $2;

-- name: ask_preference_purge
INSERT INTO memory.preference_purges (workspace_id, user_id, version)
VALUES ($1, $2, $3)
ON CONFLICT (workspace_id, user_id) DO UPDATE SET version = excluded.version, asked_at = now(), done = false;

-- name: erase_answers_of_user
DELETE FROM memory.requests WHERE workspace_id = $1 AND user_id = $2 AND rpc NOT LIKE 'Erase%' AND created_at <= $3 RETURNING true;

-- name: erase_answers_of_workspace
DELETE FROM memory.requests
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM memory.requests
    WHERE workspace_id = $1 AND rpc NOT LIKE 'Erase%' AND rpc <> 'SetRetention' AND created_at <= $2
    LIMIT $3
))
RETURNING true;

-- name: erase_tool_runs_of_no_thread
DELETE FROM memory.tool_runs
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM memory.tool_runs WHERE workspace_id = $1 AND thread_id IS NULL AND created_at <= $2 LIMIT $3
))
RETURNING true;

-- name: records_gone
UPDATE memory.erasures SET due_at = now(), records_gone_at = now() WHERE workspace_id = $1 AND erasure_id = $2;

-- name: settle_erasure
-- What is gone is written down. What is not done is due again in a second; done means that nothing is left anywhere.
UPDATE memory.erasures e
SET
    rows_gone_at = coalesce(e.rows_gone_at, CASE WHEN s.rows_gone THEN now() END),
    windows_gone_at = coalesce(e.windows_gone_at, CASE WHEN s.windows_gone THEN now() END),
    copies_gone_at = coalesce(e.copies_gone_at, CASE WHEN s.copies_gone THEN now() END),
    done_at = CASE WHEN s.rows_gone AND s.windows_gone AND s.copies_gone THEN now() END,
    due_at = now() + interval '1 second'
FROM (
    SELECT
        e.records_gone_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM memory.erasure_threads t WHERE t.workspace_id = $1 AND t.erasure_id = $2 AND t.rows_left
        ) AS rows_gone,
        e.swept_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM memory.erasure_threads t WHERE t.workspace_id = $1 AND t.erasure_id = $2 AND t.copies_left
        ) AS windows_gone,
        e.records_gone_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM memory.preference_purges p
            WHERE e.kind IN (2, 3) AND p.workspace_id = $1 AND (e.kind = 3 OR p.user_id = e.user_id) AND NOT p.done
        ) AS copies_gone
    FROM memory.erasures e
    WHERE e.workspace_id = $1 AND e.erasure_id = $2
) s
WHERE e.workspace_id = $1 AND e.erasure_id = $2
RETURNING e.done_at IS NOT NULL AS done;

-- name: forget_erasure_threads
DELETE FROM memory.erasure_threads
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM memory.erasure_threads
    WHERE workspace_id = $1 AND erasure_id = $2 AND NOT rows_left AND NOT copies_left
    LIMIT $3
));

-- name: windows_that_went
-- Conversations of an erasure whose windows are gone, and whose other copies may be left.
SELECT t.thread_id, t.epoch, t.erased FROM memory.erasure_threads t
WHERE t.workspace_id = $1 AND t.erasure_id = $2 AND t.copies_left AND NOT EXISTS (
    SELECT FROM memory.window_purges p WHERE p.workspace_id = $1 AND p.thread_id = t.thread_id AND NOT p.done
)
LIMIT $3;

-- name: copies_gone
WITH gone AS (
    UPDATE memory.erasure_threads SET copies_left = false
    WHERE workspace_id = $1 AND erasure_id = $2 AND thread_id = ANY ($3::text[]) AND copies_left
    RETURNING true
)
UPDATE memory.erasures SET window_count = window_count + (SELECT count(*) FROM gone)
WHERE workspace_id = $1 AND erasure_id = $2;

-- name: count_copies
UPDATE memory.erasures SET copy_count = copy_count + $3 WHERE workspace_id = $1 AND erasure_id = $2;

-- name: due_preference_purges
SELECT workspace_id, user_id, version FROM memory.preference_purges WHERE NOT done ORDER BY asked_at LIMIT $1;

-- name: recent_preference_purges
-- $1, $2 the user to begin behind, $3 how long a copy can live, $4 how many
SELECT workspace_id, user_id, version FROM memory.preference_purges
WHERE (workspace_id, user_id) > ($1, $2) AND asked_at > now() - $3::interval
ORDER BY workspace_id, user_id LIMIT $4;

-- name: preference_purge_done
UPDATE memory.preference_purges SET done = true WHERE workspace_id = $1 AND user_id = $2 AND version = $3;

-- name: forget_preference_purges
-- $1 how long a copy can live, $2 how many at a time
DELETE FROM memory.preference_purges
WHERE (workspace_id, user_id) IN (
    SELECT workspace_id, user_id FROM memory.preference_purges
    WHERE asked_at <= now() - $1::interval AND done
    ORDER BY asked_at LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: retention
SELECT workspace_id, days, version, updated_at FROM memory.retentions WHERE workspace_id = $1;

-- name: make_retention
INSERT INTO memory.retentions (workspace_id, days, version) VALUES ($1, 0, 0) ON CONFLICT (workspace_id) DO NOTHING;

-- name: lock_retention
SELECT workspace_id, days, version, updated_at FROM memory.retentions WHERE workspace_id = $1 FOR UPDATE;

-- name: set_retention
UPDATE memory.retentions SET days = $2, version = version + 1, updated_at = now(), due_at = now()
WHERE workspace_id = $1
RETURNING workspace_id, days, version, updated_at;

-- name: due_retention
SELECT workspace_id, now() - days * interval '1 day' AS unchanged_since
FROM memory.retentions
WHERE days > 0 AND due_at <= now()
ORDER BY due_at
LIMIT 1
FOR UPDATE SKIP LOCKED;

-- name: retention_done
UPDATE memory.retentions SET due_at = now() + $2::interval WHERE workspace_id = $1;

-- name: begin_erased_anew
-- The id is taken again: of an erased conversation of this epoch, of which nothing is left.
UPDATE memory.conversations c
SET
    user_id = $3, title = $4, metadata = $5::jsonb, next_seq = 1, floor_seq = 0, deleted_at = NULL, erased_at = NULL,
    epoch = epoch + 1, version = version + 1, created_at = now(), updated_at = now(), listed_at = now()
WHERE workspace_id = $1 AND thread_id = $2 AND erased_at IS NOT NULL AND epoch = $6
    AND NOT EXISTS (SELECT FROM memory.erasure_threads e WHERE e.workspace_id = $1 AND e.thread_id = $2)
RETURNING
    workspace_id, thread_id, user_id, title, metadata, next_seq, floor_seq, parent_thread_id, shared_until, version,
    created_at, updated_at, listed_at, epoch;

-- name: tombstone
SELECT
    c.epoch,
    EXISTS (SELECT FROM memory.erasure_threads e WHERE e.workspace_id = $1 AND e.thread_id = $2) AS being_erased
FROM memory.conversations c
WHERE c.workspace_id = $1 AND c.thread_id = $2 AND c.erased_at IS NOT NULL;
