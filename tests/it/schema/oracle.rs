//! Uses the walsender as an oracle: what pgoutput sends must equal what was read from the catalog.

use std::collections::{BTreeMap, BTreeSet};

use pgsluice::schema::PublishedTable;

use super::server::Database;

/// Returns pgoutput's messages about `statements` for these publications.
pub(super) async fn stream(database: &Database, publications: &[&str], statements: &str) -> Vec<Vec<u8>> {
    let client = &database.client;
    let slot = format!("{}_oracle", database.name);
    let create = "SELECT pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')::text";
    client.query_one(create, &[&slot]).await.expect("a slot");
    client.batch_execute(statements).await.expect("the statements");
    let rows = client
        .query(
            "SELECT data FROM pg_catalog.pg_logical_slot_get_binary_changes($1, NULL, NULL,
                    'proto_version', '1', 'publication_names', $2)",
            &[&slot, &publications.join(",")],
        )
        .await
        .expect("changes");
    client
        .query_one("SELECT pg_catalog.pg_drop_replication_slot($1)::text", &[&slot])
        .await
        .expect("dropped");
    rows.iter().map(|row| row.get("data")).collect()
}

/// Returns the relations that insert messages name.
pub(super) fn inserted(messages: &[Vec<u8>]) -> BTreeSet<u32> {
    messages
        .iter()
        .filter(|message| message[0] == b'I')
        .map(|message| u32::from_be_bytes(message[1..5].try_into().expect("four bytes")))
        .collect()
}

/// Returns the columns of Relation messages by name, with the key flag.
fn relations(messages: &[Vec<u8>]) -> BTreeMap<u32, Vec<(String, bool)>> {
    let text = |rest: &mut &[u8]| {
        let end = rest.iter().position(|&byte| byte == 0).expect("a terminator");
        let text = String::from_utf8(rest[..end].to_vec()).expect("UTF-8");
        *rest = &rest[end + 1..];
        text
    };
    let relation = |message: &Vec<u8>| {
        let oid = u32::from_be_bytes(message[1..5].try_into().expect("four bytes"));
        let mut rest = &message[5..];
        let (_schema, _name) = (text(&mut rest), text(&mut rest));
        let count = u16::from_be_bytes([rest[1], rest[2]]);
        rest = &rest[3..];
        let columns = (0..count).map(|_| {
            let key = rest[0] == 1;
            rest = &rest[1..];
            let name = text(&mut rest);
            rest = &rest[8..];
            (name, key)
        });
        (oid, columns.collect())
    };
    messages.iter().filter(|message| message[0] == b'R').map(relation).collect()
}

/// Checks that the listed columns and key flags are those of the Relation messages.
pub(super) fn assert_as_streamed(tables: &[PublishedTable], messages: &[Vec<u8>]) {
    let sent = relations(messages);
    for table in tables {
        let columns = table.relation.columns.iter().map(|column| (column.name.clone(), column.key));
        assert_eq!(sent.get(&table.oid), Some(&columns.collect()), "{}", table.relation.name);
    }
}
