//! The target's catalog, and the comparison of both sides; the printed DDL is run.

use std::collections::BTreeMap;

use pgsluice::pg::QualifiedName;
use pgsluice::schema::{
    ColumnDefault, Comparison, Indexes, KeyScope, Misfit, MisfitFacts, Operations, Pairing, PublishedTable,
    ReplicationRole, RowIdentity, RunAs, SeenTable, Standing, Surroundings, TableKind, TableRules,
    TargetTable, catalog, compare,
};

use super::server::Database;
use super::{name, published, skipped, strings, target, targets};

#[tokio::test]
async fn every_type_that_has_equality_shows_its_operator() {
    let database = Database::create("types").await;
    if database.version < 120_000 {
        skipped("targets are version 12 or later");
        return;
    }
    let client = &database.client;
    client
        .batch_execute(
            "CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('sad', 'ok');
             CREATE TYPE s.pair AS (a int, b text); CREATE TYPE s.jsonpair AS (a int, b json);
             CREATE TYPE s.span AS RANGE (subtype = float8);
             CREATE DOMAIN s.code AS varchar(5) DEFAULT 'x'; CREATE DOMAIN s.must AS s.code NOT NULL;
             CREATE TABLE public.t (i int, v varchar(5), c char(3), n name, e s.mood, es s.mood[],
               p s.pair, ps s.pair[], jp s.jsonpair, r s.span, rs s.span[], d s.code, m s.must, ds s.code[],
               j json, js json[], jb jsonb, pt point, x xml, u uuid, ci cidr, o oid, rc regclass, xi xid, b bytea,
               vb varbit(4), mo money, tz timestamptz[], ts tsvector, bx box, q \"char\")",
        )
        .await
        .expect("types");
    let table = target(client, "public.t").await;
    let lines: Vec<String> = table
        .columns
        .iter()
        .map(|column| {
            let equality = column.equality.as_ref();
            let equality =
                equality.map_or("none".to_owned(), |op| format!("OPERATOR({}.{})", op.schema, op.name));
            let (base, default) = (&column.base_type, column.default);
            format!("{} {} below {} {default:?} {equality}", column.name, column.display_type, base.name)
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    i integer below int4 None OPERATOR(pg_catalog.=)
    v character varying(5) below varchar None OPERATOR(pg_catalog.=)
    c character(3) below bpchar None OPERATOR(pg_catalog.=)
    n name below name None OPERATOR(pg_catalog.=)
    e s.mood below mood None OPERATOR(pg_catalog.=)
    es s.mood[] below _mood None OPERATOR(pg_catalog.=)
    p s.pair below pair None OPERATOR(pg_catalog.=)
    ps s.pair[] below _pair None OPERATOR(pg_catalog.=)
    jp s.jsonpair below jsonpair None none
    r s.span below span None OPERATOR(pg_catalog.=)
    rs s.span[] below _span None OPERATOR(pg_catalog.=)
    d s.code below varchar Expression OPERATOR(pg_catalog.=)
    m s.must below varchar Expression OPERATOR(pg_catalog.=)
    ds s.code[] below _code None OPERATOR(pg_catalog.=)
    j json below json None none
    js json[] below _json None none
    jb jsonb below jsonb None OPERATOR(pg_catalog.=)
    pt point below point None none
    x xml below xml None none
    u uuid below uuid None OPERATOR(pg_catalog.=)
    ci cidr below cidr None OPERATOR(pg_catalog.=)
    o oid below oid None OPERATOR(pg_catalog.=)
    rc regclass below regclass None OPERATOR(pg_catalog.=)
    xi xid below xid None OPERATOR(pg_catalog.=)
    b bytea below bytea None OPERATOR(pg_catalog.=)
    vb bit varying(4) below varbit None OPERATOR(pg_catalog.=)
    mo money below money None OPERATOR(pg_catalog.=)
    tz timestamp with time zone[] below _timestamptz None OPERATOR(pg_catalog.=)
    ts tsvector below tsvector None OPERATOR(pg_catalog.=)
    bx box below box None none
    q "char" below char None OPERATOR(pg_catalog.=)
    "#);
    // Each operator exists and accepts two values of the column's type.
    for column in &table.columns {
        if let Some(op) = &column.equality {
            let column = pgsluice::pg::quote_ident(&column.name);
            let sql =
                format!("SELECT 1 FROM public.t WHERE {column} OPERATOR({}.{}) {column}", op.schema, op.name);
            client.prepare(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }
    let must = table.columns.iter().find(|column| column.name == "m").expect("column m");
    assert!(must.not_null && must.typmod == 9, "{must:?}");
    assert_eq!(
        (must.default, must.default_sql.as_deref()),
        (ColumnDefault::Expression, Some("'x'::character varying"))
    );
}

#[tokio::test]
async fn extension_types_keep_their_own_operators() {
    let database = Database::create("extensions").await;
    let client = &database.client;
    for (extension, column) in [("hstore", "hstore"), ("citext", "citext"), ("citext", "citext[]")] {
        if database.version < 120_000
            || client
                .batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS {extension} SCHEMA public"))
                .await
                .is_err()
        {
            skipped(&format!("extension {extension} is not installed, or the server is no target"));
            continue;
        }
        client
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS public.t; CREATE TABLE public.t (a public.{column})"
            ))
            .await
            .expect("a table");
        let table = target(client, "public.t").await;
        let equality = table.columns[0].equality.as_ref().expect("equality");
        let schema = if column.ends_with("[]") { "pg_catalog" } else { "public" };
        assert_eq!((equality.schema.as_str(), equality.name.as_str()), (schema, "="), "{column}");
    }
}

#[tokio::test]
async fn the_target_tells_everything_that_acts_on_its_rows() {
    let database = Database::create("target").await;
    if database.version < 120_000 {
        skipped("targets are version 12 or later");
        return;
    }
    let client = &database.client;
    client
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, a int, b int, c int UNIQUE DEFERRABLE, note text CHECK (note <> ''));
             CREATE UNIQUE INDEX partial ON public.t (a) WHERE b > 0; CREATE UNIQUE INDEX expr ON public.t ((a + b));
             CREATE UNIQUE INDEX covering ON public.t (b, a) INCLUDE (c);
             CREATE TABLE public.child (t int REFERENCES public.t);
             CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TABLE public.always (a int); CREATE TRIGGER x BEFORE INSERT ON public.always FOR EACH ROW EXECUTE FUNCTION public.f();
             ALTER TABLE public.always ENABLE ALWAYS TRIGGER x;
             CREATE TABLE public.ruled (a int); CREATE RULE r AS ON UPDATE TO public.ruled DO ALSO NOTHING;
             CREATE TABLE public.root (id int, region int) PARTITION BY LIST (region);
             CREATE TABLE public.p1 PARTITION OF public.root FOR VALUES IN (1); CREATE UNIQUE INDEX ON public.p1 (id);
             CREATE TABLE public.p2 PARTITION OF public.root FOR VALUES IN (2); CREATE UNIQUE INDEX ON public.p2 (id);
             CREATE TRIGGER x AFTER INSERT ON public.p2 FOR EACH ROW EXECUTE FUNCTION public.f();
             ALTER TABLE public.p2 ENABLE REPLICA TRIGGER x; CREATE VIEW public.v AS SELECT 1 AS a;",
        )
        .await
        .expect("tables");
    let names = [
        "public.t",
        "public.child",
        "public.missing",
        "public.always",
        "public.ruled",
        "public.root",
        "public.v",
        "public.t",
    ];
    let found = targets(client, &names.map(name)).await;
    assert_eq!(found[2], None);
    assert_eq!(found[0], found[7], "a name asked for twice is found twice");
    let [Some(t), Some(child), None, Some(always), Some(ruled), Some(root), Some(view), _] = &found[..]
    else {
        panic!("{found:?}")
    };
    let keys: Vec<(&str, bool, Vec<String>)> =
        t.unique_keys.iter().map(|key| (key.name.as_str(), key.primary, key.columns.clone())).collect();
    assert_eq!(keys, [("t_pkey", true, strings(&["id"])), ("covering", false, strings(&["b", "a"]))]);
    assert!(t.has_foreign_keys && t.has_ordinary_triggers && child.has_foreign_keys && !t.fires.any);
    assert_eq!((t.checks[0].columns.clone(), t.checks.len()), (strings(&["note"]), 1));
    assert!(always.fires.any && always.fires.before_row && !always.has_ordinary_triggers);
    assert!(ruled.has_ordinary_triggers && !ruled.fires.any);
    assert!(root.kind == TableKind::Partitioned && root.fires.any && !root.fires.before_row);
    let partitioning = root.partitioning.as_ref().expect("partitioned");
    assert_eq!(partitioning.key, Some(strings(&["region"])));
    assert_eq!(partitioning.leaves, [name("public.p1"), name("public.p2")]);
    assert_eq!(partitioning.leaf_keys[0].columns, ["id"]);
    assert_eq!(view.kind, TableKind::Other('v'));
    client
        .batch_execute("CREATE TABLE public.p3 PARTITION OF public.root FOR VALUES IN (3)")
        .await
        .expect("a leaf");
    assert_eq!(target(client, "public.root").await.partitioning.expect("partitioned").leaf_keys, []);
}

/// Compares one published table with the target of the same name.
async fn comparison(publisher: &Database, target: &Database, role: &str) -> Vec<Comparison> {
    let tables = published(publisher, &["p"]).await;
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.relation.name.clone()).collect();
    let found = targets(&target.client, &names).await;
    let surroundings = Surroundings {
        replication_role: ReplicationRole::Replica,
        role: role.to_owned(),
        run_as: RunAs::Owner,
    };
    let compare = |(table, found): (&PublishedTable, &Option<TargetTable>)| {
        compare(&Pairing {
            published: &table.relation,
            actions: Operations::ALL,
            target_name: &table.relation.name,
            target: found.as_ref(),
            surroundings: &surroundings,
            rules: &TableRules::default(),
        })
    };
    tables.iter().zip(&found).map(compare).collect()
}

