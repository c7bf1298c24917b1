-- name: preference_versions
-- One row for each asked user who ever had preferences, with their place in the question.
SELECT k.place, v.version
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (workspace_id, user_id, place)
JOIN memory.preference_versions v ON v.workspace_id = k.workspace_id AND v.user_id = k.user_id;

-- name: preferences
-- The version and all preferences in one statement: one snapshot. No row: the user never had any.
SELECT v.version AS version_of_all, p.key, p.value, p.version, p.updated_at
FROM memory.preference_versions v
LEFT JOIN memory.preferences p ON p.workspace_id = v.workspace_id AND p.user_id = v.user_id
WHERE v.workspace_id = $1 AND v.user_id = $2
ORDER BY p.key;

-- name: lock_preferences
-- Makes the user's version row if there is none, and locks it: changes of one user's preferences come one after the other.
INSERT INTO memory.preference_versions AS v (workspace_id, user_id, version)
VALUES ($1, $2, 0)
ON CONFLICT (workspace_id, user_id) DO UPDATE SET version = v.version
RETURNING version;

-- name: set_preferences
INSERT INTO memory.preferences AS p (workspace_id, user_id, key, value, version)
SELECT $1, $2, s.key, s.value, $5
FROM unnest($3::text[], $4::text[]) AS s (key, value)
ON CONFLICT (workspace_id, user_id, key) DO UPDATE
SET value = excluded.value, version = excluded.version, updated_at = now()
WHERE p.value <> excluded.value
RETURNING key;

-- name: remove_preferences
DELETE FROM memory.preferences
WHERE workspace_id = $1 AND user_id = $2 AND key = ANY ($3::text[])
RETURNING key;

-- name: set_preference_version
UPDATE memory.preference_versions SET version = $3 WHERE workspace_id = $1 AND user_id = $2;
