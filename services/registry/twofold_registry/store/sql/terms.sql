-- name: get_terms
-- One statement, so that the revision is that of everything beside it. Without such a workspace its columns are NULL. Of the caps
-- what those who follow the changes were told: a state that nobody was told of yet is of a later revision.
SELECT CASE WHEN h.fingerprint = registry.fingerprint() THEN h.epoch END AS epoch, h.revision AS head_revision, now() AS at,
    w.limit_kinds, w.limit_amounts, w.limit_shadows, w.allowed_url_suffixes, w.namespace,
    u.limit_kinds AS user_limit_kinds, u.limit_amounts AS user_limit_amounts, u.limit_shadows AS user_limit_shadows,
    c.state AS cap_state, c.month AS cap_month
FROM registry.registry_head h
LEFT JOIN registry.workspaces w ON w.workspace_id = $1 AND w.deleted_at IS NULL
LEFT JOIN registry.users u ON u.workspace_id = w.workspace_id AND u.user_id = $2 AND u.deleted_at IS NULL
LEFT JOIN registry.usage_caps c ON c.workspace_id = w.workspace_id;
