-- Usage that the ledger may not know yet.

-- What a turn consumed, from the transaction that closes it until somebody says that the ledger has it: so it is mostly empty. Ids
-- and numbers only, and it stays when the conversation is erased: what was used is owed.
CREATE TABLE memory.owed_usage (
    workspace_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    turn_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    event_time timestamptz NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    owed_since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, thread_id, turn_id)
);
