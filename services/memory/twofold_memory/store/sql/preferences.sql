-- name: preference_versions
-- One row for each asked user who ever had preferences, with their place in the question.
SELECT k.place, v.version
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (workspace_id, user_id, place)
JOIN memory.preference_versions v ON v.workspace_id = k.workspace_id AND v.user_id = k.user_id;

-- name: preferences
-- The version and all preferences in one statement: one snapshot. No row: the user never had any.
SELECT v.version AS version_of_all, p.key, p.value, p.version, p.updated_at, p.expires_at
FROM memory.preference_versions v
LEFT JOIN memory.preferences p
    ON p.workspace_id = v.workspace_id AND p.user_id = v.user_id AND (p.expires_at IS NULL OR p.expires_at > now())
WHERE v.workspace_id = $1 AND v.user_id = $2
ORDER BY p.key;

-- name: lock_preferences
-- Makes the user's version row if there is none, and locks it: changes of one user's preferences come one after the other.
INSERT INTO memory.preference_versions AS v (workspace_id, user_id, version)
VALUES ($1, $2, 0)
ON CONFLICT (workspace_id, user_id) DO UPDATE SET version = v.version
RETURNING version;

-- name: set_preferences
INSERT INTO memory.preferences AS p (workspace_id, user_id, key, value, expires_at, version)
SELECT $1, $2, s.key, s.value, s.expires_at, $6
FROM unnest($3::text[], $4::text[], $5::timestamptz[]) AS s (key, value, expires_at)
ON CONFLICT (workspace_id, user_id, key) DO UPDATE
SET value = excluded.value, expires_at = excluded.expires_at, version = excluded.version, updated_at = now()
WHERE p.value <> excluded.value OR p.expires_at IS DISTINCT FROM excluded.expires_at
RETURNING key;

-- name: remove_preferences
DELETE FROM memory.preferences
WHERE workspace_id = $1 AND user_id = $2 AND key = ANY ($3::text[])
RETURNING key;

-- name: remove_expired_preferences
DELETE FROM memory.preferences WHERE workspace_id = $1 AND user_id = $2 AND expires_at <= now();

-- name: versions_of_preferences
SELECT key, version FROM memory.preferences WHERE workspace_id = $1 AND user_id = $2 AND key = ANY ($3::text[]);

-- name: sweep_preferences
DELETE FROM memory.preferences
WHERE (workspace_id, user_id, key) IN (
    SELECT workspace_id, user_id, key FROM memory.preferences
    WHERE expires_at <= now()
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
RETURNING 1;

-- name: set_preference_version
UPDATE memory.preference_versions SET version = $3 WHERE workspace_id = $1 AND user_id = $2;
