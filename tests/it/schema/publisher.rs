//! The publisher's side: versions 10 to 18.

use std::collections::{BTreeMap, BTreeSet};

use pgsluice::schema::catalog::{self, CatalogError, UnselectableReason};
use pgsluice::schema::{PublishedTable, copy_query};

use super::oracle::{assert_as_streamed, inserted, stream};
use super::server::Database;
use super::{published, skipped, strings};

/// Returns each listed table with the publications that decide about it.
fn listing(tables: &[PublishedTable]) -> Vec<String> {
    tables.iter().map(|t| format!("{} via {}", t.relation.name, t.publications.join(","))).collect()
}

#[tokio::test]
async fn listed_tables_are_the_names_that_the_stream_carries() {
    let database = Database::create("partitions").await;
    let client = &database.client;
    client
        .batch_execute(
            "CREATE TABLE public.root (id int, region int) PARTITION BY LIST (region);
             CREATE TABLE public.leaf PARTITION OF public.root FOR VALUES IN (1);
             CREATE TABLE public.middle PARTITION OF public.root FOR VALUES IN (2, 3) PARTITION BY LIST (region);
             CREATE TABLE public.deep PARTITION OF public.middle FOR VALUES IN (2);
             CREATE TABLE public.alone (id int, region int);
             CREATE SCHEMA pgsluice; CREATE TABLE pgsluice.progress (id int);
             CREATE PUBLICATION leaf_only FOR TABLE public.leaf;
             CREATE PUBLICATION everything FOR ALL TABLES;
             INSERT INTO public.root SELECT 1, 1 FROM generate_series(1, 30);
             INSERT INTO public.root SELECT 1, 2 FROM generate_series(1, 12);
             ANALYZE public.leaf; ANALYZE public.deep;",
        )
        .await
        .expect("tables");
    let mut cases: Vec<&[&str]> = vec![&["leaf_only"], &["everything"], &["leaf_only", "everything"]];
    if database.version >= 130_000 {
        client
            .batch_execute(
                "CREATE PUBLICATION leaves FOR TABLE public.root;
                 CREATE PUBLICATION via_root FOR TABLE public.root WITH (publish_via_partition_root);
                 CREATE PUBLICATION via_middle FOR TABLE public.middle WITH (publish_via_partition_root);
                 CREATE PUBLICATION all_via_root FOR ALL TABLES WITH (publish_via_partition_root);",
            )
            .await
            .expect("publications");
        cases.extend([
            &["leaves"] as &[&str],
            &["via_root"],
            &["via_root", "leaf_only"],
            &["leaf_only", "via_root"],
            &["via_middle", "leaf_only"],
            &["leaves", "via_middle"],
            &["via_middle", "via_root", "leaves"],
            &["everything", "all_via_root"],
            &["all_via_root", "everything", "leaf_only"],
        ]);
    }
    if database.version >= 150_000 {
        client
            .batch_execute(
                "CREATE PUBLICATION in_schema FOR TABLES IN SCHEMA public WITH (publish_via_partition_root);",
            )
            .await
            .expect("publications");
        cases.extend([&["in_schema"] as &[&str], &["leaf_only", "in_schema"]]);
    }
    for publications in cases {
        let tables = published(&database, publications).await;
        let inserts = "INSERT INTO public.root VALUES (1, 1), (1, 2); INSERT INTO public.alone VALUES (1, 1)";
        let expected = inserted(&stream(&database, publications, inserts).await);
        let listed: BTreeSet<u32> = tables.iter().map(|table| table.oid).collect();
        assert_eq!(listed, expected, "{publications:?}: {:?}", listing(&tables));
        let rows: u64 = tables.iter().filter_map(|table| table.rows_estimated).sum();
        let counted = if publications == ["leaf_only"] { 30 } else { 42 };
        assert_eq!(rows, counted, "{publications:?}: {:?}", listing(&tables));
    }
    // A partitioned table without partitions is listed, because rows may follow.
    if database.version >= 130_000 {
        client
            .batch_execute("CREATE TABLE public.empty (id int) PARTITION BY LIST (id); ALTER PUBLICATION via_root ADD TABLE public.empty")
            .await
            .expect("an empty root");
        let tables = published(&database, &["via_root"]).await;
        assert_eq!(listing(&tables), ["public.empty via via_root", "public.root via via_root"]);
    }
}

