-- The ids of all usage events there ever were, so that one refuses another body for ever. Apart from the events, and never
-- partitioned: an event may go one day with its month's partition, its id may not.
CREATE TABLE registry.usage_keys (
    workspace_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    body_hash bytea NOT NULL,
    CONSTRAINT event_ids_are_unique PRIMARY KEY (workspace_id, event_id),
    CONSTRAINT event_ids_fit CHECK (octet_length(event_id) BETWEEN 1 AND 255),
    CONSTRAINT event_hashes_are_whole CHECK (octet_length(body_hash) = 32)
);

INSERT INTO registry.usage_keys (workspace_id, event_id, body_hash)
SELECT workspace_id, event_id, body_hash FROM registry.usage_events;

ALTER TABLE registry.usage_events RENAME TO usage_events_before;
ALTER INDEX registry.usage_by_time RENAME TO usage_by_time_before;

-- Each event with the price that its agent had when it was recorded, and what it costs at that price. Partitioned by the month of
-- the event, so that the index that all inserts and most reports touch stays small. Where a month has no partition of its own its
-- events are in the default one: nothing ever fails for want of a partition.
CREATE TABLE registry.usage_events (
    workspace_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    event_time timestamptz NOT NULL,
    messages bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    -- The month in whose bill it stands: its own, or the first open one if that was closed.
    month date NOT NULL,
    currency text COLLATE "C" NOT NULL,
    price_message_micros bigint NOT NULL,
    price_input_micros bigint NOT NULL,
    price_output_micros bigint NOT NULL,
    cost_micros bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT amounts_are_bounded CHECK (
        messages >= 0 AND input_tokens >= 0 AND output_tokens >= 0 AND cost_micros BETWEEN 0 AND 1000000000000000
    )
) PARTITION BY RANGE (event_time);

CREATE INDEX usage_by_time ON registry.usage_events (workspace_id, event_time);
CREATE TABLE registry.usage_events_other PARTITION OF registry.usage_events DEFAULT;

