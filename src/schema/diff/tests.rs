//! Table tests of the comparison: two tables in a short notation, the findings as text.

use std::sync::LazyLock;

use super::*;
use crate::schema::older_rows::MissingValue;
use crate::schema::{
    ArrayInput, CheckConstraint, FiringTriggers, Indexes, LengthUnit, Partitioning, TablePrivileges,
    TypeName, UniqueKey,
};

fn builtin(name: &str) -> TypeName {
    TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() }
}

/// Parses `id* int4, price numeric`; an asterisk marks the replica identity.
fn published(identity: ReplicaIdentity, columns: &str) -> PublishedRelation {
    let column = |text: &str| {
        let (name, ty) = text.trim().split_once(' ').expect("name and type");
        let (name, key) = name.strip_suffix('*').map_or((name, false), |name| (name, true));
        let (name, ty, inner_types) = (name.to_owned(), builtin(ty), Vec::new());
        PublishedColumn { name, target: None, ty, typmod: -1, key, domain: None, inner_types }
    };
    let columns = columns.split(',').map(column).collect();
    PublishedRelation { name: QualifiedName::new("public", "widgets"), identity, columns }
}

/// Parses `id int4 not null, note text default 'x'`.
fn target_column(attnum: i16, text: &str) -> TargetColumn {
    let mut words = text.trim().splitn(3, ' ');
    let (name, ty) = (words.next().expect("a name"), words.next().expect("a type"));
    let rest = words.next().unwrap_or_default();
    let default_sql = rest.split_once("default ").map(|(_, sql)| sql.to_owned());
    TargetColumn {
        name: name.to_owned(),
        attnum,
        ty: builtin(ty),
        type_oid: 0,
        typmod: -1,
        base_type: builtin(ty),
        array_input: ArrayInput::OfType,
        display_type: type_sql(&builtin(ty), -1),
        not_null: rest.contains("not null"),
        not_null_domain: None,
        default: match rest {
            rest if rest.contains("always") => ColumnDefault::IdentityAlways,
            rest if rest.contains("generated") => ColumnDefault::Generated,
            _ if default_sql.is_some() => ColumnDefault::Expression,
            _ => ColumnDefault::None,
        },
        default_sql,
        missing: MissingValue::None,
        is_as_created: false,
        is_virtual: rest.contains("virtual"),
        equality: (ty != "json").then(|| TypeName { schema: "pg_catalog".to_owned(), name: "=".to_owned() }),
        deterministic: true,
        inner_types: Vec::new(),
    }
}

/// Creates a target table. Keys are column lists; the first one is the primary key.
fn target(columns: &str, keys: &[&str]) -> TargetTable {
    let key = |(at, columns): (usize, &&str)| UniqueKey {
        name: format!("key_{at}"),
        primary: at == 0 && !columns.is_empty(),
        columns: columns.split(',').map(str::to_owned).collect(),
        equality: KeyEquality::Deterministic,
    };
    TargetTable {
        oid: 7,
        stamp: 0,
        name: QualifiedName::new("public", "widgets"),
        kind: TableKind::Table,
        family_oid: 7,
        root: None,
        columns: (1..).zip(columns.split(',')).map(|(at, text)| target_column(at, text)).collect(),
        unique_keys: keys.iter().enumerate().filter(|(_, key)| !key.is_empty()).map(key).collect(),
        fires: FiringTriggers::default(),
        has_foreign_keys: false,
        has_ordinary_triggers: false,
        ordinary_before_row: false,
        row_security: false,
        privileges: TablePrivileges {
            schema_usage: true,
            select: true,
            insert: true,
            update: true,
            delete: true,
            truncate: true,
        },
        owner: None,
        not_enforced: Vec::new(),
        checks: Vec::new(),
        indexes: Indexes { unique: 1, all: 1, computing: false },
        utf8: true,
        length_unit: LengthUnit::Characters,
        partitioning: None,
    }
}

static NO_RULES: LazyLock<TableRules> = LazyLock::new(TableRules::default);

static REPLICA: LazyLock<Surroundings> = LazyLock::new(|| Surroundings {
    replication_role: ReplicationRole::Replica,
    role: "applier".to_owned(),
    run_as: RunAs::Owner,
});

