-- Another database of the same server is another publisher, though its slots' positions may fit.

ALTER TABLE pgsluice.subscription ADD COLUMN publisher_database bigint;

COMMENT ON COLUMN pgsluice.subscription.publisher_database IS 'OID of the publisher''s database, to which the slot belongs.';

-- A write of the state that was given up may be carried out after later ones.
ALTER TABLE pgsluice.subscription ADD COLUMN state_written_at timestamptz;

COMMENT ON COLUMN pgsluice.subscription.state_written_at IS 'When the transaction began that wrote the state.';
