-- What the roles of the service may do; run after every migration. No DDL; audit entries and usage events are only added.
REVOKE ALL ON ALL TABLES IN SCHEMA registry FROM {application}, {system};
GRANT USAGE ON SCHEMA registry TO {application}, {system};

-- The application: what belongs to a tenant.
GRANT SELECT, UPDATE ON registry.registry_head TO {application};
GRANT SELECT, INSERT, UPDATE ON registry.workspaces, registry.users, registry.agents, registry.audit_heads TO {application};
GRANT SELECT, INSERT, UPDATE, DELETE ON registry.grants, registry.requests, registry.agent_observations TO {application};
GRANT SELECT, INSERT ON registry.usage_events, registry.audit_entries TO {application};
GRANT SELECT, INSERT ON registry.usage_keys, registry.usage_adjustments, registry.invoices, registry.invoice_lines TO {application};
GRANT SELECT, INSERT, UPDATE ON registry.usage_sums, registry.usage_totals, registry.usage_caps TO {application};
GRANT INSERT ON registry.changes TO {application};
-- Of no tenant: whether the router that asks is registered is seen by the statement that answers it.
GRANT SELECT ON registry.watchers TO {application};
GRANT SELECT, INSERT, UPDATE ON registry.sessions TO {application};

-- The system: what belongs to none.
GRANT SELECT ON ALL TABLES IN SCHEMA registry TO {system};
GRANT UPDATE ON registry.registry_head TO {system};
GRANT SELECT, DELETE ON registry.changes TO {system};
-- A registration of a pod is of no tenant and has a request id, too; and who locks the rows it sweeps must be able to update them.
GRANT SELECT, INSERT, UPDATE, DELETE ON registry.requests, registry.pods TO {system};
GRANT USAGE, SELECT ON SEQUENCE registry.pod_incarnation TO {system};
GRANT SELECT, UPDATE, DELETE ON registry.sessions TO {system};
GRANT INSERT, UPDATE, DELETE ON registry.watchers TO {system};
GRANT EXECUTE ON FUNCTION registry.add_usage_partitions(integer) TO {system};
