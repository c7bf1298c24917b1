-- name: usage_terms
-- What a recording needs to know: the current month, the first one that is open, and the prices of the agents, also of deleted
-- ones. A row for each agent there is, one without where there is none of them; no row if there never was such a workspace: of one
-- that was deleted, too, what was used is owed.
SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date AS current_month,
    (SELECT (max(i.month) + interval '1 month')::date FROM registry.invoices i WHERE i.workspace_id = $1) AS open_month,
    a.agent_id, a.currency, a.price_message_micros, a.price_input_micros, a.price_output_micros
FROM registry.workspaces w
LEFT JOIN registry.agents a ON a.workspace_id = w.workspace_id AND a.agent_id = ANY ($2::text[])
WHERE w.workspace_id = $1;

-- name: keep_months_open
-- Whoever records into a month that is over keeps all such months from being closed until the end of the transaction. The row is one
-- that every workspace has; ordinary changes, which lock it more weakly, are not in the way.
SELECT FROM registry.audit_heads WHERE workspace_id = $1 FOR KEY SHARE;

-- name: record_usage
-- Claims the ids, keeps the events whose id was free, and adds them up, in one statement and so in one transaction: there is no
-- moment at which an id is taken and its event does not count. An id that another call is recording now is waited for. Everybody
-- takes keys, sums and totals in the same order, so nobody waits in a circle; totals last, as all of the workspace meet there.
-- Columns of the batch as arrays; what several events have in common, who used what at which price, apart and once ($10 to $17),
-- with its place in each event ($3), as text is dear to send; the first open month (NULL: all are). Returns which ids were not free
-- (NULL: all were), and whether all months were open.
WITH batch AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::integer[], $4::timestamptz[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[],
        $9::bigint[]) AS b
        (event_id, subject, event_time, messages, input_tokens, output_tokens, body_hash, cost_micros)
), subjects AS MATERIALIZED (
    SELECT * FROM unnest($10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bigint[], $16::bigint[],
        $17::bigint[]) WITH ORDINALITY AS s
        (user_id, agent_id, thread_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, subject)
), fresh AS (
    INSERT INTO registry.usage_keys (workspace_id, event_id, body_hash)
    SELECT $1, event_id, body_hash FROM batch ORDER BY event_id
    ON CONFLICT (workspace_id, event_id) DO NOTHING
    RETURNING event_id
), new AS MATERIALIZED (
    SELECT b.event_id, s.user_id, s.agent_id, s.thread_id, s.kind, b.event_time, b.messages, b.input_tokens, b.output_tokens,
        b.cost_micros, m.origin_month, greatest(m.origin_month, $18::date) AS month, s.currency, s.price_message_micros,
        s.price_input_micros, s.price_output_micros
    FROM fresh f
    JOIN batch b ON b.event_id = f.event_id
    JOIN subjects s ON s.subject = b.subject
    CROSS JOIN LATERAL (SELECT date_trunc('month', b.event_time AT TIME ZONE 'UTC')::date AS origin_month) AS m
), recorded AS (
    INSERT INTO registry.usage_events
        (workspace_id, event_id, user_id, agent_id, thread_id, kind, event_time, messages, input_tokens, output_tokens, month,
        currency, price_message_micros, price_input_micros, price_output_micros, cost_micros)
    SELECT $1, event_id, user_id, agent_id, thread_id, kind, event_time, messages, input_tokens, output_tokens, month, currency,
        price_message_micros, price_input_micros, price_output_micros, cost_micros
    FROM new
), sums AS (
    INSERT INTO registry.usage_sums AS s
        (workspace_id, origin_month, agent_id, user_id, kind, month, currency, price_message_micros, price_input_micros,
        price_output_micros, events, messages, input_tokens, output_tokens, cost_micros)
    SELECT $1, origin_month, agent_id, user_id, kind, month, currency, price_message_micros, price_input_micros,
        price_output_micros, count(*), sum(messages), sum(input_tokens), sum(output_tokens), sum(cost_micros)
    FROM new
    GROUP BY origin_month, agent_id, user_id, kind, month, currency, price_message_micros, price_input_micros,
        price_output_micros
    ORDER BY origin_month, agent_id, user_id, kind, month, currency, price_message_micros, price_input_micros,
        price_output_micros
    ON CONFLICT (workspace_id, origin_month, agent_id, user_id, kind, month, currency, price_message_micros,
        price_input_micros, price_output_micros)
    DO UPDATE SET events = s.events + excluded.events, messages = s.messages + excluded.messages,
        input_tokens = s.input_tokens + excluded.input_tokens, output_tokens = s.output_tokens + excluded.output_tokens,
        cost_micros = s.cost_micros + excluded.cost_micros
    RETURNING s.month, s.currency
), due AS MATERIALIZED (
    -- Of what `sums` has returned, so that its rows are locked before those of the totals.
    SELECT month, coalesce(currency, '') AS currency FROM sums GROUP BY GROUPING SETS ((month), (month, currency))
), totals AS (
    INSERT INTO registry.usage_totals AS t
        (workspace_id, month, currency, events, messages, input_tokens, output_tokens, cost_micros)
    SELECT $1, d.month, d.currency, count(*), sum(r.messages), sum(r.input_tokens), sum(r.output_tokens),
        CASE WHEN d.currency = '' THEN 0 ELSE sum(r.cost_micros) END
    FROM due d JOIN new r ON r.month = d.month AND d.currency IN ('', r.currency)
    GROUP BY d.month, d.currency
    ORDER BY d.month, d.currency
    ON CONFLICT (workspace_id, month, currency)
    DO UPDATE SET events = t.events + excluded.events, messages = t.messages + excluded.messages,
        input_tokens = t.input_tokens + excluded.input_tokens, output_tokens = t.output_tokens + excluded.output_tokens,
        cost_micros = t.cost_micros + excluded.cost_micros
    WHERE NOT t.closed
    RETURNING t.month
)
SELECT CASE WHEN (SELECT count(*) FROM fresh) < cardinality($2::text[])
        THEN array(SELECT event_id FROM batch EXCEPT SELECT event_id FROM fresh) END AS taken,
    (SELECT count(*) FROM due) = (SELECT count(*) FROM totals) AS all_open;

