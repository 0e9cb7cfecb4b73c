-- What stopped a subscription, with the evidence, for as long as anybody may ask.

CREATE TABLE pgsluice.conflict (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription    text NOT NULL REFERENCES pgsluice.subscription ON DELETE CASCADE,
    kind            text NOT NULL,
    operation       text NOT NULL,
    source_schema   text NOT NULL,
    source_table    text NOT NULL,
    target_schema   text NOT NULL,
    target_table    text NOT NULL,
    key             jsonb,
    incoming        jsonb,
    old             jsonb,
    local_rows      jsonb NOT NULL,
    constraint_name text,
    sqlstate        text,
    message         text NOT NULL,
    server_detail   text,
    xid             bigint NOT NULL,
    commit_lsn      pg_lsn NOT NULL,
    commit_time     timestamptz,
    change_count    bigint,
    change_index    bigint NOT NULL,
    occurrences     int NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now(),
    seen_at         timestamptz NOT NULL DEFAULT now(),
    resolved_at     timestamptz,
    resolution      text,
    resolved_by     text,
    CONSTRAINT conflict_resolved_whole CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);

-- The same conflict, met again by a retry, is the same row.
CREATE UNIQUE INDEX conflict_open ON pgsluice.conflict (subscription, commit_lsn, change_index, kind)
    WHERE resolved_at IS NULL;

COMMENT ON TABLE pgsluice.conflict IS 'Changes that could not be applied as they were published, with the evidence.';
COMMENT ON COLUMN pgsluice.conflict.id IS 'Number that the command line calls it by.';
COMMENT ON COLUMN pgsluice.conflict.subscription IS 'The subscription.';
COMMENT ON COLUMN pgsluice.conflict.kind IS 'PostgreSQL''s conflict type, or the kind of failure.';
COMMENT ON COLUMN pgsluice.conflict.operation IS 'insert, update, delete, truncate; commit for a deferred constraint.';
COMMENT ON COLUMN pgsluice.conflict.source_schema IS 'Schema on the publisher.';
COMMENT ON COLUMN pgsluice.conflict.source_table IS 'Table on the publisher.';
COMMENT ON COLUMN pgsluice.conflict.target_schema IS 'Schema in this database.';
COMMENT ON COLUMN pgsluice.conflict.target_table IS 'Table in this database.';
COMMENT ON COLUMN pgsluice.conflict.key IS 'Values that identify the row.';
COMMENT ON COLUMN pgsluice.conflict.incoming IS 'Row as the publisher sent it.';
COMMENT ON COLUMN pgsluice.conflict.old IS 'Old row or key, where the publisher sent one.';
COMMENT ON COLUMN pgsluice.conflict.local_rows IS 'Array: rows of this database that stand in the way, as found at seen_at.';
COMMENT ON COLUMN pgsluice.conflict.constraint_name IS 'Violated constraint.';
COMMENT ON COLUMN pgsluice.conflict.sqlstate IS 'SQLSTATE of the error, if there was one.';
COMMENT ON COLUMN pgsluice.conflict.message IS 'What went wrong.';
COMMENT ON COLUMN pgsluice.conflict.server_detail IS 'The server''s DETAIL.';
COMMENT ON COLUMN pgsluice.conflict.xid IS 'The publisher''s transaction.';
COMMENT ON COLUMN pgsluice.conflict.commit_lsn IS 'Where that transaction finishes.';
COMMENT ON COLUMN pgsluice.conflict.commit_time IS 'When it committed on the publisher.';
COMMENT ON COLUMN pgsluice.conflict.change_count IS 'Changes in the transaction, if known.';
COMMENT ON COLUMN pgsluice.conflict.change_index IS 'Position of the offending change in it, from 1.';
COMMENT ON COLUMN pgsluice.conflict.occurrences IS 'How often it was met, retries included.';
COMMENT ON COLUMN pgsluice.conflict.created_at IS 'When it was first met.';
COMMENT ON COLUMN pgsluice.conflict.seen_at IS 'When it was last met.';
COMMENT ON COLUMN pgsluice.conflict.resolved_at IS 'When it was settled; null while open.';
COMMENT ON COLUMN pgsluice.conflict.resolution IS 'retry, apply-remote, keep-local or skip-transaction.';
COMMENT ON COLUMN pgsluice.conflict.resolved_by IS 'Who settled it.';
