-- How the stream last described a table's columns: a type that changes while pgsluice is stopped is noticed, and a
-- column that is new on the publisher is told from one that the target has lost, or that was not published before.

ALTER TABLE pgsluice.table_sync
    ADD COLUMN described jsonb;

COMMENT ON COLUMN pgsluice.table_sync.described IS 'The table on the publisher as the stream last described it: columns is an array of objects with name, type_schema, type_name and typmod; last_number is the largest number of a column that the publisher''s catalog had then. Null before the first description.';
COMMENT ON COLUMN pgsluice.gap.kind IS 'slot_gone, slot_lost, slot_ahead, diverged, publication, returned, replaced, operations, row_filter, columns or redefined.';
