-- The instances that run now, and what each of them owns: by it they share the subscriptions.

CREATE TABLE pgsluice.instance (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    owns text[] NOT NULL,
    streams text[] NOT NULL,
    stands_by text[] NOT NULL,
    hands_over text,
    hands_over_to bigint,
    started_at timestamptz NOT NULL DEFAULT now(),
    renewed_at timestamptz NOT NULL
);

COMMENT ON TABLE pgsluice.instance IS 'The instances of pgsluice that work with this target. Who owns a subscription is decided by its lock alone (pgsluice.owner); this table says who should own less.';
COMMENT ON COLUMN pgsluice.instance.id IS 'Number of this run of the instance.';
COMMENT ON COLUMN pgsluice.instance.name IS 'Host and process, as in pgsluice.subscription.instance.';
COMMENT ON COLUMN pgsluice.instance.owns IS 'The subscriptions that it owns.';
COMMENT ON COLUMN pgsluice.instance.streams IS 'Those of them that stream without trouble: it may hand them over.';
COMMENT ON COLUMN pgsluice.instance.stands_by IS 'The subscriptions whose lock it waits for.';
COMMENT ON COLUMN pgsluice.instance.hands_over IS 'The subscription that it is about to let go of, or has just let go of, for another instance.';
COMMENT ON COLUMN pgsluice.instance.hands_over_to IS 'Number of that instance. The others leave the lock to it meanwhile.';
COMMENT ON COLUMN pgsluice.instance.started_at IS 'When it registered.';
COMMENT ON COLUMN pgsluice.instance.renewed_at IS 'When it last renewed this row, which it does every second. One that has not for some seconds does not count.';
