-- Another database of the same server is another publisher, though its slots' positions may fit.

ALTER TABLE pgsluice.subscription ADD COLUMN publisher_database bigint;

COMMENT ON COLUMN pgsluice.subscription.publisher_database IS 'OID of the publisher''s database, to which the slot belongs.';
