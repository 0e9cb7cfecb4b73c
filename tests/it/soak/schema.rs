//! The tables that a soak writes: those of the kills, and one for each further kind of work.

use crate::crash;
use crate::support::world::PUBLICATION;

/// Bulk rows are kept in chunks, each the work of one transaction. Few of the fat ones fill the publisher's memory
/// for decoding: a subtransaction is then often on its disk as a whole.
const TABLES: &str = "\
    CREATE TABLE pair (a int, b int, PRIMARY KEY (a, b)); \
    CREATE TABLE upserted (a int, b int, PRIMARY KEY (a, b)); \
    CREATE TABLE upsert_log (writer int, number bigint, place int); \
    CREATE TABLE measure (at float8, small float4, note text); \
    ALTER TABLE measure REPLICA IDENTITY FULL; \
    CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL UNIQUE, name text NOT NULL UNIQUE); \
    CREATE TABLE document (id int PRIMARY KEY, title text, body text, raw bytea); \
    CREATE TABLE wide (id int PRIMARY KEY, n int, v varchar(40), t text); \
    CREATE TABLE cleared (id bigint PRIMARY KEY, note text); \
    CREATE TABLE bulk (id bigint PRIMARY KEY, chunk int NOT NULL, n int, t text); \
    CREATE TABLE bulk_log (chunk int, n int, t text); \
    CREATE TABLE fat (id bigint PRIMARY KEY, chunk int NOT NULL, t text); \
    ALTER TABLE fat ALTER t SET STORAGE PLAIN;";
const ROWS: &str = "\
    INSERT INTO pair SELECT n, n % 7 FROM generate_series(1, 200) n; \
    INSERT INTO upserted SELECT n, n FROM generate_series(1, 50) n; \
    INSERT INTO measure SELECT n / 3.0, n / 7.0, 'start' FROM generate_series(1, 200) n; \
    INSERT INTO measure VALUES ('NaN', 'NaN', 'odd'), \
        ('Infinity', '-Infinity', 'odd'), (1e-300, 1e-40, 'odd'), (NULL, NULL, NULL); \
    INSERT INTO seat SELECT n, n, 'guest ' || n FROM generate_series(1, 100) n; \
    INSERT INTO document SELECT n, 'title', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200 + n)), \
        decode(md5(n::text), 'hex') FROM generate_series(1, 40) n; \
    INSERT INTO wide SELECT n, n, 'v' || n, NULL FROM generate_series(1, 300) n;";
/// The number of the writer of large transactions.
pub(super) const BULK_WRITER: u64 = 9;
/// The number of the writer whose transactions consist of subtransactions and stay open for seconds.
pub(super) const SAVEPOINT_WRITER: u64 = 8;

/// The tables that are there from the start.
pub(super) const COMPARED: &[&str] = &[
    "account",
    "teller",
    "history",
    "moving",
    "keyless",
    "transaction_counter",
    "applied",
    "pair",
    "upserted",
    "upsert_log",
    "measure",
    "seat",
    "document",
    "wide",
    "cleared",
    "bulk",
    "bulk_log",
    "fat",
];
/// Emptied after each round, in one transaction: they would only grow.
pub(super) const RESET: &str = "\
    BEGIN; TRUNCATE transaction_counter, history, upsert_log, bulk, bulk_log, fat; \
    UPDATE applied SET count = 0; DELETE FROM measure WHERE note = 'new'; COMMIT";

pub(super) fn tables() -> String {
    format!("{}; {TABLES}", crash::TABLES)
}

pub(super) fn rows() -> String {
    format!("{}; {ROWS} CREATE PUBLICATION {PUBLICATION} FOR TABLE {}", crash::ROWS, COMPARED.join(", "))
}

/// A table that joins while it is being written: with a key if its number is even.
pub(super) fn joining(name: &str, number: u64) -> String {
    if number.is_multiple_of(2) {
        format!("CREATE TABLE {name} (id bigint PRIMARY KEY, n int, t text);")
    } else {
        format!("CREATE TABLE {name} (id bigint, n int, t text); ALTER TABLE {name} REPLICA IDENTITY FULL;")
    }
}
