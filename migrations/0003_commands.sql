-- What operators asked for, and what happened.

CREATE TABLE pgsluice.command (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription text NOT NULL REFERENCES pgsluice.subscription ON DELETE CASCADE,
    verb         text NOT NULL,
    args         jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL,
    taken_at     timestamptz,
    done_at      timestamptz,
    ok           boolean,
    answer       jsonb,
    CONSTRAINT command_answered_whole CHECK ((done_at IS NULL) = (ok IS NULL))
);

CREATE INDEX command_pending ON pgsluice.command (subscription, id) WHERE done_at IS NULL;

COMMENT ON TABLE pgsluice.command IS 'Wishes for the service. NOTIFY pgsluice with the subscription''s name tells it to look.';
COMMENT ON COLUMN pgsluice.command.id IS 'Order in which commands are carried out.';
COMMENT ON COLUMN pgsluice.command.subscription IS 'The subscription.';
COMMENT ON COLUMN pgsluice.command.verb IS 'pause, resume, skip, resolve...';
COMMENT ON COLUMN pgsluice.command.args IS 'What the verb needs: a position, a conflict''s number.';
COMMENT ON COLUMN pgsluice.command.created_at IS 'When it was asked for.';
COMMENT ON COLUMN pgsluice.command.created_by IS 'Who asked.';
COMMENT ON COLUMN pgsluice.command.taken_at IS 'When the service took it up.';
COMMENT ON COLUMN pgsluice.command.done_at IS 'When it was answered. NOTIFY pgsluice_answer with the id tells the asker.';
COMMENT ON COLUMN pgsluice.command.ok IS 'Whether it was carried out.';
COMMENT ON COLUMN pgsluice.command.answer IS 'What the service said: primary, detail and hint.';

CREATE TABLE pgsluice.event (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT now(),
    subscription text,
    kind         text NOT NULL,
    message      text NOT NULL,
    detail       jsonb
);

CREATE INDEX event_of_subscription ON pgsluice.event (subscription, id);
CREATE INDEX event_at ON pgsluice.event (at);

COMMENT ON TABLE pgsluice.event IS 'Audit: what changed, when. Outlives the subscription; old rows are pruned.';
COMMENT ON COLUMN pgsluice.event.id IS 'Order of events.';
COMMENT ON COLUMN pgsluice.event.at IS 'When it happened.';
COMMENT ON COLUMN pgsluice.event.subscription IS 'The subscription it is about; null for the service as a whole.';
COMMENT ON COLUMN pgsluice.event.kind IS 'What happened, as a word: state, conflict, resolved, command, skip, table, removed...';
COMMENT ON COLUMN pgsluice.event.message IS 'What happened, for a person.';
COMMENT ON COLUMN pgsluice.event.detail IS 'Facts, for a program.';
