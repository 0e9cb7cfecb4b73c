-- Tables that are to be synchronised again, or taken up, because an operator asked for it.

ALTER TABLE pgsluice.table_sync
    ADD COLUMN resync    text CONSTRAINT table_sync_resync_known CHECK (resync IN ('replace', 'truncate', 'merge')),
    ADD COLUMN resync_by text;

COMMENT ON COLUMN pgsluice.table_sync.resync IS 'How the rows that the table has are treated by the copy that was asked for: replace, truncate or merge; null for a table that joins.';
COMMENT ON COLUMN pgsluice.table_sync.resync_by IS 'Who asked for that.';

ALTER TABLE pgsluice.subscription
    ADD COLUMN refresh         text CONSTRAINT subscription_refresh_known CHECK (refresh IN ('copy', 'no_copy')),
    ADD COLUMN refresh_command bigint;

COMMENT ON COLUMN pgsluice.subscription.refresh IS 'The published tables are to be taken up because an operator asked for it: copy, or no_copy for tables whose rows are here already; null once that is done.';
COMMENT ON COLUMN pgsluice.subscription.refresh_command IS 'Number of the command that asked for it.';
