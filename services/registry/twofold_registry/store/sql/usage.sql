-- name: insert_events
-- Columns of the batch as arrays, sorted by id, so that two batches wait for each other and never in a circle.
INSERT INTO registry.usage_events
    (workspace_id, event_id, user_id, agent_id, thread_id, event_time, messages, input_tokens, output_tokens, body_hash)
SELECT $1, batch.event_id, batch.user_id, batch.agent_id, batch.thread_id, batch.event_time,
    batch.messages, batch.input_tokens, batch.output_tokens, batch.body_hash
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::bigint[], $8::bigint[], $9::bigint[],
    $10::bytea[]) AS batch
    (event_id, user_id, agent_id, thread_id, event_time, messages, input_tokens, output_tokens, body_hash)
ON CONFLICT (workspace_id, event_id) DO NOTHING
RETURNING event_id;

-- name: recorded_bodies
SELECT event_id, body_hash FROM registry.usage_events WHERE workspace_id = $1 AND event_id = ANY ($2::text[]);

-- name: sum_usage
-- One row, or none if there is no such workspace. A sum that does not fit is an error, never a wrong number.
SELECT count(e.event_id) AS events,
    coalesce(sum(e.messages), 0)::bigint AS messages,
    coalesce(sum(e.input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(e.output_tokens), 0)::bigint AS output_tokens
FROM registry.workspaces w
LEFT JOIN registry.usage_events e ON e.workspace_id = w.workspace_id AND e.event_time >= $2 AND e.event_time < $3
    AND ($4::text IS NULL OR e.user_id = $4) AND ($5::text IS NULL OR e.agent_id = $5)
WHERE w.workspace_id = $1 AND w.deleted_at IS NULL
GROUP BY w.workspace_id;
