-- What the application role may do; run after every migration. No DDL; audit entries and usage events are only added.
REVOKE ALL ON ALL TABLES IN SCHEMA registry FROM {application};
GRANT USAGE ON SCHEMA registry TO {application};
GRANT SELECT, UPDATE ON registry.registry_head TO {application};
GRANT SELECT, INSERT, UPDATE ON registry.workspaces, registry.users, registry.agents TO {application};
GRANT SELECT, INSERT, UPDATE, DELETE ON registry.grants, registry.requests TO {application};
GRANT SELECT, INSERT ON registry.usage_events, registry.audit_entries TO {application};
