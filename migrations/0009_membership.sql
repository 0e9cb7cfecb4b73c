-- What identifies tables and publications on the publisher, and since when they are known. Null where an older
-- version recorded them: they are taken as they are first seen.

ALTER TABLE pgsluice.table_sync
    ADD COLUMN source_oid bigint,
    ADD COLUMN target_oid bigint,
    ADD COLUMN marks      jsonb,
    ADD COLUMN left_from  pg_lsn,
    ADD COLUMN left_lsn   pg_lsn,
    ADD COLUMN left_xid   bigint,
    ADD COLUMN let_go_at  timestamptz,
    ADD CONSTRAINT table_sync_left_whole CHECK ((left_lsn IS NULL) = (left_xid IS NULL));

COMMENT ON COLUMN pgsluice.table_sync.source_oid IS 'OID of the table on the publisher: a renamed table is the same one, another table of its name is not.';
COMMENT ON COLUMN pgsluice.table_sync.target_oid IS 'OID of the table in this database when it was last looked up.';
COMMENT ON COLUMN pgsluice.table_sync.marks IS 'How each publication publishes the table, with the catalog rows that make it a member. They prove that it was published all the time.';
COMMENT ON COLUMN pgsluice.table_sync.left_from IS 'A table that has left the publications: up to here it is known to have been published.';
COMMENT ON COLUMN pgsluice.table_sync.left_lsn IS 'A table that has left the publications: end of the publisher''s WAL when that was first seen. Null while it is published.';
COMMENT ON COLUMN pgsluice.table_sync.left_xid IS 'The publisher''s next transaction identifier then, with its epoch: changes of older transactions still apply.';
COMMENT ON COLUMN pgsluice.table_sync.let_go_at IS 'When the stream had passed left_lsn, so that the table was let go.';

ALTER TABLE pgsluice.subscription
    ADD COLUMN publication_record    jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN publications_seen_lsn pg_lsn;

COMMENT ON COLUMN pgsluice.subscription.publication_record IS 'The publications with their OIDs, and the positions at which they were first seen or missed, as far as the stream has not passed them.';
COMMENT ON COLUMN pgsluice.subscription.publications_seen_lsn IS 'Up to here the publications are known to have been as recorded here.';
