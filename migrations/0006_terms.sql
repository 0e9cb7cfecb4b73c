-- Which instance owns a subscription. Each take-over has a larger term than the one before, and whatever an
-- instance writes names its own: a former owner that still writes is refused.

CREATE TABLE pgsluice.owner (
    subscription text PRIMARY KEY REFERENCES pgsluice.subscription ON DELETE CASCADE,
    term         bigint NOT NULL,
    instance     text,
    since        timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE pgsluice.owner IS 'The instance that owns each subscription, or last owned it.';
COMMENT ON COLUMN pgsluice.owner.subscription IS 'The subscription.';
COMMENT ON COLUMN pgsluice.owner.term IS 'Microseconds since 1970 at the take-over, but larger than the term before in any case. So it also grows when a subscription is dropped and made again, or this database is restored.';
COMMENT ON COLUMN pgsluice.owner.instance IS 'Host and process that took it over.';
COMMENT ON COLUMN pgsluice.owner.since IS 'When it did.';

ALTER TABLE pgsluice.progress ADD COLUMN term bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN pgsluice.progress.term IS 'Term of the owner that may move the position. A new owner writes its own before it reads the position.';
