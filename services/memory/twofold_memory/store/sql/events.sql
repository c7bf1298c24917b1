-- name: record_events
-- Takes the next offsets and keeps the events there; the head's row stays locked until the commit, so offsets are in its order.
WITH counted AS (
    INSERT INTO memory.record_heads AS h (workspace_id, thread_id, event_offset)
    VALUES ($1, $2, cardinality($3::text[]))
    ON CONFLICT (workspace_id, thread_id) DO UPDATE SET event_offset = h.event_offset + excluded.event_offset
    RETURNING event_offset
)
INSERT INTO memory.events (workspace_id, thread_id, event_offset, kind, payload, by_service)
SELECT $1, $2, counted.event_offset - cardinality($3::text[]) + e.place, e.kind, e.payload, $5
FROM counted, unnest($3::text[], $4::text[]) WITH ORDINALITY AS e (kind, payload, place)
RETURNING event_offset, created_at;

-- name: event_offset
SELECT event_offset FROM memory.record_heads WHERE workspace_id = $1 AND thread_id = $2;

-- name: events_after
-- A page ends with the event that makes it larger than $5 bytes.
SELECT event_offset, kind, payload, by_service, created_at
FROM (
    SELECT
        event_offset, kind, payload, by_service, created_at,
        sum(octet_length(payload))
            OVER (ORDER BY event_offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT event_offset, kind, payload, by_service, created_at
        FROM memory.events
        WHERE workspace_id = $1 AND thread_id = $2 AND event_offset > $3
        ORDER BY event_offset
        LIMIT $4
    ) e
) e
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY event_offset;

-- name: events_of_kind_after
-- As events_after, of one kind.
SELECT event_offset, kind, payload, by_service, created_at
FROM (
    SELECT
        event_offset, kind, payload, by_service, created_at,
        sum(octet_length(payload))
            OVER (ORDER BY event_offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (
        SELECT event_offset, kind, payload, by_service, created_at
        FROM memory.events
        WHERE workspace_id = $1 AND thread_id = $2 AND kind = $6 AND event_offset > $3
        ORDER BY event_offset
        LIMIT $4
    ) e
) e
WHERE coalesce(bytes_before, 0) <= $5
ORDER BY event_offset;
