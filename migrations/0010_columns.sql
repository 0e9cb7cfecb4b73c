-- What the stream last said of a table's columns: a type that changes while pgsluice is stopped is noticed, and a
-- column that is new on the publisher is told from one that the target has lost.

ALTER TABLE pgsluice.table_sync
    ADD COLUMN columns jsonb;

COMMENT ON COLUMN pgsluice.table_sync.columns IS 'The published columns with their types, as the stream last described them: an array of objects with name, type_schema, type_name and typmod. Null before the first description.';