/// What completes the DDL, for tables that the stream has described without any column.
async fn facts(publisher: &Database, target: &Database, misfits: &[Misfit]) -> MisfitFacts {
    let seen = SeenTable::default();
    let streamed = |misfit: &Misfit| (misfit.source.clone(), Standing::streamed(Some(&seen)));
    let facts = catalog::misfit_facts((&publisher.client, publisher.version), &target.client, misfits).await;
    let standings = misfits.iter().map(streamed).collect();
    MisfitFacts { subscription: "shop".to_owned(), standings, ..facts.expect("facts") }
}

#[tokio::test]
async fn the_printed_ddl_cures_the_misfit() {
    let (publisher, target) = (Database::create("cure_source").await, Database::create("cure").await);
    if target.version < 150_000 {
        skipped("targets are tested from version 15");
        return;
    }
    let role = format!("{}_applier", target.name);
    publisher
        .client
        .batch_execute(
            r#"CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN public.price AS numeric(12,2);
             CREATE SCHEMA "Or der";
             CREATE TABLE public.widgets (id serial PRIMARY KEY, name text, price decimal);
             CREATE TABLE "Or der"."tab'le" (a int, "B" varchar(50)[], "a'" public.mood, d public.price,
               bits bit(3), t timestamp(3), i interval day to second(2), c "char", PRIMARY KEY (a, "a'"));
             CREATE TABLE public.types (id int PRIMARY KEY, n numeric(10,4), t timestamp, f float8, b bool, x bytea, d date);
             CREATE TABLE public.extra (id int PRIMARY KEY);
             CREATE TABLE public.always (id int PRIMARY KEY, n int, g int, v int);
             CREATE TABLE public.keyless (a int, b int, PRIMARY KEY (a, b));
             CREATE TABLE public.parts (id int PRIMARY KEY, region int);
             CREATE TABLE public.locked (id int PRIMARY KEY);
             CREATE TABLE public.nokey (a int, b text); ALTER TABLE public.nokey REPLICA IDENTITY FULL;
             CREATE SCHEMA shut; CREATE TABLE shut.made (id int PRIMARY KEY); CREATE TABLE shut.lacking (id int PRIMARY KEY);
             ALTER TABLE public.widgets ADD COLUMN kind text COLLATE "C" NOT NULL DEFAULT 'it''s';
             CREATE PUBLICATION p FOR ALL TABLES;"#,
        )
        .await
        .expect("the publisher's tables");
    target
        .client
        .batch_execute(&format!(
            r"CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE ROLE {role};
             CREATE DOMAIN public.must AS text NOT NULL;
             CREATE TABLE public.widgets (id int PRIMARY KEY, name text, note text DEFAULT 'x' NOT NULL);
             CREATE TABLE public.types (id bigint PRIMARY KEY, n numeric(10,2) DEFAULT 1, t date, f real, b int, x text, d timestamptz);
             INSERT INTO public.types VALUES (1, 2.5, '2024-01-01', 0.5, 1, 'x', '2024-01-01 00:00+00');
             CREATE TABLE public.extra (tenant int, u uuid NOT NULL, m public.must, id int, PRIMARY KEY (tenant, id), UNIQUE (id));
             INSERT INTO public.extra VALUES (41, gen_random_uuid(), 'm', 1), (7, gen_random_uuid(), 'n', 2);
             INSERT INTO public.widgets VALUES (1, 'one');
             CREATE SCHEMA shut; CREATE TABLE shut.made (id int PRIMARY KEY);
             CREATE TABLE public.always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
               n int GENERATED ALWAYS AS IDENTITY, g text GENERATED ALWAYS AS ('1') STORED, v int);
             CREATE TABLE public.keyless (a int, b int, id serial PRIMARY KEY);
             CREATE TABLE public.parts (id int, region int) PARTITION BY LIST (region);
             CREATE TABLE public.parts_1 PARTITION OF public.parts FOR VALUES IN (1);
             CREATE TABLE public.parts_2 PARTITION OF public.parts FOR VALUES IN (2);
             CREATE TABLE public.locked (id int PRIMARY KEY); ALTER TABLE public.locked ENABLE ROW LEVEL SECURITY;
             CREATE TABLE public.nokey (a int, b text);
             ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; REVOKE ALL ON public.locked FROM {role};"
        ))
        .await
        .expect("the target's tables");
    let as_role = format!("SET ROLE {role}");
    let mut ran: Vec<String> = Vec::new();
    // A misfit may hide another one (a missing schema hides a missing table), so there are several
    // rounds.
    for round in 0..4 {
        target.client.batch_execute(&as_role).await.expect("the role");
        let found = comparison(&publisher, &target, &role).await;
        target.client.batch_execute("RESET ROLE").await.expect("reset");
        let misfits: Vec<Misfit> =
            found.iter().flat_map(|comparison| comparison.misfits.iter().cloned()).collect();
        if misfits.is_empty() {
            assert!(found.iter().all(|comparison| comparison.plan.is_some()));
            assert!(round > 0, "there was nothing to cure");
            break;
        }
        let facts = facts(&publisher, &target, &misfits).await;
        for mut misfit in misfits {
            misfit.complete(&facts);
            let ddl = misfit.ddl().unwrap_or_else(|| panic!("no DDL: {}", misfit.diagnosis()));
            target.client.batch_execute(&ddl).await.unwrap_or_else(|error| panic!("{ddl}: {error:?}"));
            ran.push(ddl.replace(&role, "applier"));
        }
    }
    insta::assert_snapshot!(ran.join("\n"), @r#"
    CREATE SCHEMA "Or der"; GRANT USAGE ON SCHEMA "Or der" TO "applier"; CREATE TABLE "Or der"."tab'le" ("a" integer NOT NULL, "B" varchar(50)[], "a'" "public"."mood" NOT NULL, "d" numeric(12,2), "bits" bit(3), "t" timestamp(3), "i" interval day to second(2), "c" "char", PRIMARY KEY ("a", "a'")); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE "Or der"."tab'le" TO "applier";
    ALTER TABLE public.always ALTER COLUMN "g" DROP EXPRESSION;
    ALTER TABLE public.extra ALTER COLUMN "tenant" ADD GENERATED BY DEFAULT AS IDENTITY; SELECT pg_catalog.setval(pg_catalog.pg_get_serial_sequence('"public"."extra"', 'tenant'), pg_catalog.max("tenant")) FROM public.extra;
    ALTER TABLE public.extra ALTER COLUMN "u" DROP NOT NULL;
    ALTER DOMAIN "public"."must" DROP NOT NULL;
    CREATE UNIQUE INDEX ON public.keyless ("a", "b");
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE public.locked TO "applier";
    ALTER ROLE "applier" BYPASSRLS;
    CREATE UNIQUE INDEX ON public.parts_1 ("id"); CREATE UNIQUE INDEX ON public.parts_2 ("id");
    ALTER TABLE public.types ALTER COLUMN "t" TYPE timestamp USING "t"::text::timestamp;
    ALTER TABLE public.types ALTER COLUMN "b" TYPE boolean USING "b"::text::boolean;
    ALTER TABLE public.types ALTER COLUMN "d" TYPE date USING "d"::text::date;
    ALTER TABLE public.widgets ADD COLUMN "price" numeric;
    ALTER TABLE public.widgets ADD COLUMN "kind" text COLLATE "pg_catalog"."C" NOT NULL DEFAULT 'it''s';
    CREATE TABLE "shut"."lacking" ("id" integer NOT NULL, PRIMARY KEY ("id")); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE "shut"."lacking" TO "applier";
    GRANT USAGE ON SCHEMA "shut" TO "applier";
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE "shut"."made" TO "applier";
    "#);
    // The identity goes on after the values that were there.
    let next = "INSERT INTO public.extra (id) VALUES (3) RETURNING tenant";
    assert_eq!(target.client.query_one(next, &[]).await.expect("a row").get::<_, i32>(0), 42);
    let kind = target.client.query_one("SELECT kind FROM public.widgets", &[]).await.expect("a row");
    assert_eq!(kind.get::<_, String>(0), "it's");
    target.client.batch_execute(&as_role).await.expect("the role");
    let last = comparison(&publisher, &target, &role).await;
    let plans: BTreeMap<String, RowIdentity> = last
        .into_iter()
        .map(|comparison| comparison.plan.unwrap_or_else(|| panic!("{:?}", comparison.misfits)))
        .map(|plan| (plan.source.to_string(), plan.row_identity))
        .collect();
    assert_eq!(plans["public.widgets"], RowIdentity::Key { columns: vec![0], scope: KeyScope::Table });
    assert_eq!(plans["public.parts"], RowIdentity::Key { columns: vec![0], scope: KeyScope::Leaves });
    assert_eq!(plans["public.nokey"], RowIdentity::FullRow);
    target
        .client
        .batch_execute(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .expect("dropped");
}

#[tokio::test]
async fn keys_say_how_they_tell_values_apart() {
    let database = Database::create("equality").await;
    if database.version < 120_000 {
        skipped("targets are version 12 or later");
        return;
    }
    let client = &database.client;
    client
        .batch_execute(
            "SET search_path = public;
             CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE DOMAIN code AS text;
             CREATE TYPE mood AS ENUM ('ok');
             CREATE TABLE t (a text COLLATE folding, b text, c code, d mood, e int[], f varchar(5), g numeric);
             CREATE UNIQUE INDEX k1 ON t (a); CREATE UNIQUE INDEX k2 ON t (a COLLATE \"C\");
             CREATE UNIQUE INDEX k3 ON t (b); CREATE UNIQUE INDEX k4 ON t (b COLLATE folding);
             CREATE UNIQUE INDEX k5 ON t (b text_pattern_ops, f varchar_pattern_ops, c);
             CREATE UNIQUE INDEX k6 ON t (d, e, g); CREATE UNIQUE INDEX k7 ON t (b COLLATE \"C\");
             CREATE INDEX ON t (g) WHERE g > 0;
             CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE leaf PARTITION OF parts FOR VALUES FROM (1) TO (9)",
        )
        .await
        .expect("tables");
    let table = target(client, "public.t").await;
    let keys: Vec<String> =
        table.unique_keys.iter().map(|key| format!("{} {:?}", key.name, key.equality)).collect();
    insta::assert_snapshot!(keys.join("\n"), @r"
    k1 Nondeterministic
    k2 Other
    k3 Deterministic
    k4 Other
    k5 Deterministic
    k6 Deterministic
    k7 Deterministic
    ");
    assert_eq!(table.indexes, Indexes { unique: 7, all: 8, computing: true });
    assert!(table.utf8 && table.family_oid == table.oid);
    let (parts, leaf) = (target(client, "public.parts").await, target(client, "public.leaf").await);
    assert_eq!((parts.family_oid, leaf.family_oid), (parts.oid, parts.oid));
    assert_eq!(leaf.indexes, Indexes { unique: 1, all: 1, computing: false });
}
