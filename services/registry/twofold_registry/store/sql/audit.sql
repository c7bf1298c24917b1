-- A listing of the audit is two steps: the places of entries along an index, each in both directions, and then what stands
-- there. $2 and $3 are the places between which they lie, $4 is how many.

-- name: audit_of_request_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND request_id = $5 AND seq > $2 AND seq < $3
ORDER BY seq DESC LIMIT $4;

-- name: audit_of_request_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND request_id = $5 AND seq > $2 AND seq < $3
ORDER BY seq LIMIT $4;

-- name: audit_of_resource_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND resource_id = $5 AND resource_kind = $6 AND seq > $2 AND seq < $3
ORDER BY seq DESC LIMIT $4;

-- name: audit_of_resource_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND resource_id = $5 AND resource_kind = $6 AND seq > $2 AND seq < $3
ORDER BY seq LIMIT $4;

-- name: audit_of_actor_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND actor = $5 AND seq > $2 AND seq < $3
ORDER BY seq DESC LIMIT $4;

-- name: audit_of_actor_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND actor = $5 AND seq > $2 AND seq < $3
ORDER BY seq LIMIT $4;

-- name: audit_of_action_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND action = $5 AND seq > $2 AND seq < $3
ORDER BY seq DESC LIMIT $4;

-- name: audit_of_action_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND action = $5 AND seq > $2 AND seq < $3
ORDER BY seq LIMIT $4;

-- name: audit_of_kind_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND resource_kind = $5 AND seq > $2 AND seq < $3
ORDER BY seq DESC LIMIT $4;

-- name: audit_of_kind_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND resource_kind = $5 AND seq > $2 AND seq < $3
ORDER BY seq LIMIT $4;

-- name: audit_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND seq > $2 AND seq < $3
ORDER BY seq DESC LIMIT $4;

-- name: audit_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND seq > $2 AND seq < $3
ORDER BY seq LIMIT $4;

-- name: audit_by_time_newest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND (created_at, seq) > ($2, $3) AND (created_at, seq) < ($4, $5)
ORDER BY created_at DESC, seq DESC LIMIT $6;

-- name: audit_by_time_oldest
SELECT seq, created_at FROM registry.audit_entries
WHERE workspace_id = $1 AND (created_at, seq) > ($2, $3) AND (created_at, seq) < ($4, $5)
ORDER BY created_at, seq LIMIT $6;

-- name: audit_places_of_revisions
SELECT
    (SELECT seq FROM registry.audit_entries WHERE workspace_id = $1 AND revision >= $2 ORDER BY revision, ordinal LIMIT 1) AS first,
    (SELECT seq FROM registry.audit_entries WHERE workspace_id = $1 AND revision <= $3
        ORDER BY revision DESC, ordinal DESC LIMIT 1) AS last;

-- name: read_audit
-- Those at the places of $2 that pass all filters, in the order of the places.
SELECT e.seq, e.revision, e.ordinal, e.actor, e.action, e.resource_kind, e.resource_id, e.before_json, e.after_json,
    e.request_id, e.created_at, e.prev_hash, e.hash
FROM unnest($2::bigint[]) WITH ORDINALITY AS p (seq, place)
CROSS JOIN LATERAL (
    -- OFFSET 0: the filters are for these places only, and no reason to go along an index of all that pass one of them.
    SELECT * FROM registry.audit_entries a WHERE a.workspace_id = $1 AND a.seq = p.seq OFFSET 0
) e
WHERE ($4::text IS NULL OR e.resource_kind = $4) AND ($5::text IS NULL OR e.resource_id = $5)
    AND ($6::text IS NULL OR e.actor = $6) AND ($7::text IS NULL OR e.action = $7)
    AND ($8::text IS NULL OR e.request_id = $8)
    AND ($9::timestamptz IS NULL OR e.created_at >= $9) AND ($10::timestamptz IS NULL OR e.created_at < $10)
    AND ($11::bigint IS NULL OR e.revision >= $11) AND ($12::bigint IS NULL OR e.revision <= $12)
ORDER BY p.place
LIMIT $3;

-- name: get_audit_head
-- The end of a chain, and which history its revision is of.
SELECT c.seq, c.hash, coalesce(e.revision, 0) AS revision, clock_timestamp() AS at, h.revision AS head_revision,
    CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch
FROM registry.audit_heads c
CROSS JOIN registry.registry_head h
LEFT JOIN registry.audit_entries e ON e.workspace_id = c.workspace_id AND e.seq = c.seq
WHERE c.workspace_id = $1;

-- name: audit_place
SELECT hash, revision, ordinal FROM registry.audit_entries WHERE workspace_id = $1 AND seq = $2 LIMIT 1;

-- name: audit_batch
-- The places behind $2 up to $3, at most $4 entries and about $5 bytes of them, and the end of the chain: all in one view. It
-- trusts no constraint, as whoever rewrites a chain can drop those first. `following` is the place of the next entry up to $3.
-- A time that no entry can have (infinity, before Christ) is read as another one, whose hash is not the entry's either.
WITH ends AS MATERIALIZED (
    SELECT c.seq AS head_seq, c.hash AS head_hash,
        (SELECT min(a.seq) FROM registry.audit_entries a WHERE a.workspace_id = $1) AS lowest,
        (SELECT min(a.seq) FROM registry.audit_entries a WHERE a.workspace_id = $1 AND a.seq > c.seq) AS behind
    FROM (SELECT $1::text) AS asked (workspace_id)
    LEFT JOIN registry.audit_heads c ON c.workspace_id = asked.workspace_id
)
SELECT ends.head_seq, ends.head_hash, ends.lowest, ends.behind, e.*
FROM ends
LEFT JOIN LATERAL (
    SELECT seq, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id,
        CASE WHEN created_at >= '0001-01-01T00:00:00Z' AND created_at < '9999-12-31T00:00:00Z' THEN created_at
            ELSE '0001-01-01T00:00:00Z' END AS created_at,
        prev_hash, hash, following
    FROM (
        SELECT *, lead(seq) OVER places AS following,
            sum(octet_length(before_json) + octet_length(after_json) + 500) OVER (places ROWS BETWEEN UNBOUNDED PRECEDING
                AND 1 PRECEDING) AS bytes_before
        FROM registry.audit_entries
        WHERE workspace_id = $1 AND seq > $2 AND seq <= $3
        WINDOW places AS (ORDER BY seq, revision, ordinal)
        ORDER BY seq, revision, ordinal
        LIMIT $4
    ) entries
    WHERE coalesce(bytes_before, 0) < $5
) e ON true
ORDER BY e.seq, e.revision, e.ordinal;
