-- What was seen of the publisher: a slot, publisher or target that was made again, restored or replaced shows
-- less than this, or another history. Null where an older version recorded the position.

ALTER TABLE pgsluice.subscription
    ADD COLUMN publisher_timeline       bigint,
    ADD COLUMN publisher_timeline_start pg_lsn,
    ADD COLUMN publisher_is_standby     boolean,
    ADD COLUMN publisher_started_at     timestamptz,
    ADD COLUMN publisher_wal_lsn        pg_lsn,
    ADD COLUMN publisher_next_xid       bigint,
    ADD COLUMN slot_restart_lsn         pg_lsn,
    ADD COLUMN publisher_seen_at        timestamptz,
    ADD COLUMN distrusted_started_at    timestamptz;

COMMENT ON COLUMN pgsluice.subscription.publisher_timeline IS 'The publisher''s timeline when it was last compared with what is recorded here.';
COMMENT ON COLUMN pgsluice.subscription.publisher_timeline_start IS 'Where that timeline began; null for the first one, or if that is not known yet.';
COMMENT ON COLUMN pgsluice.subscription.publisher_is_standby IS 'Whether the publisher was a standby then.';
COMMENT ON COLUMN pgsluice.subscription.publisher_started_at IS 'When the publisher''s postmaster started.';
COMMENT ON COLUMN pgsluice.subscription.publisher_wal_lsn IS 'Highest end of WAL on that timeline that is known to survive a crash of the publisher.';
COMMENT ON COLUMN pgsluice.subscription.publisher_next_xid IS 'Highest next transaction identifier, with its epoch, that is known to survive it.';
COMMENT ON COLUMN pgsluice.subscription.slot_restart_lsn IS 'Highest restart_lsn of the slot that is known to survive it.';
COMMENT ON COLUMN pgsluice.subscription.publisher_seen_at IS 'When these three last changed.';
COMMENT ON COLUMN pgsluice.subscription.distrusted_started_at IS 'When the publisher''s postmaster started that was found to run from an older state; null if the last one was trusted.';