-- Gives this month and the next `ahead` ones partitions. Run daily by the service's system role, which has no DDL of its own, and
-- therefore as the owner. A month that has events in the default partition already stays there.
CREATE FUNCTION registry.add_usage_partitions(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    begins timestamptz;
    ends timestamptz;
    name text;
    made integer := 0;
BEGIN
    FOR step IN 0 .. least(ahead, 24) LOOP
        begins := date_trunc('month', now()) + make_interval(months => step);
        ends := begins + interval '1 month';
        name := 'usage_events_' || to_char(begins, 'YYYY_MM');
        CONTINUE WHEN to_regclass('registry.' || name) IS NOT NULL;
        -- Several processes may come at once.
        PERFORM pg_advisory_xact_lock(hashtext('registry.add_usage_partitions'));
        CONTINUE WHEN to_regclass('registry.' || name) IS NOT NULL;
        CONTINUE WHEN EXISTS (
            SELECT FROM registry.usage_events_other WHERE event_time >= begins AND event_time < ends
        );
        EXECUTE format(
            'CREATE TABLE registry.%I PARTITION OF registry.usage_events FOR VALUES FROM (%L) TO (%L)',
            name, begins, ends
        );
        EXECUTE format('ALTER TABLE registry.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

REVOKE ALL ON FUNCTION registry.add_usage_partitions(integer) FROM PUBLIC;
SELECT registry.add_usage_partitions(3);

-- What was recorded before prices came costs nothing.
INSERT INTO registry.usage_events
    (workspace_id, event_id, user_id, agent_id, thread_id, kind, event_time, messages, input_tokens, output_tokens, month,
    currency, price_message_micros, price_input_micros, price_output_micros, cost_micros, recorded_at)
SELECT workspace_id, event_id, user_id, agent_id, thread_id, 'turn', event_time, messages, input_tokens, output_tokens,
    date_trunc('month', event_time AT TIME ZONE 'UTC')::date, 'USD', 0, 0, 0, 0, recorded_at
FROM registry.usage_events_before;

DROP TABLE registry.usage_events_before;

-- Sums over events, kept in the transaction that records them. `origin_month` is the month of the events, `month` that of the
-- bill they stand in. One row for each price, so that a bill can name it.
CREATE TABLE registry.usage_sums (
    workspace_id text COLLATE "C" NOT NULL,
    origin_month date NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    month date NOT NULL,
    currency text COLLATE "C" NOT NULL,
    price_message_micros bigint NOT NULL,
    price_input_micros bigint NOT NULL,
    price_output_micros bigint NOT NULL,
    events bigint NOT NULL,
    messages bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_micros bigint NOT NULL,
    CONSTRAINT usage_sums_are_unique PRIMARY KEY (workspace_id, origin_month, agent_id, user_id, kind, month, currency,
        price_message_micros, price_input_micros, price_output_micros)
) WITH (fillfactor = 50);

CREATE INDEX usage_sums_of_a_bill ON registry.usage_sums (workspace_id, month);

-- Sums of a month's bill, adjustments included: one row for each currency, and one of all events with the currency ''. That one
-- is the gate of the month: every recording locks it, and none gets past it once it is closed.
CREATE TABLE registry.usage_totals (
    workspace_id text COLLATE "C" NOT NULL,
    month date NOT NULL,
    currency text COLLATE "C" NOT NULL,
    events bigint NOT NULL DEFAULT 0,
    messages bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost_micros bigint NOT NULL DEFAULT 0,
    closed boolean NOT NULL DEFAULT false,
    CONSTRAINT usage_totals_are_unique PRIMARY KEY (workspace_id, month, currency)
) WITH (fillfactor = 50);

INSERT INTO registry.usage_sums
SELECT workspace_id, month, agent_id, user_id, kind, month, currency, 0, 0, 0, count(*), sum(messages), sum(input_tokens),
    sum(output_tokens), 0
FROM registry.usage_events GROUP BY workspace_id, month, agent_id, user_id, kind, currency;

INSERT INTO registry.usage_totals (workspace_id, month, currency, events, messages, input_tokens, output_tokens)
SELECT workspace_id, month, coalesce(currency, ''), sum(events), sum(messages), sum(input_tokens), sum(output_tokens)
FROM registry.usage_sums GROUP BY GROUPING SETS ((workspace_id, month, currency), (workspace_id, month));

-- Credits and debits that people made. Never changed: a wrong one is met by its opposite.
CREATE TABLE registry.usage_adjustments (
    workspace_id text COLLATE "C" NOT NULL,
    adjustment_id text COLLATE "C" NOT NULL,
    origin_month date NOT NULL,
    month date NOT NULL,
    currency text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL,
    reason text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT adjustment_ids_are_unique PRIMARY KEY (workspace_id, month, adjustment_id),
    CONSTRAINT adjustments_are_bounded CHECK (
        amount_micros BETWEEN -1000000000000000 AND 1000000000000000 AND amount_micros <> 0
    ),
    CONSTRAINT adjustments_have_reasons CHECK (octet_length(reason) BETWEEN 1 AND 1024)
);

-- A row for each closed month with something in it; with its lines never changed. A month is closed if it is not after the newest.
CREATE TABLE registry.invoices (
    workspace_id text COLLATE "C" NOT NULL,
    month date NOT NULL,
    currencies text[] NOT NULL,
    amounts_micros bigint[] NOT NULL,
    line_count bigint NOT NULL,
    closed_at timestamptz NOT NULL,
    closed_by text NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT invoices_are_unique PRIMARY KEY (workspace_id, month)
);

CREATE TABLE registry.invoice_lines (
    workspace_id text COLLATE "C" NOT NULL,
    month date NOT NULL,
    -- 0: usage, and `subject_id` is the agent; 1: an adjustment, and it is its id.
    part integer NOT NULL,
    subject_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    price_message_micros bigint NOT NULL,
    price_input_micros bigint NOT NULL,
    price_output_micros bigint NOT NULL,
    origin_month date NOT NULL,
    events bigint NOT NULL,
    messages bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    amount_micros bigint NOT NULL,
    reason text NOT NULL,
    CONSTRAINT invoice_lines_are_unique PRIMARY KEY (workspace_id, month, part, subject_id, kind, currency,
        price_message_micros, price_input_micros, price_output_micros, origin_month)
);

-- Limits of a workspace, 0 where there is none, and what those who follow the changes were told last: the state, and of which month.
CREATE TABLE registry.usage_caps (
    workspace_id text COLLATE "C" NOT NULL,
    messages_soft bigint NOT NULL,
    messages_hard bigint NOT NULL,
    tokens_soft bigint NOT NULL,
    tokens_hard bigint NOT NULL,
    cost_soft_micros bigint NOT NULL,
    cost_hard_micros bigint NOT NULL,
    currency text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    month date NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Of the last time that somebody set them.
    revision bigint NOT NULL,
    CONSTRAINT caps_are_one PRIMARY KEY (workspace_id),
    CONSTRAINT cap_states_are_known CHECK (state IN ('none', 'soft', 'hard'))
) WITH (fillfactor = 50);

-- For the sweep that takes back what was crossed in a month that is over.
CREATE INDEX caps_that_are_crossed ON registry.usage_caps (month) WHERE state <> 'none';
