-- name: bill_head
-- The state of a month, and the sums of its bill by currency; no row if there never was such a workspace.
SELECT coalesce($2::date, date_trunc('month', now() AT TIME ZONE 'UTC')::date) AS month,
    coalesce((SELECT max(i.month) FROM registry.invoices i WHERE i.workspace_id = $1)
        >= coalesce($2::date, date_trunc('month', now() AT TIME ZONE 'UTC')::date), false) AS closed,
    t.currency, t.cost_micros
FROM registry.workspaces w
LEFT JOIN registry.usage_totals t ON t.workspace_id = w.workspace_id AND t.currency <> ''
    AND t.month = coalesce($2::date, date_trunc('month', now() AT TIME ZONE 'UTC')::date)
WHERE w.workspace_id = $1
ORDER BY t.currency;

-- name: bill_page
-- Lines of a bill behind a place. The totals are of the same snapshot: by currency, in each row.
WITH lines AS (
    SELECT 0 AS part, agent_id AS subject_id, kind, currency, price_message_micros, price_input_micros, price_output_micros,
        origin_month, sum(events)::bigint AS events, sum(messages)::bigint AS messages,
        sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
        sum(cost_micros)::bigint AS amount_micros, '' AS reason
    FROM registry.usage_sums
    WHERE workspace_id = $1 AND month = $2
    GROUP BY agent_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, origin_month
    UNION ALL
    SELECT 1, adjustment_id, 'adjustment', currency, 0, 0, 0, origin_month, 0, 0, 0, 0, amount_micros, reason
    FROM registry.usage_adjustments
    WHERE workspace_id = $1 AND month = $2
)
SELECT l.*, t.currencies, t.amounts_micros
FROM lines l
CROSS JOIN (
    SELECT array_agg(currency ORDER BY currency) AS currencies, array_agg(cost_micros ORDER BY currency) AS amounts_micros
    FROM registry.usage_totals WHERE workspace_id = $1 AND month = $2 AND currency <> ''
) AS t
WHERE (l.part, l.subject_id, l.kind, l.currency, l.price_message_micros, l.price_input_micros, l.price_output_micros,
    l.origin_month) > ($3::integer, $4::text, $5::text, $6::text, $7::bigint, $8::bigint, $9::bigint, $10::date)
ORDER BY l.part, l.subject_id, l.kind, l.currency, l.price_message_micros, l.price_input_micros, l.price_output_micros,
    l.origin_month
LIMIT $11;

-- name: await_months
-- Waits for those who keep the months that are over open; see keep_months_open.
SELECT FROM registry.audit_heads WHERE workspace_id = $1 FOR UPDATE;

-- name: lock_month
-- The gate of a month: whoever records into it has got past it and is seen, or waits in front of it. The row is made if need be.
INSERT INTO registry.usage_totals AS t (workspace_id, month, currency) VALUES ($1, $2, '')
ON CONFLICT (workspace_id, month, currency) DO UPDATE SET events = t.events;

-- name: months_of_a_closing
-- What decides whether a month can be closed now: the current month, the newest that is closed, and the first with something in it
-- that is not.
SELECT date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC')::date AS current_month,
    (SELECT max(month) FROM registry.invoices WHERE workspace_id = $1) AS closed_month,
    (SELECT min(month) FROM registry.usage_totals
        WHERE workspace_id = $1 AND NOT closed AND currency = '' AND month < $2 AND (events > 0 OR EXISTS (
            SELECT FROM registry.usage_adjustments a WHERE a.workspace_id = $1 AND a.month = usage_totals.month
        ))) AS waiting_month;

-- name: freeze_lines
INSERT INTO registry.invoice_lines
    (workspace_id, month, part, subject_id, kind, currency, price_message_micros, price_input_micros, price_output_micros,
    origin_month, events, messages, input_tokens, output_tokens, amount_micros, reason)
SELECT $1, $2, 0, agent_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, origin_month,
    sum(events), sum(messages), sum(input_tokens), sum(output_tokens), sum(cost_micros), ''
FROM registry.usage_sums
WHERE workspace_id = $1 AND month = $2
GROUP BY agent_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, origin_month
UNION ALL
SELECT $1, $2, 1, adjustment_id, 'adjustment', currency, 0, 0, 0, origin_month, 0, 0, 0, 0, amount_micros, reason
FROM registry.usage_adjustments
WHERE workspace_id = $1 AND month = $2;

-- name: frozen_sums
-- What the lines of an invoice sum to, by currency, and how many they are.
SELECT currency, sum(amount_micros)::bigint AS amount_micros, count(*) AS lines
FROM registry.invoice_lines WHERE workspace_id = $1 AND month = $2 GROUP BY currency ORDER BY currency;

