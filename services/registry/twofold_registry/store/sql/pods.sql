-- name: register_pod
-- Where the pod is known the number is drawn under its row's lock: of two registrations the later one has the greater
-- incarnation.
INSERT INTO registry.pods AS p (pod_id, address, epoch, number, state, registered_at, seen_at)
VALUES ($1, $2, $3, nextval('registry.pod_incarnation'), 'live', clock_timestamp(), clock_timestamp())
ON CONFLICT (pod_id) DO UPDATE
SET address = excluded.address, epoch = greatest(p.epoch, excluded.epoch), number = nextval('registry.pod_incarnation'),
    state = 'live', registered_at = clock_timestamp(), seen_at = clock_timestamp(), dead_at = NULL, dead_reason = '',
    marked_by = ''
RETURNING epoch, number;

-- name: newest_number
-- The greatest number that was given in this epoch, or more.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM registry.pod_incarnation;

-- name: get_pods
SELECT pod_id, address, epoch, number, state, registered_at, dead_at, dead_reason, marked_by,
    state = 'live' AND seen_at < now() - interval '1 hour' AS unseen
FROM registry.pods
WHERE pod_id = ANY ($1::text[]);

-- name: pods_are_seen
-- Nobody waits for it: who finds a row locked leaves it to the other.
UPDATE registry.pods SET seen_at = now()
WHERE pod_id IN (
    SELECT p.pod_id
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS asked (pod_id, epoch, number)
    JOIN registry.pods p ON (p.pod_id, p.epoch, p.number) = (asked.pod_id, asked.epoch, asked.number)
    WHERE p.state = 'live'
    FOR NO KEY UPDATE OF p SKIP LOCKED
);

-- name: mark_pod_dead
-- One row if it was not dead before: neither marked so, nor followed by a newer incarnation.
INSERT INTO registry.pods AS p (pod_id, address, epoch, number, state, seen_at, dead_at, dead_reason, marked_by)
VALUES ($1, '', $2, $3, 'dead', now(), now(), $4, $5)
ON CONFLICT (pod_id) DO UPDATE
SET epoch = excluded.epoch, number = excluded.number, state = 'dead', dead_at = clock_timestamp(),
    dead_reason = excluded.dead_reason, marked_by = excluded.marked_by,
    registered_at = CASE WHEN (p.epoch, p.number) = (excluded.epoch, excluded.number) THEN p.registered_at END
WHERE (p.epoch, p.number) < (excluded.epoch, excluded.number)
    OR ((p.epoch, p.number) = (excluded.epoch, excluded.number) AND p.state = 'live')
RETURNING true;

-- name: list_pods
SELECT pod_id, address, epoch, number, state, registered_at, dead_at, dead_reason, marked_by
FROM registry.pods
WHERE pod_id > $1 AND ($2::text IS NULL OR state = $2)
ORDER BY pod_id
LIMIT $3;
