-- Gaps: ranges of the publisher's history of which this database may lack changes, with how each was settled.

CREATE TABLE pgsluice.gap (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription  text NOT NULL REFERENCES pgsluice.subscription ON DELETE CASCADE,
    source_schema text,
    source_table  text,
    kind          text NOT NULL,
    holds         boolean NOT NULL,
    from_lsn      pg_lsn,
    to_lsn        pg_lsn,
    since         timestamptz,
    detail        text,
    opened_at     timestamptz NOT NULL DEFAULT now(),
    accepted_at   timestamptz,
    accepted_by   text,
    settled_at    timestamptz,
    settled_by    text,
    settlement    text CONSTRAINT gap_settlement_known
        CHECK (settlement IN ('accepted', 'resynced', 'healed')),
    resumed_lsn   pg_lsn,
    CONSTRAINT gap_table_whole CHECK ((source_schema IS NULL) = (source_table IS NULL)),
    CONSTRAINT gap_settled_whole CHECK ((settled_at IS NULL) = (settlement IS NULL))
);

CREATE UNIQUE INDEX gap_open ON pgsluice.gap
    (subscription, coalesce(source_schema, ''), coalesce(source_table, ''), kind) WHERE settled_at IS NULL;

COMMENT ON TABLE pgsluice.gap IS 'Ranges of the publisher''s history of which this database may lack changes. One open row a subscription, table and kind.';
COMMENT ON COLUMN pgsluice.gap.id IS 'Number that the command line calls it by.';
COMMENT ON COLUMN pgsluice.gap.subscription IS 'The subscription.';
COMMENT ON COLUMN pgsluice.gap.source_schema IS 'Schema of the table on the publisher; null if the gap concerns all tables of the subscription.';
COMMENT ON COLUMN pgsluice.gap.source_table IS 'The table on the publisher; null if the gap concerns all tables of the subscription.';
COMMENT ON COLUMN pgsluice.gap.kind IS 'slot_gone, slot_lost, slot_ahead, diverged, publication, returned, replaced, operations, row_filter or columns.';
COMMENT ON COLUMN pgsluice.gap.holds IS 'Whether the table, or the subscription, is paused until the gap is settled.';
COMMENT ON COLUMN pgsluice.gap.from_lsn IS 'Changes that commit after this position may be missing; null if that is not known.';
COMMENT ON COLUMN pgsluice.gap.to_lsn IS 'Changes that commit after this position are not concerned; null if the gap has no known end yet.';
COMMENT ON COLUMN pgsluice.gap.since IS 'When the publisher or the target was last seen at from_lsn; null if that is not known.';
COMMENT ON COLUMN pgsluice.gap.detail IS 'The facts from which the gap was concluded.';
COMMENT ON COLUMN pgsluice.gap.opened_at IS 'When the gap was found.';
COMMENT ON COLUMN pgsluice.gap.accepted_at IS 'When a person accepted it. A gap of the subscription is settled once the stream can go on behind it.';
COMMENT ON COLUMN pgsluice.gap.accepted_by IS 'Who accepted it.';
COMMENT ON COLUMN pgsluice.gap.settled_at IS 'When it was settled; null while open.';
COMMENT ON COLUMN pgsluice.gap.settled_by IS 'Who settled it, or pgsluice.';
COMMENT ON COLUMN pgsluice.gap.settlement IS 'accepted, resynced, or healed: nothing is missing after all.';
COMMENT ON COLUMN pgsluice.gap.resumed_lsn IS 'Changes that commit at or beyond this position apply again; null before that, and if they never ceased to.';