#[tokio::test]
async fn missing_publications_are_all_named() {
    let database = Database::create("missing").await;
    database.client.batch_execute("CREATE PUBLICATION there").await.expect("a publication");
    let asked = strings(&["nope", "there", "no\"pe"]);
    let found = catalog::published(&database.client, database.version, &asked).await.expect("one exists");
    assert_eq!(found.publications.len(), 1);
    insta::assert_snapshot!(found.missing.expect("two do not").diagnosis(), @r#"
    publications do not exist on the publisher: nope, no"pe
      hint: run on the publisher: CREATE PUBLICATION "nope" FOR TABLE …; CREATE PUBLICATION "no""pe" FOR TABLE …; Or correct publications: the existing ones are there
    "#);
    let none = catalog::published(&database.client, database.version, &strings(&["nope"]))
        .await
        .expect_err("missing");
    insta::assert_snapshot!(none.diagnosis().primary, @"publications do not exist on the publisher: nope");
}

#[tokio::test]
async fn columns_come_as_the_stream_sends_them() {
    let database = Database::create("columns").await;
    let client = &database.client;
    client
        .batch_execute(
            r#"CREATE SCHEMA "S'x"; CREATE TYPE "S'x".mood AS ENUM ('sad', 'ok');
             CREATE DOMAIN "S'x".price AS numeric(12,2); CREATE DOMAIN "S'x".cost AS "S'x".price NOT NULL;
             CREATE TABLE "S'x"."tab'le" (
               gone int, id int, "B" varchar(5), "a'" "S'x".mood[], p "S'x".cost, t timestamp(3),
               PRIMARY KEY (id));
             ALTER TABLE "S'x"."tab'le" DROP COLUMN gone;
             CREATE TABLE public.by_index (a int, b int NOT NULL, c int NOT NULL);
             CREATE UNIQUE INDEX by_index_key ON public.by_index (c, b);
             ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX by_index_key;
             CREATE TABLE public."full" (a int, b json); ALTER TABLE public."full" REPLICA IDENTITY FULL;
             CREATE TABLE public.nothing (a int PRIMARY KEY); ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE public.none ();
             CREATE TABLE public.parent (a int); CREATE TABLE public.child (b int) INHERITS (public.parent);
             CREATE PUBLICATION p FOR TABLE "S'x"."tab'le", public.by_index, public."full", public.nothing,
               public.none, public.parent, public.child;"#,
        )
        .await
        .expect("tables");
    let tables = published(&database, &["p"]).await;
    let lines: Vec<String> = tables
        .iter()
        .map(|table| {
            let columns = table.relation.columns.iter().map(|column| {
                let key = if column.key { "*" } else { "" };
                let domain = if column.domain.is_some() { " (domain)" } else { "" };
                let ty = pgsluice::schema::render::type_sql(&column.ty, column.typmod);
                format!("{}{key} {ty}{domain}", column.name)
            });
            let columns: Vec<String> = columns.collect();
            format!("{} {:?}: {}", table.relation.name, table.relation.identity, columns.join(", "))
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    "S'x"."tab'le" Default: id* integer, B varchar(5), a' "S'x"."_mood", p numeric(12,2) (domain), t timestamp(3)
    public.by_index Index: a integer, b* integer, c* integer
    public.child Default: a integer, b integer
    public.full Full: a* integer, b* json
    public.none Default: 
    public.nothing Nothing: a integer
    public.parent Default: a integer
    "#);
    let rows = r#"INSERT INTO "S'x"."tab'le" VALUES (1, 'x', '{sad}', 1, now());
        INSERT INTO public.by_index VALUES (1, 1, 1); INSERT INTO public."full" VALUES (1, '{}');
        INSERT INTO public.nothing VALUES (1); INSERT INTO public.none DEFAULT VALUES;
        INSERT INTO public.parent VALUES (1); INSERT INTO public.child VALUES (1, 1);"#;
    assert_as_streamed(&tables, &stream(&database, &["p"], rows).await);
    for table in &tables {
        let columns: Vec<&str> = table.relation.columns.iter().map(|column| column.name.as_str()).collect();
        let query = copy_query(table, &columns);
        client.copy_out(&query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    }
}

#[tokio::test]
async fn lists_and_filters_of_several_publications_combine_as_postgresql_combines_them() {
    let database = Database::create("filters").await;
    if database.version < 150_000 {
        skipped("column lists and row filters came with version 15");
        return;
    }
    let client = &database.client;
    client
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, a text, b int,
                                    g int GENERATED ALWAYS AS (id + 1) STORED);
             CREATE PUBLICATION low FOR TABLE public.t (id, b) WHERE (id < 3);
             CREATE PUBLICATION high FOR TABLE public.t (b, id) WHERE (id > 7 OR id < -100);
             CREATE PUBLICATION other FOR TABLE public.t (id, a);
             CREATE PUBLICATION whole FOR TABLE public.t;
             CREATE PUBLICATION inserts FOR TABLE public.t (id, a, b) WHERE (a = 'tab''le') WITH (publish = 'insert');
             INSERT INTO public.t SELECT i, 'x', i FROM generate_series(1, 10) i;",
        )
        .await
        .expect("publications");
    let check = async |publications: &[&str]| -> Result<String, CatalogError> {
        let asked = strings(publications);
        let tables = catalog::published(client, database.version, &asked).await?.tables;
        let row = "INSERT INTO public.t (id, a) SELECT COALESCE(min(id), 0) - 1, 'tab''le' FROM public.t";
        let messages = stream(&database, publications, row).await;
        assert_as_streamed(&tables, &messages);
        let table = &tables[0];
        let columns: Vec<&str> = table.relation.columns.iter().map(|column| column.name.as_str()).collect();
        let query = copy_query(table, &columns);
        client.copy_out(&query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        Ok(query)
    };
    let copied = async |publications: &[&str]| check(publications).await.expect("they agree");
    insta::assert_snapshot!(copied(&["low"]).await, @r#"COPY (SELECT "id","b" FROM ONLY "public"."t" WHERE ((id < 3))) TO STDOUT"#);
    insta::assert_snapshot!(copied(&["low", "high"]).await, @r#"COPY (SELECT "id","b" FROM ONLY "public"."t" WHERE ((id < 3)) OR (((id > 7) OR (id < '-100'::integer)))) TO STDOUT"#);
    let covering = check(&["whole", "inserts"]).await;
    if database.version >= 160_000 {
        assert_eq!(covering.expect("the same columns"), r#"COPY "public"."t" ("id","a","b") TO STDOUT"#);
    } else {
        assert!(matches!(covering, Err(CatalogError::DifferentColumnLists { .. })), "{covering:?}");
    }
    insta::assert_snapshot!(copied(&["inserts"]).await, @r#"COPY (SELECT "id","a","b" FROM ONLY "public"."t" WHERE ((a = 'tab''le'::text))) TO STDOUT"#);
    let error = check(&["low", "other"]).await.expect_err("different lists");
    insta::assert_snapshot!(error.diagnosis(), @r#"
    cannot use different column lists for the same table in different publications
      detail: Tables: public.t.
      hint: give the table the same column list in each publication (ALTER PUBLICATION … SET TABLE …), or subscribe to one of them only
    "#);
    assert!(matches!(check(&["low", "whole"]).await, Err(CatalogError::DifferentColumnLists { .. })));
    if database.version >= 180_000 {
        client
            .batch_execute(
                "CREATE PUBLICATION stored FOR TABLE public.t WITH (publish_generated_columns = stored)",
            )
            .await
            .expect("publication");
        assert_eq!(
            copied(&["stored"]).await,
            r#"COPY (SELECT "id","a","b","g" FROM ONLY "public"."t") TO STDOUT"#
        );
        let error = check(&["stored", "whole"]).await.expect_err("they disagree");
        assert!(matches!(error, CatalogError::DifferentGeneratedColumns { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn what_the_copy_may_not_read_is_found_before_it_runs() {
    let database = Database::create("privileges").await;
    let role = format!("{}_reader", database.name);
    database
        .client
        .batch_execute(&format!(
            "CREATE ROLE {role}; CREATE SCHEMA hidden; CREATE TABLE hidden.t (a int);
             CREATE TABLE public.granted (a int, b int); GRANT SELECT ON public.granted TO {role};
             CREATE TABLE public.columns (a int, b int); GRANT SELECT (a) ON public.columns TO {role};
             CREATE TABLE public.secured (a int); GRANT SELECT ON public.secured TO {role};
             ALTER TABLE public.secured ENABLE ROW LEVEL SECURITY;
             CREATE PUBLICATION p FOR ALL TABLES; SET ROLE {role};"
        ))
        .await
        .expect("tables");
    let tables = published(&database, &["p"]).await;
    let found = catalog::unselectable_tables(&database.client, &tables).await.expect("privileges");
    let found: BTreeMap<String, UnselectableReason> =
        found.into_iter().map(|table| (table.name.to_string(), table.reason)).collect();
    let expected = [
        ("hidden.t", UnselectableReason::Schema),
        ("public.columns", UnselectableReason::Columns(strings(&["b"]))),
        ("public.secured", UnselectableReason::RowSecurity),
    ];
    assert_eq!(found, expected.map(|(name, reason)| (name.to_owned(), reason)).into());

    let facts = catalog::publisher_facts(&database.client).await.expect("facts");
    assert_eq!(facts.server_version_num, database.version);
    assert_eq!((facts.wal_level.as_str(), facts.server_encoding.as_str()), ("logical", "UTF8"));
    assert_eq!(
        (facts.role, facts.role_has_replication, facts.role_is_superuser),
        (role.clone(), false, false)
    );
    let settings = catalog::publisher_settings(&database.client).await.expect("settings");
    assert_eq!((settings.wal_level.as_str(), settings.wal_sender_timeout_ms), ("logical", 60_000));
    if database.version >= 120_000 {
        let facts = catalog::target_facts(&database.client).await.expect("facts");
        assert!(!facts.may_be_replica && !facts.may_use_origins && !facts.in_recovery, "{facts:?}");
        database.client.batch_execute("RESET ROLE").await.expect("reset");
        let facts = catalog::target_facts(&database.client).await.expect("facts");
        assert!(facts.may_be_replica && facts.may_use_origins && facts.role_is_superuser, "{facts:?}");
        let replica = database.client.query_one("SHOW session_replication_role", &[]).await.expect("setting");
        assert_eq!(replica.get::<_, String>(0), "origin", "the trial leaves nothing behind");
    }
    database
        .client
        .batch_execute(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .expect("dropped");
}
