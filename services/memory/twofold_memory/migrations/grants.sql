-- What the application role may do; run after every migration. No DDL; numbered messages and turns are never changed.
GRANT USAGE ON SCHEMA memory TO {application};
GRANT SELECT ON ALL TABLES IN SCHEMA memory TO {application};
GRANT INSERT, UPDATE ON memory.conversations, memory.preference_versions TO {application};
GRANT INSERT ON memory.messages, memory.turns TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.preferences TO {application};
GRANT INSERT, UPDATE, DELETE ON memory.requests, memory.window_purges TO {application};
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA memory FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA memory TO {application};
