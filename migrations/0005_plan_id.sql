-- A number for each plan that the server makes. Immutable, so that the planner puts the number into the plan
-- instead of the call: as long as a prepared statement tells the same number, the server has seen no reason to
-- plan it anew, and so no change of its tables.

CREATE FUNCTION pgsluice.plan_id() RETURNS pg_catalog.int8 LANGUAGE sql IMMUTABLE
    AS $$ SELECT 1 + (pg_catalog.random() * 9e15)::pg_catalog.int8 $$;

COMMENT ON FUNCTION pgsluice.plan_id() IS 'Differs from plan to plan, and stays the same within one.';
