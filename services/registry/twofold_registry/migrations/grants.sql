-- What the roles of the service may do; run after every migration. No DDL; audit entries and usage events are only added.
REVOKE ALL ON ALL TABLES IN SCHEMA registry FROM {application}, {system};
GRANT USAGE ON SCHEMA registry TO {application}, {system};

-- The application: what belongs to a tenant.
GRANT SELECT, UPDATE ON registry.registry_head TO {application};
GRANT SELECT, INSERT, UPDATE ON registry.workspaces, registry.users, registry.agents, registry.audit_heads TO {application};
GRANT SELECT, INSERT, UPDATE, DELETE ON registry.grants, registry.requests, registry.agent_observations TO {application};
GRANT SELECT, INSERT ON registry.usage_events, registry.audit_entries TO {application};
GRANT INSERT ON registry.changes TO {application};

-- The system: what belongs to none.
GRANT SELECT ON ALL TABLES IN SCHEMA registry TO {system};
GRANT UPDATE ON registry.registry_head TO {system};
GRANT SELECT, DELETE ON registry.requests, registry.changes TO {system};
GRANT INSERT, UPDATE, DELETE ON registry.watchers TO {system};
