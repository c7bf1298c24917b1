-- What the application role may do; run after every migration. No DDL; numbers, once given, never change.
GRANT USAGE ON SCHEMA memory TO {application};
GRANT SELECT ON ALL TABLES IN SCHEMA memory TO {application};
GRANT INSERT, UPDATE ON memory.conversations, memory.preference_versions TO {application};
-- A message's content can be taken away or replaced, its number and its place in its turn cannot.
GRANT INSERT, UPDATE (content, rest, token_count, revision, status) ON memory.messages TO {application};
GRANT INSERT, UPDATE (status) ON memory.turns TO {application};
GRANT INSERT, UPDATE ON memory.message_revisions, memory.dead_letters TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.preferences TO {application};
-- An event, once it is in the log, never changes.
GRANT INSERT, DELETE ON memory.events TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.record_heads, memory.summaries, memory.tool_runs TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.checkpoint_lines, memory.checkpoints TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.requests, memory.window_purges TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.open_turns, memory.turn_waiters TO {application};
GRANT INSERT, DELETE ON memory.owed_usage TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.search_entries, memory.search_pending, memory.documents TO {application};
-- Messages, turns and the like are deleted by erase_rows alone, and only those of conversations that are erased.
GRANT INSERT, UPDATE ON memory.erasures, memory.retentions TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.erasure_threads, memory.preference_purges TO {application};
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA memory FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA memory TO {application};
