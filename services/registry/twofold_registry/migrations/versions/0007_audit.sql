-- One index for each way in which a listing can go along the chain; those of the first form were in the order of revisions.
DROP INDEX registry.audit_of_a_kind;
DROP INDEX registry.audit_of_a_resource;
CREATE INDEX audit_of_a_kind ON registry.audit_entries (workspace_id, resource_kind, seq);
CREATE INDEX audit_of_a_resource ON registry.audit_entries (workspace_id, resource_kind, resource_id, seq);
CREATE INDEX audit_of_an_actor ON registry.audit_entries (workspace_id, actor, seq);
CREATE INDEX audit_of_an_action ON registry.audit_entries (workspace_id, action, seq);
CREATE INDEX audit_of_a_request ON registry.audit_entries (workspace_id, request_id, seq);
CREATE INDEX audit_by_time ON registry.audit_entries (workspace_id, created_at, seq);

-- The end of a chain only moves on: not back, not to another hash at the same place, not to another workspace.
CREATE FUNCTION registry.refuse_to_turn_audit_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the end of an audit chain only moves on' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_heads_move_on BEFORE UPDATE ON registry.audit_heads
    FOR EACH ROW
    WHEN (NEW.workspace_id <> OLD.workspace_id OR NEW.seq < OLD.seq OR (NEW.seq = OLD.seq) <> (NEW.hash = OLD.hash))
    EXECUTE FUNCTION registry.refuse_to_turn_audit_back();
CREATE TRIGGER audit_heads_stay BEFORE DELETE OR TRUNCATE ON registry.audit_heads
    FOR EACH STATEMENT EXECUTE FUNCTION registry.refuse_to_turn_audit_back();
CREATE TRIGGER audit_heads_begin_empty BEFORE INSERT ON registry.audit_heads
    FOR EACH ROW WHEN (NEW.seq <> 0)
    EXECUTE FUNCTION registry.refuse_to_turn_audit_back();
