-- Ownership ends with the run of the server in which it was taken. Gaps of tables that have left, and of targets that were
-- made again.

ALTER TABLE pgsluice.owner ADD COLUMN server_started_at timestamptz;

COMMENT ON COLUMN pgsluice.owner.server_started_at IS 'When the server had been started that the instance took the subscription over on. Ownership ends with that run of the server: a restored one has the same term. Null if an older version took it over.';

-- A target that was restored from a dump has other OIDs, and so has this schema.
ALTER TABLE pgsluice.subscription ADD COLUMN record_oid oid;

COMMENT ON COLUMN pgsluice.subscription.record_oid IS 'OID of pgsluice.table_sync when target_oid of its tables was recorded. Null if an older version recorded them.';
COMMENT ON COLUMN pgsluice.gap.kind IS 'slot_gone, slot_lost, slot_ahead, diverged, publication, returned, replaced, operations, row_filter, columns, redefined, occupied, passed_over, last_changes or other_target.';
