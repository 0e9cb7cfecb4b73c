-- Ownership ends with the run of the server in which it was taken. Changes that a table may lack since before it left.

ALTER TABLE pgsluice.owner ADD COLUMN server_started_at timestamptz;

COMMENT ON COLUMN pgsluice.owner.server_started_at IS 'When the server had been started that the instance took the subscription over on. Ownership ends with that run of the server: a restored one has the same term. Null if an older version took it over.';
COMMENT ON COLUMN pgsluice.gap.kind IS 'slot_gone, slot_lost, slot_ahead, diverged, publication, returned, replaced, operations, row_filter, columns, redefined, occupied, passed_over or last_changes.';
