-- What each subscription is, where it stands, and how far each of its tables has come.
-- Rows that change every second leave room on their page, so that updates stay on it (HOT).

COMMENT ON SCHEMA pgsluice IS
    'State of the pgsluice subscriptions that write to this database. Written by pgsluice alone.';

COMMENT ON TABLE pgsluice._sqlx_migrations IS 'Versions of schema pgsluice that have been installed.';
COMMENT ON COLUMN pgsluice._sqlx_migrations.version IS 'Number of the migration.';
COMMENT ON COLUMN pgsluice._sqlx_migrations.description IS 'What the migration brings.';
COMMENT ON COLUMN pgsluice._sqlx_migrations.installed_on IS 'When it was installed.';
COMMENT ON COLUMN pgsluice._sqlx_migrations.success IS 'False would mean half-way; cannot happen, since a migration is one transaction.';
COMMENT ON COLUMN pgsluice._sqlx_migrations.checksum IS 'SHA-384 of the migration''s text, to notice a changed one.';
COMMENT ON COLUMN pgsluice._sqlx_migrations.execution_time IS 'How long it took, nanoseconds; -1 if that was not recorded.';

CREATE TABLE pgsluice.subscription (
    name                text PRIMARY KEY,
    slot                text NOT NULL,
    publisher_system_id text,
    publications        text[] NOT NULL,
    state               text NOT NULL DEFAULT 'starting' CONSTRAINT subscription_state_known
        CHECK (state IN ('starting', 'copying', 'streaming', 'retrying', 'paused', 'standby', 'disabled')),
    reason              text,
    detail              text,
    hint                text,
    conflict_id         bigint,
    state_since         timestamptz NOT NULL DEFAULT now(),
    desired             text NOT NULL DEFAULT 'run' CONSTRAINT subscription_desired_known
        CHECK (desired IN ('run', 'pause')),
    skip_lsn            pg_lsn,
    received_lsn        pg_lsn,
    flushed_lsn         pg_lsn,
    publisher_lsn       pg_lsn,
    lag_bytes           bigint,
    lag_seconds         double precision,
    wal_status          text,
    retained_bytes      bigint,
    warnings            jsonb NOT NULL DEFAULT '[]',
    instance            text,
    reported_at         timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

COMMENT ON TABLE pgsluice.subscription IS 'One row a subscription: its state, as the instance that applies it last reported.';
COMMENT ON COLUMN pgsluice.subscription.name IS 'Name in the configuration; also the advisory lock''s and the NOTIFY payload.';
COMMENT ON COLUMN pgsluice.subscription.slot IS 'Replication slot on the publisher.';
COMMENT ON COLUMN pgsluice.subscription.publisher_system_id IS 'The publisher''s system identifier: positions mean nothing on another one.';
COMMENT ON COLUMN pgsluice.subscription.publications IS 'Publications that are subscribed to.';
COMMENT ON COLUMN pgsluice.subscription.state IS 'starting, copying, streaming, retrying, paused, standby or disabled.';
COMMENT ON COLUMN pgsluice.subscription.reason IS 'Why it is in that state, as a word: conflict, schema, operator...';
COMMENT ON COLUMN pgsluice.subscription.detail IS 'The facts behind the reason, for a person.';
COMMENT ON COLUMN pgsluice.subscription.hint IS 'What to do next.';
COMMENT ON COLUMN pgsluice.subscription.conflict_id IS 'The conflict that holds it, if it is paused on one.';
COMMENT ON COLUMN pgsluice.subscription.state_since IS 'When it came into this state for this reason.';
COMMENT ON COLUMN pgsluice.subscription.desired IS 'What the operator wants: run or pause.';
COMMENT ON COLUMN pgsluice.subscription.skip_lsn IS 'Armed skip: the transaction that finishes exactly here is passed over.';
COMMENT ON COLUMN pgsluice.subscription.received_lsn IS 'Decoded up to here.';
COMMENT ON COLUMN pgsluice.subscription.flushed_lsn IS 'Reported to the publisher as durable in this database.';
COMMENT ON COLUMN pgsluice.subscription.publisher_lsn IS 'End of the publisher''s WAL when last seen.';
COMMENT ON COLUMN pgsluice.subscription.lag_bytes IS 'WAL bytes from the applied position to the publisher''s.';
COMMENT ON COLUMN pgsluice.subscription.lag_seconds IS 'Age of the oldest change that is not applied yet.';
COMMENT ON COLUMN pgsluice.subscription.wal_status IS 'pg_replication_slots.wal_status on the publisher.';
COMMENT ON COLUMN pgsluice.subscription.retained_bytes IS 'WAL bytes that the slot makes the publisher keep.';
COMMENT ON COLUMN pgsluice.subscription.warnings IS 'Array of texts: what works, but not as fully as it could, and why.';
COMMENT ON COLUMN pgsluice.subscription.instance IS 'Host and process that applies, or last applied, it.';
COMMENT ON COLUMN pgsluice.subscription.reported_at IS 'When that instance last wrote here.';
COMMENT ON COLUMN pgsluice.subscription.created_at IS 'When the subscription first appeared.';

CREATE TABLE pgsluice.progress (
    subscription text PRIMARY KEY REFERENCES pgsluice.subscription ON DELETE CASCADE,
    applied_lsn  pg_lsn NOT NULL,
    commit_time  timestamptz,
    transactions bigint NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

COMMENT ON TABLE pgsluice.progress IS 'How far each subscription has been applied. Changes only inside the transaction that applies the rows, never otherwise.';
COMMENT ON COLUMN pgsluice.progress.subscription IS 'The subscription.';
COMMENT ON COLUMN pgsluice.progress.applied_lsn IS 'Every transaction that finishes up to here is in this database, or was passed over on purpose.';
COMMENT ON COLUMN pgsluice.progress.commit_time IS 'When the last applied transaction committed on the publisher.';
COMMENT ON COLUMN pgsluice.progress.transactions IS 'Transactions applied so far.';
COMMENT ON COLUMN pgsluice.progress.updated_at IS 'When the last one was applied here.';

CREATE TABLE pgsluice.table_sync (
    subscription   text NOT NULL REFERENCES pgsluice.subscription ON DELETE CASCADE,
    source_schema  text NOT NULL,
    source_table   text NOT NULL,
    target_schema  text NOT NULL,
    target_table   text NOT NULL,
    state          text NOT NULL DEFAULT 'pending' CONSTRAINT table_sync_state_known
        CHECK (state IN ('pending', 'copying', 'catching_up', 'ready', 'paused')),
    synced_lsn     pg_lsn,
    attempt        int NOT NULL DEFAULT 0,
    rows_copied    bigint NOT NULL DEFAULT 0,
    rows_estimated bigint,
    error          jsonb,
    exact_because  text,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subscription, source_schema, source_table)
) WITH (fillfactor = 50);

COMMENT ON TABLE pgsluice.table_sync IS 'One row a published table: its target, and how far its initial copy has come.';
COMMENT ON COLUMN pgsluice.table_sync.subscription IS 'The subscription.';
COMMENT ON COLUMN pgsluice.table_sync.source_schema IS 'Schema on the publisher.';
COMMENT ON COLUMN pgsluice.table_sync.source_table IS 'Table on the publisher.';
COMMENT ON COLUMN pgsluice.table_sync.target_schema IS 'Schema in this database.';
COMMENT ON COLUMN pgsluice.table_sync.target_table IS 'Table in this database.';
COMMENT ON COLUMN pgsluice.table_sync.state IS 'pending, copying, catching_up, ready or paused.';
COMMENT ON COLUMN pgsluice.table_sync.synced_lsn IS 'Consistent point of the snapshot the table was copied under: changes that commit beyond it apply.';
COMMENT ON COLUMN pgsluice.table_sync.attempt IS 'Number of the copy that may write: an older one finds another number here and gives up.';
COMMENT ON COLUMN pgsluice.table_sync.rows_copied IS 'Rows copied by this attempt.';
COMMENT ON COLUMN pgsluice.table_sync.rows_estimated IS 'The publisher''s estimate of the table''s rows.';
COMMENT ON COLUMN pgsluice.table_sync.error IS 'Why the table is held back: primary, detail and hint.';
COMMENT ON COLUMN pgsluice.table_sync.exact_because IS 'Why the table is applied row by row rather than in sets.';
COMMENT ON COLUMN pgsluice.table_sync.updated_at IS 'When this row last changed.';
