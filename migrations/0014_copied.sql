-- From which moment a table's rows are: what the publications left out later is not on the target.

ALTER TABLE pgsluice.table_sync ADD COLUMN copied_lsn pg_lsn;

COMMENT ON COLUMN pgsluice.table_sync.copied_lsn IS 'Position of the snapshot of the table''s copy. Null if its rows were not copied, or if that is not known.';
