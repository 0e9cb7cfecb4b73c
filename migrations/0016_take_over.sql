-- What a new owner needs to end what a former one has left behind that hangs, or whose host is gone; and to go on with a
-- removal that was begun.

ALTER TABLE pgsluice.owner ADD COLUMN walsender_pid int, ADD COLUMN walsender_started_at timestamptz,
    ADD COLUMN walsender_noted_in oid;

COMMENT ON COLUMN pgsluice.owner.walsender_pid IS 'Process ID of the walsender on the publisher that sends, or last sent, the stream. The next owner ends it if it still uses the slot.';
COMMENT ON COLUMN pgsluice.owner.walsender_started_at IS 'When that walsender was started, by which it is told from a later process with this ID.';
COMMENT ON COLUMN pgsluice.owner.walsender_noted_in IS 'OID of the database in which it was noted: a copy in another database of the same server has nothing to do with it.';

ALTER TABLE pgsluice.subscription ADD COLUMN removal_began_at timestamptz;

COMMENT ON COLUMN pgsluice.subscription.removal_began_at IS 'When somebody began to remove the subscription. Whoever finds this goes on with it: the slot may be gone already.';