fn pairing<'a>(published: &'a PublishedRelation, table: Option<&'a TargetTable>) -> Pairing<'a> {
    Pairing {
        published,
        actions: Operations::ALL,
        target_name: &published.name,
        target: table,
        surroundings: &REPLICA,
        rules: &NO_RULES,
    }
}

/// Returns everything that a comparison reports, and the plan's row identity if there is a plan.
fn check(published: &PublishedRelation, table: Option<&TargetTable>) -> String {
    describe(&compare(&pairing(published, table)))
}

fn describe(comparison: &Comparison) -> String {
    assert!(comparison.plan.is_some() || !comparison.misfits.is_empty());
    let misfits = comparison.misfits.iter().map(|misfit| misfit.diagnosis().to_string());
    let warnings = comparison.warnings.iter().map(|warning| format!("WARNING {}", warning.diagnosis()));
    let plan = comparison.plan.iter().filter(|_| comparison.misfits.is_empty());
    let plan = plan.map(|plan| format!("{:?}", plan.row_identity));
    misfits.chain(warnings).chain(plan).collect::<Vec<_>>().join("\n")
}

use ReplicaIdentity::{Default as ByKey, Full, Nothing};

#[test]
fn a_superset_fits() {
    let widgets = published(ByKey, "id* int4, name text, price numeric");
    let table = target(
        "note text, price numeric, name text, id int4 not null, at date not null default now()",
        &["id"],
    );
    insta::assert_snapshot!(check(&widgets, Some(&table)), @r#"Key { columns: [0], scope: Table }"#);
    let plan = compare(&pairing(&widgets, Some(&table))).plan.expect("a plan");
    let order: Vec<(&str, bool)> = plan.columns.iter().map(|c| (c.target.as_str(), c.key)).collect();
    assert_eq!(order, [("id", true), ("name", false), ("price", false)], "the publisher's order");
}

#[test]
fn a_missing_table_is_printed_whole() {
    insta::assert_snapshot!(check(&published(ByKey, "id* int4, name text"), None), @r#"
    target table public.widgets does not exist
      detail: Published as public.widgets.
      hint: run on the target: CREATE TABLE public.widgets ("id" integer, "name" text, PRIMARY KEY ("id")); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE public.widgets TO "applier"; (or map the table to an existing one with [[subscriptions.tables]] source and target; rows from before are not sent again: afterwards, pgsluice resync NAME public.widgets)
    "#);
    insta::assert_snapshot!(check(&published(Full, "id* int4"), None), @r#"
    target table public.widgets does not exist
      detail: Published as public.widgets.
      hint: run on the target: CREATE TABLE public.widgets ("id" integer); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE public.widgets TO "applier"; (or map the table to an existing one with [[subscriptions.tables]] source and target; rows from before are not sent again: afterwards, pgsluice resync NAME public.widgets)
    "#);
}

#[test]
fn all_misfits_come_at_once() {
    let widgets = published(ByKey, "id* int4, name text, price numeric, seen timestamptz, sum int8");
    let mut table =
        target("id int4, name int4, seen timestamp, sum int8 generated, tenant int4 not null", &[""]);
    table.privileges.update = false;
    table.row_security = true;
    insta::assert_snapshot!(check(&widgets, Some(&table)), @r#"
    role "applier" lacks UPDATE on target table public.widgets
      detail: Published as public.widgets.
      hint: run on the target: GRANT UPDATE ON TABLE public.widgets TO "applier";
    row-level security of target table public.widgets applies to role "applier"
      detail: Published as public.widgets; rows would be hidden from updates and deletes, or refused.
      hint: run on the target: ALTER ROLE "applier" BYPASSRLS; (or let the role own the table, without FORCE ROW LEVEL SECURITY)
    column "name" of target table public.widgets is integer, which cannot hold the publisher's text
      detail: Published as public.widgets; the target's type does not take the values of the publisher's type.
      hint: run on the target: ALTER TABLE public.widgets ALTER COLUMN "name" TYPE text USING "name"::text::text; (rewrites the table; the server names values that do not convert, and views that must be dropped before; older rows keep the target's values, which the publisher may have changed with the type: afterwards, pgsluice resync NAME public.widgets)
    target table public.widgets lacks the published column "price"
      detail: Published as public.widgets.
      hint: run on the target: ALTER TABLE public.widgets ADD COLUMN "price" numeric; (older rows may have other values in this column on the publisher: afterwards, pgsluice resync NAME public.widgets)
    column "seen" of target table public.widgets is timestamp, which cannot hold the publisher's timestamptz
      detail: Published as public.widgets; the target would silently drop the time zone.
      hint: run on the target: ALTER TABLE public.widgets ALTER COLUMN "seen" TYPE timestamptz USING "seen"::text::timestamptz; (rewrites the table; the server names values that do not convert, and views that must be dropped before; or allow the change with coerce = true in the column's rule in [[subscriptions.tables]]; older rows keep the target's values, which the publisher may have changed with the type: afterwards, pgsluice resync NAME public.widgets)
    column "sum" of target table public.widgets is generated, but the publisher sends values for it
      detail: Published as public.widgets.
      hint: run on the target: ALTER TABLE public.widgets ALTER COLUMN "sum" DROP EXPRESSION; (older rows keep the values that the target has computed: afterwards, pgsluice resync NAME public.widgets)
    column "tenant" of target table public.widgets is NOT NULL without a default, and is not published
      detail: Published as public.widgets; no replicated row could be inserted.
      hint: run on the target: ALTER TABLE public.widgets ALTER COLUMN "tenant" DROP NOT NULL; (or give the column a default)
    target table public.widgets has no unique key on the replica identity (id)
      detail: Published as public.widgets; updates and deletes would not find their rows.
      hint: run on the target: ALTER TABLE public.widgets ADD PRIMARY KEY ("id");
    "#);
}

#[test]
fn what_is_no_table_of_the_users_is_refused() {
    let widgets = published(ByKey, "id* int4");
    let mut view = target("id int4", &[]);
    view.kind = TableKind::Other('v');
    insta::assert_snapshot!(check(&widgets, Some(&view)), @r#"
    target public.widgets is a view, not a table
      detail: Published as public.widgets.
      hint: map the table to another one with [[subscriptions.tables]] source and target, or take it out of the publication
    "#);
    let own = QualifiedName::new("pgsluice", "progress");
    let reserved = compare(&Pairing { target_name: &own, ..pairing(&widgets, None) });
    insta::assert_snapshot!(describe(&reserved), @r#"
    target table pgsluice.progress is in a schema that replication must not write to
      detail: Published as public.widgets; that schema belongs to the system or to pgsluice.
      hint: map the table to another one with [[subscriptions.tables]] source and target, or take it out of the publication
    "#);
}

#[test]
fn the_key_is_any_unique_key_within_the_replica_identity() {
    let widgets = published(ByKey, "a* int4, b* int4, c int4");
    let check = |keys: &[&str], expected: Option<&[usize]>| {
        let table = target("c int4, b int4, a int4", keys);
        let compared = compare(&pairing(&widgets, Some(&table)));
        assert_eq!(compared.misfits.is_empty(), expected.is_some(), "{keys:?}");
        let expected = expected.map_or(RowIdentity::None, |columns| RowIdentity::Key {
            columns: columns.to_vec(),
            scope: KeyScope::Table,
        });
        assert_eq!(compared.plan.map(|plan| plan.row_identity), Some(expected), "{keys:?}");
    };
    check(&["a,b"], Some(&[0, 1]));
    check(&["b,a"], Some(&[1, 0]));
    check(&["a", "b,a"], Some(&[1, 0]));
    check(&["b"], Some(&[1]));
    check(&["", "c", "b"], Some(&[1]));
    check(&["a,c"], None);
    check(&[""], None);
}

#[test]
fn order_is_free_where_only_a_key_of_plain_bytes_relates_rows() {
    let check = |expected: bool, columns: &str, change: fn(&mut TargetTable)| {
        let mut table = target(columns, &["id"]);
        change(&mut table);
        let widgets = published(ByKey, "id* int4, name text");
        let plan = compare(&pairing(&widgets, Some(&table))).plan.expect("a plan");
        assert_eq!(plan.order_free, expected, "{columns}");
        plan
    };
    let columns = "id int4 not null, name text";
    let plan = check(true, columns, |_| ());
    assert!(!plan.judges_rows && !plan.other_indexes && plan.columns.iter().all(|c| !c.refuses_values));
    check(true, "id int8 not null, name text", |_| ());
    check(true, "id text not null, name text", |_| ());
    check(false, "id numeric not null, name text", |_| ());
    check(false, columns, |table| table.utf8 = false);
    check(false, columns, |table| table.indexes.unique = 2);
    check(false, columns, |table| table.unique_keys[0].equality = KeyEquality::Nondeterministic);
    let plan = check(false, columns, |table| table.unique_keys[0].equality = KeyEquality::Other);
    assert!(matches!(plan.row_identity, RowIdentity::Key { scope: KeyScope::OtherEquality, .. }));
    // The order does not depend on these, but they may refuse a state that a row only passes through.
    let computed = "id int4 not null, name text, sum int8 generated";
    assert!(check(true, computed, |_| ()).judges_rows);
    assert!(check(true, columns, |table| table.indexes.computing = true).judges_rows);
    assert!(check(true, columns, |table| table.family_oid = 1).judges_rows);
    assert!(check(true, columns, |table| table.indexes.all = 2).other_indexes);
    let short = "id int4 not null, name varchar";
    let plan = check(true, short, |table| table.columns[1].typmod = 7);
    assert_eq!(plan.columns.iter().map(|c| c.refuses_values).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_full_identity_goes_by_a_filled_key_or_by_the_whole_row() {
    let widgets = published(Full, "a* int4, b* text");
    let filled = target("a int4 not null, b text", &["", "a"]);
    insta::assert_snapshot!(check(&widgets, Some(&filled)), @r#"Key { columns: [0], scope: Table }"#);
    let nullable = target("a int4, b text", &["", "a"]);
    insta::assert_snapshot!(check(&widgets, Some(&nullable)), @r#"
    WARNING each update or delete of target table public.widgets reads the whole table
      detail: public.widgets is published with REPLICA IDENTITY FULL, and the target has no key to go by.
      hint: give the target a unique key over published NOT NULL columns
    FullRow
    "#);
    let json = published(Full, "a* int4, b* json");
    insta::assert_snapshot!(check(&json, Some(&target("a int4, b json", &[]))), @r#"
    rows of target table public.widgets cannot be found: no equality for "b" (json)
      detail: Published as public.widgets; its replica identity is FULL, so rows are compared column by column.
      hint: give the table a primary key on the publisher and REPLICA IDENTITY DEFAULT, or give the target a unique key over published NOT NULL columns
    "#);
}

#[test]
fn without_an_identity_only_inserts_come() {
    let table = target("a int4", &[]);
    insta::assert_snapshot!(check(&published(Nothing, "a int4"), Some(&table)), @r#"
    WARNING public.widgets has no replica identity, but its updates or deletes are published
      detail: Inserts are replicated. The publisher refuses every UPDATE and DELETE of it, unless it is partitioned, published via its root, and only its partitions have keys: then they are sent without a key, and replication pauses.
      hint: run on the publisher: ALTER TABLE public.widgets ADD PRIMARY KEY (…); or ALTER TABLE public.widgets REPLICA IDENTITY FULL; (and the same for each partition), or publish without publish_via_partition_root
    None
    "#);
    let inserts = Operations::INSERT;
    let keyed = published(ByKey, "a* int4");
    let comparison = compare(&Pairing { actions: inserts, ..pairing(&keyed, Some(&table)) });
    assert_eq!(describe(&comparison), "None");
}

/// A publication that was narrowed may still have updates and deletes in the stream, and one that was widened has
/// none for some time.
#[test]
fn each_operation_is_hindered_by_its_own_lacks_only() {
    let widgets = published(ByKey, "id* int4, g int4");
    let mut table = target("id int4 not null, g int4 generated, own int4 not null", &[]);
    table.privileges.select = false;
    table.privileges.truncate = false;
    let comparison = compare(&pairing(&widgets, Some(&table)));
    let plan = comparison.plan.expect("every column is there");
    assert_eq!(plan.row_identity, RowIdentity::None);
    let hindering = |operation| -> Vec<String> {
        let misfits = comparison.misfits.iter().filter_map(|misfit| misfit.hindering(operation));
        misfits.map(|misfit| misfit.diagnosis().primary.replace(" target table public.widgets", "")).collect()
    };
    let generated = r#"column "g" of is generated, but the publisher sends values for it"#;
    let key = "target table public.widgets has no unique key on the replica identity (id)";
    let select = r#"role "applier" lacks SELECT on"#;
    assert_eq!(
        hindering(Operations::INSERT),
        [generated, r#"column "own" of is NOT NULL without a default, and is not published"#]
    );
    assert_eq!(hindering(Operations::UPDATE), [select, generated, key]);
    assert_eq!(hindering(Operations::DELETE), [select, key]);
    assert_eq!(hindering(Operations::TRUNCATE), [r#"role "applier" lacks TRUNCATE on"#]);
    let inserts = Operations::INSERT;
    let before = compare(&Pairing { actions: inserts, ..pairing(&widgets, Some(&table)) });
    assert_eq!(before.misfits.len(), 2, "what a publication needs is told beforehand");
}

#[test]
fn a_key_on_the_leaves_serves_a_partitioned_target() {
    let widgets = published(ByKey, "id* int4, region int4");
    let mut table = target("id int4, region int4", &[]);
    table.kind = TableKind::Partitioned;
    let leaf_key = UniqueKey {
        name: "k".to_owned(),
        primary: true,
        columns: vec!["id".to_owned()],
        equality: KeyEquality::Deterministic,
    };
    let mut partitioning = Partitioning {
        key: Some(vec!["region".to_owned()]),
        leaves: vec![QualifiedName::new("public", "w1"), QualifiedName::new("public", "w2")],
        leaf_keys: vec![leaf_key],
    };
    table.partitioning = Some(partitioning.clone());
    insta::assert_snapshot!(check(&widgets, Some(&table)), @r#"
    WARNING key (id) of target table public.widgets is unique within each partition only
      detail: An update or delete that finds its row in two partitions stops as a conflict.
    Key { columns: [0], scope: Leaves }
    "#);
    partitioning.leaf_keys.clear();
    table.partitioning = Some(partitioning);
    insta::assert_snapshot!(check(&widgets, Some(&table)), @r#"
    target table public.widgets has no unique key on the replica identity (id)
      detail: Published as public.widgets; updates and deletes would not find their rows.
      hint: run on the target: CREATE UNIQUE INDEX ON public.w1 ("id"); CREATE UNIQUE INDEX ON public.w2 ("id"); (and the same for partitions to come)
    "#);
}

#[test]
fn identity_columns_are_overridden_and_kept() {
    let widgets = published(ByKey, "id* int4, n int4");
    let key = target("id int4 not null always, n int4", &["id"]);
    insta::assert_snapshot!(check(&widgets, Some(&key)), @r#"
    WARNING column "id" of target table public.widgets is GENERATED ALWAYS AS IDENTITY
      detail: Inserts, deletes and other updates work; an update that changes this column is refused.
      hint: ALTER TABLE public.widgets ALTER COLUMN "id" SET GENERATED BY DEFAULT;
    Key { columns: [0], scope: Table }
    "#);
    assert!(compare(&pairing(&widgets, Some(&key))).plan.expect("a plan").identity_always);
    let other = target("id int4 not null, n int4 not null always", &["id"]);
    insta::assert_snapshot!(check(&widgets, Some(&other)), @r#"
    WARNING column "n" of target table public.widgets is GENERATED ALWAYS AS IDENTITY
      detail: Inserts, deletes and other updates work; an update that changes this column is refused.
      hint: ALTER TABLE public.widgets ALTER COLUMN "n" SET GENERATED BY DEFAULT;
    Key { columns: [0], scope: Table }
    "#);
    let kept = |table: &TargetTable| -> Vec<usize> {
        compare(&pairing(&widgets, Some(table))).plan.expect("a plan").kept_columns().collect()
    };
    assert_eq!((kept(&key), kept(&other)), (vec![], vec![1]));
}

#[test]
fn what_may_go_wrong_later_is_a_warning() {
    let widgets = published(ByKey, "id* int8");
    let mut table = target("id int4 not null, a text default 'x', b text", &["id", "a", "b"]);
    let check_on = |column: &str, definition: &str| CheckConstraint {
        name: format!("{column}_check"),
        columns: vec![column.to_owned()],
        definition: definition.to_owned(),
    };
    table.checks = vec![check_on("b", "CHECK ((b IS NOT NULL))"), check_on("b", "CHECK ((b <> ''::text))")];
    table.has_foreign_keys = true;
    let origin = Surroundings { replication_role: ReplicationRole::Origin, ..REPLICA.clone() };
    let comparison = compare(&Pairing { surroundings: &origin, ..pairing(&widgets, Some(&table)) });
    insta::assert_snapshot!(describe(&comparison), @r#"
    WARNING column "id" of target table public.widgets is integer, the publisher's is bigint
      detail: A value out of the target type's range is refused.
      hint: nothing to do as long as no such value arrives; if one does, it is named
    WARNING unique key "key_1" of target table public.widgets has target-only columns with constant defaults
      detail: Columns: a. The second replicated row would be a duplicate.
      hint: drop the key, or give the columns defaults that differ from row to row
    WARNING constraint "b_check" of target table public.widgets may refuse replicated rows
      detail: It is CHECK ((b IS NOT NULL)); replication leaves target-only columns at their default, here NULL.
      hint: give the column a default that passes, or drop the constraint
    WARNING foreign keys of target table public.widgets act on replicated rows
      detail: The role may not set session_replication_role, which would keep them out.
      hint: GRANT SET ON PARAMETER session_replication_role TO the role (15+), or make sure that they do no harm
    Key { columns: [0], scope: Table }
    "#);
}

#[test]
fn a_table_is_written_to_as_its_owner_where_that_may_be() {
    let widgets = published(ByKey, "id* int4");
    let all = |table: &TargetTable| table.privileges;
    let mut table = target("id int4 not null", &["id"]);
    table.fires = FiringTriggers { before_row: false, any: true };
    let may_be_taken = TableOwner {
        name: "shop".to_owned(),
        is_superuser: false,
        may_be_taken: true,
        row_security: false,
        privileges: all(&table),
    };
    // What the applying role lacks does not matter then.
    table.privileges.insert = false;
    table.row_security = true;
    table.owner = Some(may_be_taken.clone());
    let compared = compare(&pairing(&widgets, Some(&table)));
    assert_eq!((&compared.misfits[..], &compared.warnings[..]), (&[][..], &[][..]));
    assert_eq!(compared.plan.expect("a plan").run_as.as_deref(), Some("shop"));

    let role = Surroundings { run_as: RunAs::Role, ..REPLICA.clone() };
    let compared = compare(&Pairing { surroundings: &role, ..pairing(&widgets, Some(&table)) });
    assert_eq!((compared.misfits.len(), compared.warnings.len()), (2, 0), "INSERT and row-level security");

    table.owner = Some(TableOwner { may_be_taken: false, ..may_be_taken.clone() });
    table.privileges.insert = true;
    table.row_security = false;
    insta::assert_snapshot!(describe(&compare(&pairing(&widgets, Some(&table)))), @r#"
    WARNING triggers of target table public.widgets run with the privileges of role "applier"
      detail: They belong to the table's owner, "shop", which the role may not become: who owns the table can do what the role can.
      hint: GRANT "shop" TO "applier"; or run_as = "role" if that is meant
    Key { columns: [0], scope: Table }
    "#);

    table.owner = Some(TableOwner { is_superuser: true, ..may_be_taken.clone() });
    let compared = compare(&pairing(&widgets, Some(&table)));
    assert_eq!((compared.plan.expect("a plan").run_as, compared.warnings.len()), (None, 0));

    let mut revoked = all(&table);
    revoked.delete = false;
    table.owner = Some(TableOwner { row_security: true, privileges: revoked, ..may_be_taken });
    insta::assert_snapshot!(describe(&compare(&pairing(&widgets, Some(&table)))), @r#"
    role "shop" lacks DELETE on target table public.widgets
      detail: Published as public.widgets.
      hint: run on the target: GRANT DELETE ON TABLE public.widgets TO "shop";
    row-level security of target table public.widgets applies to role "shop"
      detail: Published as public.widgets; rows would be hidden from updates and deletes, or refused.
      hint: run on the target: ALTER ROLE "shop" BYPASSRLS; (or let the role own the table, without FORCE ROW LEVEL SECURITY)
    "#);
}