-- name: close_totals
UPDATE registry.usage_totals SET closed = true WHERE workspace_id = $1 AND month = $2;

-- name: insert_invoice
INSERT INTO registry.invoices
    (workspace_id, month, currencies, amounts_micros, line_count, closed_at, closed_by, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: get_invoice
SELECT month, currencies, amounts_micros, line_count, closed_at, closed_by
FROM registry.invoices WHERE workspace_id = $1 AND month = $2;

-- name: invoice_page
SELECT part, subject_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, origin_month, events,
    messages, input_tokens, output_tokens, amount_micros, reason
FROM registry.invoice_lines
WHERE workspace_id = $1 AND month = $2
    AND (part, subject_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, origin_month)
        > ($3::integer, $4::text, $5::text, $6::text, $7::bigint, $8::bigint, $9::bigint, $10::date)
ORDER BY part, subject_id, kind, currency, price_message_micros, price_input_micros, price_output_micros, origin_month
LIMIT $11;

-- name: list_invoices
SELECT month, currencies, amounts_micros, line_count, closed_at, closed_by
FROM registry.invoices WHERE workspace_id = $1 AND month < $2 ORDER BY month DESC LIMIT $3;

-- name: billing_months
-- The current month, and the first one that is open; NULL if none was ever closed.
SELECT date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC')::date AS current_month,
    (SELECT (max(month) + interval '1 month')::date FROM registry.invoices WHERE workspace_id = $1) AS open_month;

-- name: insert_adjustment
INSERT INTO registry.usage_adjustments
    (workspace_id, adjustment_id, origin_month, month, currency, amount_micros, reason, created_by, created_at, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: add_to_totals
INSERT INTO registry.usage_totals AS t (workspace_id, month, currency, cost_micros) VALUES ($1, $2, $3, $4)
ON CONFLICT (workspace_id, month, currency) DO UPDATE SET cost_micros = t.cost_micros + excluded.cost_micros;

-- name: caps_and_use
-- The caps, what was told of them, and what counts of the current month. Without caps their columns are NULL; no row if there is no
-- such workspace, and `lives` is false if it is deleted. Money is that of a currency ($2), of the caps' own where it is NULL.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision,
    date_trunc('month', now() AT TIME ZONE 'UTC')::date AS current_month,
    c.messages_soft, c.messages_hard, c.tokens_soft, c.tokens_hard, c.cost_soft_micros, c.cost_hard_micros, c.currency,
    c.state, c.month, c.created_at, c.updated_at, c.revision, w.deleted_at IS NULL AS lives,
    coalesce(t.messages, 0) AS messages, coalesce(t.input_tokens::numeric + t.output_tokens, 0) AS tokens,
    coalesce(m.cost_micros, 0) AS cost_micros
FROM registry.registry_head h
CROSS JOIN registry.workspaces w
LEFT JOIN registry.usage_caps c ON c.workspace_id = w.workspace_id
LEFT JOIN registry.usage_totals t ON t.workspace_id = w.workspace_id AND t.currency = ''
    AND t.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
LEFT JOIN registry.usage_totals m ON m.workspace_id = w.workspace_id AND m.currency = coalesce($2::text, c.currency, 'USD')
    AND m.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
WHERE w.workspace_id = $1;

-- name: put_caps
INSERT INTO registry.usage_caps
    (workspace_id, messages_soft, messages_hard, tokens_soft, tokens_hard, cost_soft_micros, cost_hard_micros, currency, state,
    month, created_at, updated_at, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)
ON CONFLICT (workspace_id) DO UPDATE SET messages_soft = excluded.messages_soft, messages_hard = excluded.messages_hard,
    tokens_soft = excluded.tokens_soft, tokens_hard = excluded.tokens_hard, cost_soft_micros = excluded.cost_soft_micros,
    cost_hard_micros = excluded.cost_hard_micros, currency = excluded.currency, state = excluded.state,
    month = excluded.month, updated_at = excluded.updated_at, revision = excluded.revision;

-- name: cross_caps
UPDATE registry.usage_caps SET state = $2, month = $3 WHERE workspace_id = $1;

-- name: caps_of_past_months
-- Workspaces to which a new month has come and that were told of a cap in an earlier one.
SELECT c.workspace_id FROM registry.usage_caps c
JOIN registry.workspaces w ON w.workspace_id = c.workspace_id AND w.deleted_at IS NULL
WHERE c.state <> 'none' AND c.month < date_trunc('month', now() AT TIME ZONE 'UTC')::date
ORDER BY c.month, c.workspace_id LIMIT $1;
