-- Makes a publisher say every message of pgoutput protocol version 1 once. See capture-corpus.
\set ON_ERROR_STOP on
CREATE SCHEMA corpus;
SET search_path = corpus;
CREATE TYPE mood AS ENUM ('calm', 'busy');
CREATE DOMAIN euro AS numeric(12,2);
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id int NOT NULL,
    status text NOT NULL,
    amount numeric(12,2) NOT NULL,
    created_at timestamptz NOT NULL,
    note text
);
CREATE TABLE "Tab'le" ("B" int PRIMARY KEY, "a""b" mood[], price euro, big text);
ALTER TABLE "Tab'le" ALTER COLUMN big SET STORAGE EXTERNAL;
CREATE TABLE whole (a int, b text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE PUBLICATION corpus FOR TABLE orders, "Tab'le", whole;
SELECT pg_replication_origin_create('upstream');
SELECT FROM pg_create_logical_replication_slot('corpus', 'pgoutput');

BEGIN;
INSERT INTO orders VALUES
    (1, 7, 'new', 12.50, '2024-02-29 12:00:00.123456+00', NULL),
    (2, 7, 'paid', 'NaN', 'infinity', '');
INSERT INTO "Tab'le" VALUES (1, '{calm,busy}', 3.80, repeat('toast ', 350));
UPDATE orders SET status = 'paid' WHERE id = 1;
UPDATE orders SET id = 3 WHERE id = 1;
UPDATE "Tab'le" SET price = 4 WHERE "B" = 1;
INSERT INTO whole VALUES (1, 'one'), (NULL, NULL);
UPDATE whole SET b = 'uno' WHERE a = 1;
DELETE FROM whole WHERE a = 1;
DELETE FROM orders WHERE id = 3;
SELECT pg_logical_emit_message(true, 'corpus', 'inside'::bytea);
TRUNCATE orders, whole RESTART IDENTITY CASCADE;
COMMIT;
SELECT pg_logical_emit_message(false, 'corpus', '\x00ff'::bytea);
SELECT pg_replication_origin_session_setup('upstream');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/16B3748', '2024-02-29 12:00:00+00');
INSERT INTO orders VALUES (4, 8, 'new', 1, '2024-02-29 12:00:00+00', 'from upstream');
COMMIT;
SELECT pg_replication_origin_session_reset();
