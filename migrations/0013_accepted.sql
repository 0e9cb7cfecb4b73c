-- Up to where a gap was accepted. Changes that were committed later are no part of what the operator accepted.

ALTER TABLE pgsluice.gap ADD COLUMN accepted_lsn pg_lsn;

COMMENT ON COLUMN pgsluice.gap.accepted_lsn IS 'Position up to which the gap was shown when it was accepted: what is missing behind it is another gap. Null if that is not known.';
COMMENT ON COLUMN pgsluice.gap.kind IS 'slot_gone, slot_lost, slot_ahead, diverged, publication, returned, replaced, operations, row_filter, columns, redefined, occupied or passed_over.';