-- name: recorded_bodies
SELECT event_id, body_hash FROM registry.usage_keys WHERE workspace_id = $1 AND event_id = ANY ($2::text[]);

-- name: query_events
-- Sums by group ($7) of the events of a span, and by currency within a group. A sum that does not fit is an error, never a wrong
-- number.
WITH parts AS (
    SELECT CASE $7::text WHEN 'user' THEN user_id WHEN 'agent' THEN agent_id WHEN 'kind' THEN kind
            WHEN 'day' THEN to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD')
            WHEN 'month' THEN to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM') ELSE '' END COLLATE "C" AS place,
        currency, count(*) AS events, sum(messages) AS messages, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cost_micros)::bigint AS cost_micros
    FROM registry.usage_events
    WHERE workspace_id = $1 AND event_time >= $2 AND event_time < $3 AND ($4::text IS NULL OR user_id = $4)
        AND ($5::text IS NULL OR agent_id = $5) AND ($6::text IS NULL OR kind = $6)
    GROUP BY 1, 2
)
SELECT place, sum(events)::bigint AS events, sum(messages)::bigint AS messages, sum(input_tokens)::bigint AS input_tokens,
    sum(output_tokens)::bigint AS output_tokens, array_agg(currency ORDER BY currency) AS currencies,
    array_agg(cost_micros ORDER BY currency) AS costs
FROM parts WHERE place > $8 OR $8 = '' GROUP BY place ORDER BY place LIMIT $9;

-- name: query_sums
-- The same for whole months, from the sums that are kept.
WITH parts AS (
    SELECT CASE $7::text WHEN 'user' THEN user_id WHEN 'agent' THEN agent_id WHEN 'kind' THEN kind
            WHEN 'month' THEN to_char(origin_month, 'YYYY-MM') ELSE '' END COLLATE "C" AS place,
        currency, sum(events) AS events, sum(messages) AS messages, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cost_micros)::bigint AS cost_micros
    FROM registry.usage_sums
    WHERE workspace_id = $1 AND origin_month >= $2 AND origin_month < $3 AND ($4::text IS NULL OR user_id = $4)
        AND ($5::text IS NULL OR agent_id = $5) AND ($6::text IS NULL OR kind = $6)
    GROUP BY 1, 2
)
SELECT place, sum(events)::bigint AS events, sum(messages)::bigint AS messages, sum(input_tokens)::bigint AS input_tokens,
    sum(output_tokens)::bigint AS output_tokens, array_agg(currency ORDER BY currency) AS currencies,
    array_agg(cost_micros ORDER BY currency) AS costs
FROM parts WHERE place > $8 OR $8 = '' GROUP BY place ORDER BY place LIMIT $9;

-- name: read_window
-- Cells (part 0) and operations (1) of one snapshot: $2 is the begin of the first cell, $3 the length of one, $4 when operations
-- begin, $5 and $6 how many of each there may be, $7 and $8 whether cells are apart by user and by agent. And a row that tells when (2), if there is such a workspace.
WITH cells AS (
    SELECT date_bin($3, event_time, '1970-01-01T00:00:00Z'::timestamptz) AS at,
        CASE WHEN $7 THEN user_id ELSE '' END AS user_id, CASE WHEN $8 THEN agent_id ELSE '' END AS agent_id, currency,
        count(*) AS events, sum(messages)::bigint AS messages, sum(input_tokens)::bigint AS input_tokens,
        sum(output_tokens)::bigint AS output_tokens, sum(cost_micros)::bigint AS cost_micros
    FROM registry.usage_events
    WHERE workspace_id = $1 AND event_time >= $2
    GROUP BY 1, 2, 3, 4
    LIMIT $5
), operations AS (
    SELECT coalesce(substring(event_id FROM '^(.*)/'), event_id) AS operation_id, min(event_time) AS at
    FROM registry.usage_events
    WHERE workspace_id = $1 AND event_time >= $4
    GROUP BY 1
    LIMIT $6
)
SELECT 0 AS part, at, user_id, agent_id, currency, events, messages, input_tokens, output_tokens, cost_micros,
    '' AS operation_id
FROM cells
UNION ALL
SELECT 1, at, '', '', '', 0, 0, 0, 0, 0, operation_id FROM operations
UNION ALL
SELECT 2, now(), '', '', '', 0, 0, 0, 0, 0, '' FROM registry.workspaces WHERE workspace_id = $1 AND deleted_at IS NULL
ORDER BY part, at, user_id, agent_id, currency, operation_id;

-- name: add_usage_partitions
SELECT registry.add_usage_partitions($1);
