-- Row-level security; run after every migration, so that every table of a tenant has it, also one that is new. Forced, so that it
-- holds for an application that is the owner, too. The application sees the workspaces that its transaction has named; the
-- owner (migrations, operators) and the system role (what follows all changes, sweeps) see all.
DO $policies$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'registry'::regnamespace AND c.relkind IN ('r', 'p')
            AND a.attname = 'workspace_id' AND NOT a.attisdropped
            AND c.relname NOT IN ('changes', 'pods')  -- of no tenant: they are read by the system role only
    LOOP
        -- What is right stays untouched: each of these locks the table against everybody, and others serve while this one starts.
        CONTINUE WHEN (SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = format('registry.%I', name)::regclass)
            AND EXISTS (SELECT FROM pg_policy WHERE polrelid = format('registry.%I', name)::regclass AND polname = 'tenants')
            AND EXISTS (
                SELECT FROM pg_policy
                WHERE polrelid = format('registry.%I', name)::regclass AND polname = 'everything'
                    AND polroles @> ARRAY[to_regrole($role${system}$role$)::oid, to_regrole($role${owner}$role$)::oid]
                    AND polroles <@ ARRAY[to_regrole($role${system}$role$)::oid, to_regrole($role${owner}$role$)::oid]
            );
        EXECUTE format('ALTER TABLE registry.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE registry.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('DROP POLICY IF EXISTS tenants ON registry.%I', name);
        EXECUTE format('CREATE POLICY tenants ON registry.%I USING (workspace_id = ANY ((SELECT registry.tenants())::text[]))', name);
        EXECUTE format('DROP POLICY IF EXISTS everything ON registry.%I', name);
        EXECUTE format('CREATE POLICY everything ON registry.%I TO {system}, {owner} USING (true)', name);
    END LOOP;
END
$policies$;
