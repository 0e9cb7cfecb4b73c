use std::fs;
use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::pg::conninfo::DefaultFiles;

type Env<'a> = &'a [(&'a str, &'a str)];

/// A configuration with nothing but what is required.
const MINIMAL: &str = r#"
[target]
url = "host=target dbname=example user=pgsluice"

[[subscriptions]]
name = "first"
publisher = "host=db-master user=sammy dbname=example"
publications = ["my_publication"]
"#;

fn load(text: &str, env: Env<'_>) -> Result<Config, ConfigErrors> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let surroundings = Surroundings { env, os_user: Some("osuser".into()), files: DefaultFiles::default() };
    let mut report = Report::default();
    report.file = Some("pgsluice.toml".into());
    load_text(text, &surroundings, report)
}

fn loaded(text: &str, env: Env<'_>) -> Config {
    load(text, env).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(text: &str, env: Env<'_>) -> String {
    load(text, env).expect_err("no problem found").to_string()
}

/// The minimal configuration with lines added to its subscription.
fn with(lines: &str) -> String {
    format!("{MINIMAL}{lines}\n")
}

#[test]
fn what_is_not_configured_has_the_contract_s_default() {
    let config = loaded(MINIMAL, &[]);
    let service = Service {
        listen: "127.0.0.1:9650".parse().unwrap(),
        api_token_file: None,
        log_format: LogFormat::Text,
    };
    assert_eq!(config.service, service);
    let expected = Subscription {
        name: "first".parse().unwrap(),
        publisher: config.subscriptions[0].publisher.clone(),
        publications: vec!["my_publication".to_owned()],
        slot: "first".parse().unwrap(),
        create_slot: true,
        copy_data: true,
        enabled: true,
        auto_refresh: true,
        retry_conflict_interval: None,
        binary: Auto::Auto,
        streaming: Auto::Auto,
        two_phase: false,
        origin: Origin::Any,
        conflict_defaults: ConflictPolicies::default(),
        tables: Vec::new(),
    };
    assert_eq!(config.subscriptions, [expected]);
    assert_snapshot!(
        config.subscriptions[0].publisher.redacted(),
        @"host=db-master port=5432 user=sammy dbname=example sslmode=prefer"
    );
    assert!(config.warnings.is_empty());
    assert_eq!(config.require_subscription(), Ok(()));
    assert_eq!(config.subscriptions[0].conflict_defaults.policy("insert_exists"), ConflictPolicy::Pause);
}

#[test]
fn every_supported_key_is_carried() {
    let config = loaded(
        r#"
        [service]
        listen = "[::1]:0"
        api_token_file = "secrets/token"
        log_format = "json"
        [target]
        url = "postgresql://pgsluice@target/example?application_name=mine"
        [[subscriptions]]
        name = "Fancy-Name"
        publisher = "application_name=theirs"
        publications = ["B", "tab'le"]
        slot = "fancy"
        create_slot = false
        copy_data = false
        enabled = false
        auto_refresh = false
        retry_conflict_interval = "2m"
        binary = "off"
        streaming = "off"
        two_phase = false
        origin = "none"
        conflict_defaults = { insert_exists = "pause", table_missing = "pause" }
        [[subscriptions.tables]]
        source = "widgets"
        target = 'Reporting."Widget"'
        columns = {}
        on_delete = "apply"
        conflicts = { value_error = "pause" }
        [[subscriptions.tables]]
        source = "public.other"
        "#,
        &[("PGAPPNAME", "ignored")],
    );
    assert_eq!(config.service.listen, "[::1]:0".parse().unwrap());
    assert_eq!(config.service.api_token_file, Some("secrets/token".into()));
    assert_eq!(config.service.log_format, LogFormat::Json);
    assert_eq!(config.target.conninfo.application_name.as_deref(), Some("mine"));
    let [subscription] = config.subscriptions.as_slice() else { panic!("one subscription") };
    assert_eq!(subscription.publisher.application_name.as_deref(), Some("theirs"));
    assert_eq!(subscription.publications, ["B", "tab'le"]);
    assert_eq!(subscription.slot.as_str(), "fancy");
    assert!(!subscription.create_slot && !subscription.copy_data);
    assert!(!subscription.enabled && !subscription.auto_refresh);
    assert_eq!(subscription.retry_conflict_interval, Some(Duration::from_mins(2)));
    assert_eq!((subscription.binary, subscription.streaming), (Auto::Off, Auto::Off));
    assert_eq!(subscription.origin, Origin::None);
    let rules: Vec<_> = subscription.tables.iter().map(|rule| (&rule.source, &rule.target)).collect();
    let (widgets, widget) =
        (QualifiedName::new("public", "widgets"), QualifiedName::new("reporting", "Widget"));
    let other = QualifiedName::new("public", "other");
    assert_eq!(rules, [(&widgets, &widget), (&other, &other)]);
}

#[test]
fn the_publisher_sees_the_subscription_by_name() {
    let config = loaded(MINIMAL, &[("PGAPPNAME", "from-env")]);
    assert_eq!(config.subscriptions[0].publisher.application_name.as_deref(), Some("first"));
    assert_eq!(config.target.conninfo.application_name.as_deref(), Some("from-env"));
    assert_eq!(loaded(MINIMAL, &[]).target.conninfo.application_name.as_deref(), Some("pgsluice"));
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let text = r#"
listen = "0.0.0.0:80"

[service]
listen = "localhost:9650"
log_format = "jsno"
api_token_file = 5

[traget]
url = "host=x"

[[subscriptions]]
name = " spaced"
publisher = "host=a password=hunter2 tail sslmode=sure"
publications = []
retry_conflict_interval = "soon"
create-slot = true
copy_data = "yes"
enabled = 1
slot = "Not A Slot"
colour = "red"

[[subscriptions]]
name = "second"
publications = ["a", 5]
conflict_defaults = { insert_exist = "pause", update_missing = "paus" }

[[subscriptions.tables]]
source = "a.b.c"

[[subscriptions.tables]]
target = "pgsluice.conflicts"
columns = ["a"]
"#;
    assert_snapshot!(errors(text, &[("PGSLUICE__SUBSCRIPTIONS__1__ENABLED", "perhaps")]), @r#"
    the configuration has 24 problems
    pgsluice.toml:2:1: listen: there is no such key
      hint: known keys here: service, target, subscriptions
    pgsluice.toml:5:1: service.listen: "localhost:9650" is not an IP address and a port
      hint: write 127.0.0.1:9650, [::1]:9650, or 0.0.0.0:9650 for all interfaces
    pgsluice.toml:6:1: service.log_format: "jsno" is not one of this key's values
      hint: did you mean "json"?
    pgsluice.toml:7:1: service.api_token_file: expected a string, found a number
    pgsluice.toml:9:2: traget: there is no such key
      hint: did you mean "target"?
    pgsluice.toml:13:1: subscriptions[0].name: " spaced" is not a subscription name: use 1 to 63 bytes without control characters or outer spaces
    pgsluice.toml:14:1: subscriptions[0].publisher: the word at character 25 is not followed by "="
      hint: a password with spaces stands in single quotes: password='…'
    pgsluice.toml:14:1: subscriptions[0].publisher: sslmode must be disable, allow, prefer, require, verify-ca or verify-full
    pgsluice.toml:15:1: subscriptions[0].publications: the list is empty
      hint: add publications = ["…"]
    pgsluice.toml:16:1: subscriptions[0].retry_conflict_interval: "soon" is not a duration
      hint: write "off", "500ms", "5s", "2m" or "1h"
    pgsluice.toml:17:1: subscriptions[0].create-slot: there is no such key
      hint: did you mean "create_slot"?
    pgsluice.toml:18:1: subscriptions[0].copy_data: expected true or false, found a string
    pgsluice.toml:19:1: subscriptions[0].enabled: expected true or false, found a number
    pgsluice.toml:20:1: subscriptions[0].slot: "Not A Slot" is not a replication slot name: use 1 to 63 lower-case letters, digits and underscores
    pgsluice.toml:21:1: subscriptions[0].colour: there is no such key
      hint: known keys here: name, publisher, publications, slot, create_slot, copy_data, enabled, auto_refresh, retry_conflict_interval, binary, streaming, two_phase, origin, conflict_defaults, tables
    pgsluice.toml:23:1: subscriptions[1].publisher: the key is missing
      hint: add publisher = "host=… dbname=… user=…"
    pgsluice.toml:25:22: subscriptions[1].publications[1]: expected a string, found a number
    pgsluice.toml:26:23: subscriptions[1].conflict_defaults.insert_exist: there is no such key
      hint: did you mean "insert_exists"?
    pgsluice.toml:26:47: subscriptions[1].conflict_defaults.update_missing: "paus" is not one of this key's values
      hint: did you mean "pause"?
    pgsluice.toml:29:1: subscriptions[1].tables[0].source: "a.b.c" is not a table name: expected schema.table
    pgsluice.toml:31:1: subscriptions[1].tables[1].source: the key is missing
      hint: name the publisher's table: source = "schema.table"
    pgsluice.toml:32:1: subscriptions[1].tables[1].target: schema pgsluice of the target holds pgsluice's own state
      hint: choose a table in another schema
    pgsluice.toml:33:1: subscriptions[1].tables[1].columns: expected a table, found a list
    environment variable PGSLUICE__SUBSCRIPTIONS__1__ENABLED: subscriptions[1].enabled: expected true or false
    "#);
}

#[test]
fn missing_keys_are_named_where_they_belong() {
    assert_snapshot!(errors("[[subscriptions]]\n[[subscriptions.tables]]\n", &[]), @r#"
    the configuration has 5 problems
    pgsluice.toml: target.url: the key is missing
      hint: add url = "host=… dbname=… user=…" under [target]
    pgsluice.toml:1:1: subscriptions[0].name: the key is missing
      hint: add name = "…"
    pgsluice.toml:1:1: subscriptions[0].publisher: the key is missing
      hint: add publisher = "host=… dbname=… user=…"
    pgsluice.toml:1:1: subscriptions[0].publications: the key is missing
      hint: add publications = ["…"]
    pgsluice.toml:2:1: subscriptions[0].tables[0].source: the key is missing
      hint: name the publisher's table: source = "schema.table"
    "#);
    assert_snapshot!(errors("[target]\nurl = 5\n[[subscriptions]]\nname = \"Fancy-Name\"\npublisher = \"host=x\"\npublications = [\"p\"]", &[]), @r"
    the configuration has 2 problems
    pgsluice.toml:2:1: target.url: expected a string, found a number
    pgsluice.toml:3:1: subscriptions[0].slot: the key is missing
      detail: the subscription's name, which would be the default, is not a slot's name
      hint: name the slot: 1 to 63 lower-case letters, digits and underscores
    ");
}

#[test]
fn a_wrong_structure_is_described() {
    assert_snapshot!(errors("service = 1979-05-27\ntarget = [1]\nsubscriptions = { name = \"x\" }", &[]), @r"
    the configuration has 3 problems
    pgsluice.toml:1:1: service: expected a table, found a date or time
    pgsluice.toml:2:1: target: expected a table, found a list
    pgsluice.toml:3:1: subscriptions: expected a list of tables, found a table
      hint: head each table with [[subscriptions]]
    ");
    assert_snapshot!(errors("target.url = \"host=x\"\nsubscriptions = [5, { name = 5 }]", &[]), @r#"
    the configuration has 4 problems
    pgsluice.toml:2:18: subscriptions[0]: expected a table, found a number
    pgsluice.toml:2:21: subscriptions[1].publisher: the key is missing
      hint: add publisher = "host=… dbname=… user=…"
    pgsluice.toml:2:21: subscriptions[1].publications: the key is missing
      hint: add publications = ["…"]
    pgsluice.toml:2:23: subscriptions[1].name: expected a string, found a number
    "#);
    assert_snapshot!(errors("\"target.url\" = \"host=x\"\n\"a b\".c = 1", &[]), @r#"
    the configuration has 3 problems
    pgsluice.toml: target.url: the key is missing
      hint: add url = "host=… dbname=… user=…" under [target]
    pgsluice.toml:1:1: "target.url": there is no such key
      hint: known keys here: service, target, subscriptions
    pgsluice.toml:2:1: "a b": there is no such key
      hint: known keys here: service, target, subscriptions
    "#);
}

#[test]
fn a_syntax_error_is_one_problem_that_repeats_nothing() {
    assert_snapshot!(errors("[target]\nurl = \"password=hunter2\n[oops", &[]), @r#"
    the configuration has a problem
    pgsluice.toml:2:24: this is not TOML: invalid basic string, expected `"`
    "#);
    assert_snapshot!(errors("[target]\nurl = \"a\"\nurl = \"b\"", &[]), @r"
    the configuration has a problem
    pgsluice.toml:3:1: this is not TOML: duplicate key
    ");
}

#[test]
fn what_belongs_to_later_issues_is_refused_by_name() {
    let text = with(
        r#"
binary = "on"
streaming = "on"
two_phase = true
conflict_defaults = { insert_exists = "apply_remote", update_missing = "keep_local" }
[[subscriptions.tables]]
source = "public.widgets"
columns = { price = { to = "unit_price" }, legacy = { ignore = true }, note = { ignore_if_null = true } }
set = { loaded_at = "now()" }
on_delete = "ignore"
conflicts = { delete_missing = "last_update_wins" }
[[subscriptions.tables]]
source = "public.other"
on_delete = { mark = "deleted_at" }
"#,
    );
    assert_snapshot!(errors(&text, &[]), @r#"
    the configuration has 10 problems
    pgsluice.toml:10:1: subscriptions[0].binary: "on" is not supported yet
      hint: use "auto" or "off"
    pgsluice.toml:11:1: subscriptions[0].streaming: "on" is not supported yet
      hint: use "auto" or "off"
    pgsluice.toml:12:1: subscriptions[0].two_phase: true is not supported yet
      hint: leave it out, or set it to false
    pgsluice.toml:13:23: subscriptions[0].conflict_defaults.insert_exists: "apply_remote" is not supported yet
      hint: use "pause"
    pgsluice.toml:13:55: subscriptions[0].conflict_defaults.update_missing: "keep_local" is not supported yet
      hint: use "pause"
    pgsluice.toml:16:1: subscriptions[0].tables[0].columns: mapping columns is not supported yet
      hint: leave columns out
    pgsluice.toml:17:1: subscriptions[0].tables[0].set: setting columns is not supported yet
      hint: leave set out
    pgsluice.toml:18:1: subscriptions[0].tables[0].on_delete: "ignore" is not supported yet
      hint: leave it out, or use "apply"
    pgsluice.toml:19:15: subscriptions[0].tables[0].conflicts.delete_missing: "last_update_wins" is not supported yet
      hint: use "pause"
    pgsluice.toml:22:1: subscriptions[0].tables[1].on_delete: marking deleted rows is not supported yet
      hint: leave it out, or use "apply"
    "#);
}

#[test]
fn what_is_refused_is_still_checked() {
    let text = with(
        r#"
[[subscriptions.tables]]
source = "public.widgets"
columns = { a = { to = "x" }, b = { to = "x", ignore = true }, c = {}, d = { to = "" }, e = { too = "y" } }
set = { x = "now()", y = " " }
on_delete = "aply"
[[subscriptions.tables]]
source = "public.other"
on_delete = { column = "deleted_at" }
"#,
    );
    assert_snapshot!(errors(&text, &[]), @r#"
    the configuration has 13 problems
    pgsluice.toml:12:1: subscriptions[0].tables[0].columns: mapping columns is not supported yet
      hint: leave columns out
    pgsluice.toml:12:31: subscriptions[0].tables[0].columns.b: an ignored column can have nothing else
      hint: remove ignore, or the other keys
    pgsluice.toml:12:37: subscriptions[0].tables[0].columns.b.to: column "a" goes to "x" already
    pgsluice.toml:12:64: subscriptions[0].tables[0].columns.c: the column's rule says nothing
      hint: set to = "…", ignore = true or ignore_if_null = true
    pgsluice.toml:12:78: subscriptions[0].tables[0].columns.d.to: an empty string is not a name
    pgsluice.toml:12:95: subscriptions[0].tables[0].columns.e.too: there is no such key
      hint: did you mean "to"?
    pgsluice.toml:13:1: subscriptions[0].tables[0].set: setting columns is not supported yet
      hint: leave set out
    pgsluice.toml:13:9: subscriptions[0].tables[0].set.x: the column already gets its value from the publisher
      detail: a rule in columns names it in "to"
    pgsluice.toml:13:22: subscriptions[0].tables[0].set.y: an empty string is not an SQL expression
      hint: write NULL for null, and '…' in single quotes for text
    pgsluice.toml:14:1: subscriptions[0].tables[0].on_delete: "aply" is not one of this key's values
      hint: use "apply", "ignore" or { mark = "column" }
    pgsluice.toml:17:1: subscriptions[0].tables[1].on_delete.mark: the key is missing
      hint: name the target's column that takes the time of the deletion
    pgsluice.toml:17:1: subscriptions[0].tables[1].on_delete: marking deleted rows is not supported yet
      hint: leave it out, or use "apply"
    pgsluice.toml:17:15: subscriptions[0].tables[1].on_delete.column: there is no such key
      hint: known keys here: mark
    "#);
}

#[test]
fn duplicates_are_refused() {
    let text = format!(
        r#"{MINIMAL}
tables = [
    {{ source = "a", target = "x" }},
    {{ source = "b", target = "public.x" }},
    {{ source = "A" }},
]
[[subscriptions]]
name = "first"
publisher = "host=elsewhere"
publications = ["p", "p"]

[[subscriptions]]
name = "third"
publisher = "host=standby,db-master dbname=other"
publications = ["p"]
slot = "first"

[[subscriptions]]
name = "fourth"
publisher = "host=elsewhere"
publications = ["p"]
slot = "third"
tables = [{{ source = "a", target = "x" }}]
"#
    );
    assert_snapshot!(errors(&text, &[]), @r#"
    the configuration has 5 problems
    pgsluice.toml:12:21: subscriptions[0].tables[1].target: public.x is the target of subscriptions[0].tables[0] already
      detail: a TRUNCATE or a new copy of one table would remove the other's rows
      hint: give each table of a subscription its own target
    pgsluice.toml:13:7: subscriptions[0].tables[2].source: public.a is the source of subscriptions[0].tables[0] already
      hint: put everything about a table into one rule
    pgsluice.toml:16:1: subscriptions[1].name: "first" is the name of subscriptions[0] already
      hint: give each subscription its own name
    pgsluice.toml:18:22: subscriptions[1].publications[1]: "p" is in the list already
    pgsluice.toml:24:1: subscriptions[2].slot: subscriptions[0] uses slot "first" of this publisher already
      hint: give each subscription its own slot
    "#);
}

#[test]
fn retry_intervals_are_bounded() {
    for (text, fits) in [("off", true), ("1s", true), ("24h", true), ("500ms", false), ("25h", false)] {
        let loaded = load(&with(&format!("retry_conflict_interval = \"{text}\"")), &[]);
        assert_eq!(loaded.is_ok(), fits, "{text}");
    }
}

#[test]
fn only_loopback_needs_no_token() {
    let listen = |address: &str| load(MINIMAL, &[("PGSLUICE__SERVICE__LISTEN", address)]);
    for address in ["127.0.0.1:1", "127.1.2.3:0", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(listen(address).is_ok(), "{address}");
    }
    assert_snapshot!(listen("0.0.0.0:9650").unwrap_err(), @r"
    the configuration has a problem
    environment variable PGSLUICE__SERVICE__LISTEN: service.listen: the address can be reached from other machines, but the API has no token
      hint: set service.api_token_file to a file that holds one, or listen on 127.0.0.1
    ");
    assert!(
        load(MINIMAL, &[("PGSLUICE__SERVICE__LISTEN", "[::]:1"), ("PGSLUICE__SERVICE__API_TOKEN_FILE", "f")])
            .is_ok()
    );
}

#[test]
fn the_environment_overrides_by_number_and_by_name() {
    let text = with("tables = [{ source = \"a\" }]");
    let config = loaded(
        &text,
        &[
            ("PGSLUICE__TARGET__URL", "host=other"),
            ("PGSLUICE__SUBSCRIPTIONS__0__ENABLED", "off"),
            ("PGSLUICE__SUBSCRIPTIONS__FIRST__PUBLICATIONS", "a, b"),
            ("PGSLUICE__SUBSCRIPTIONS__first__tables__0__target", "x.y"),
            ("PGSLUICE__SUBSCRIPTIONS__0__CONFLICT_DEFAULTS", "{ insert_exists = \"pause\" }"),
            ("PGSLUICE__SUBSCRIPTIONS__1__NAME", "my-second__one"),
            ("PGSLUICE__SUBSCRIPTIONS__1__SLOT", "second"),
            ("PGSLUICE__SUBSCRIPTIONS__MY_SECOND__ONE__PUBLISHER", "host=x"),
            ("PGSLUICE__SUBSCRIPTIONS__MY_SECOND__ONE__PUBLICATIONS", "[\"a,b\"]"),
            ("PGSLUICE__SERVICE__API_TOKEN_FILE", ""),
            ("PGSLUICE_CONFIG", "is not an override"),
            ("OTHER", "x"),
        ],
    );
    assert_snapshot!(config.target.conninfo.redacted(), @"host=other port=5432 user=osuser dbname=osuser sslmode=prefer");
    assert_eq!(config.service.api_token_file, None);
    let [first, second] = config.subscriptions.as_slice() else { panic!("two subscriptions") };
    assert!(!first.enabled);
    assert_eq!(first.publications, ["a", "b"]);
    assert_eq!(first.tables[0].target, QualifiedName::new("x", "y"));
    assert_eq!(second.publications, ["a,b"]);
    assert_snapshot!(second.publisher.redacted(), @"host=x port=5432 user=osuser dbname=osuser sslmode=prefer");
}

#[test]
fn the_environment_alone_can_configure_everything() {
    let config = loaded(
        "",
        &[
            ("PGSLUICE__TARGET", "{ url = 'host=a' }"),
            ("PGSLUICE__SUBSCRIPTIONS", "[{ name = 's', publisher = 'host=x', publications = ['p'] }]"),
            ("PGSLUICE__SUBSCRIPTIONS__S__COPY_DATA", "0"),
            ("PGSLUICE__SUBSCRIPTIONS__S__TABLES__0__SOURCE", "t"),
            ("PGSLUICE__SUBSCRIPTIONS__S__TABLES__1__SOURCE", "u"),
        ],
    );
    assert!(!config.subscriptions[0].copy_data);
    assert_eq!(config.subscriptions[0].tables.len(), 2);
}

#[test]
fn overrides_that_fit_nothing_are_errors() {
    let text = format!(
        "{MINIMAL}\n[[subscriptions]]\nname = \"a-b\"\nslot=\"ab\"\npublisher = \"host=x\"\npublications = [\"p\"]\n\
         [[subscriptions]]\nname = \"a_b\"\npublisher = \"host=x\"\npublications = [\"p\"]\n\
         tables = [{{ source = \"a\", columns = {{ \"Mixed-Case\" = {{ ignore = true }} }} }}]"
    );
    assert_snapshot!(errors(&text, &[
        ("PGSLUICE__TARGET__ULR", "host=hunter2"),
        ("PGSLUICE__TARGET__URL__HOST", "x"),
        ("PGSLUICE__COLOUR", "x"),
        ("PGSLUICE__SUBSCRIPTIONS__FRIST__SLOT", "x"),
        ("PGSLUICE__SUBSCRIPTIONS__A_B__SLOT", "x"),
        ("PGSLUICE__SUBSCRIPTIONS__0", "x"),
        ("PGSLUICE__SUBSCRIPTIONS__7__NAME", "x"),
        ("PGSLUICE__SUBSCRIPTIONS__0__ENABLED", "true"),
        ("PGSLUICE__SUBSCRIPTIONS__FIRST__ENABLED", "true"),
        ("PGSLUICE__SUBSCRIPTIONS__FIRST__COPY_DATA", "maybe"),
        ("PGSLUICE__SUBSCRIPTIONS__FIRST__SLOT", "No Slot"),
        ("PGSLUICE__SUBSCRIPTIONS__2__TABLES__0__COLUMNS__MIXED_CASE__TO", "x"),
        ("PGSLUICE__SUBSCRIPTIONS__2__TABLES__0__SET__LOADED_AT", "now()"),
        ("PGSLUICE__SUBSCRIPTIONS__2__TABLES__0__ON_DELETE__MARK", "deleted_at"),
        ("PGSLUICE__SERVICE", "{ listen = 'password=hunter2"),
        ("PGSLUICE__", "x"),
    ]), @r#"
    the configuration has 16 problems
    pgsluice.toml:19:27: subscriptions[2].tables[0].columns: mapping columns is not supported yet
      hint: leave columns out
    pgsluice.toml:19:39: subscriptions[2].tables[0].columns.Mixed-Case: an ignored column can have nothing else
      hint: remove ignore, or the other keys
    environment variable PGSLUICE__: no key follows the prefix
      hint: unset it
    environment variable PGSLUICE__COLOUR: "COLOUR" in this name is not a key
      hint: known keys here: SERVICE, TARGET, SUBSCRIPTIONS
    environment variable PGSLUICE__SERVICE: service: this is not TOML: unclosed inline table, expected `}`
      hint: give a table in TOML's inline notation, on one line
    environment variable PGSLUICE__SUBSCRIPTIONS__0: the name stops at subscriptions[0], before any of its keys
      hint: append the key, such as __NAME
    environment variable PGSLUICE__SUBSCRIPTIONS__2__TABLES__0__ON_DELETE__MARK: subscriptions[2].tables[0].on_delete: marking deleted rows is not supported yet
      hint: leave it out, or use "apply"
    environment variable PGSLUICE__SUBSCRIPTIONS__2__TABLES__0__SET__LOADED_AT: subscriptions[2].tables[0].set: setting columns is not supported yet
      hint: leave set out
    environment variable PGSLUICE__SUBSCRIPTIONS__7__NAME: subscriptions[7].name is beyond the end of its list
      hint: the next number is 3; counting starts at 0
    environment variable PGSLUICE__SUBSCRIPTIONS__A_B__SLOT: several elements of subscriptions go by this name
      hint: use the element's number, counting from 0
    environment variable PGSLUICE__SUBSCRIPTIONS__FIRST__COPY_DATA: subscriptions[0].copy_data: expected true or false
    environment variable PGSLUICE__SUBSCRIPTIONS__FIRST__ENABLED: subscriptions[0].enabled is set by PGSLUICE__SUBSCRIPTIONS__0__ENABLED as well
      hint: unset one of them
    environment variable PGSLUICE__SUBSCRIPTIONS__FIRST__SLOT: subscriptions[0].slot: "No Slot" is not a replication slot name: use 1 to 63 lower-case letters, digits and underscores
    environment variable PGSLUICE__SUBSCRIPTIONS__FRIST__SLOT: no element of subscriptions goes by this name
      detail: known names: FIRST, A_B, A_B
      hint: use one of them, or the element's number, counting from 0
    environment variable PGSLUICE__TARGET__ULR: "ULR" in this name is not a key
      hint: did you mean URL?
    environment variable PGSLUICE__TARGET__URL__HOST: target.url has no keys of its own
      hint: remove __HOST
    "#);
}

#[test]
fn secrets_never_show() {
    let text = MINIMAL.replace("host=", "password=hunter2 host=");
    let config = loaded(&text, &[("PGPASSWORD", "hunter2")]);
    assert!(!format!("{config:?}").contains("hunter2"));
    let broken = text.replace("user=", "pasword=hunter2 sslmode=hunter2 hunter2 user=");
    assert!(!errors(&broken, &[("PGPORT", "hunter2")]).contains("hunter2"));
}

#[test]
fn no_subscription_is_an_error_for_run_only() {
    let config = loaded("target.url = 'host=x'", &[]);
    assert_snapshot!(config.require_subscription().unwrap_err(), @r"
    the configuration has a problem
    subscriptions: no subscription is configured
      hint: add a [[subscriptions]] table to the configuration; docs/configuration.md shows its keys
    ");
}

#[test]
fn the_file_is_found_or_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pgsluice.toml");
    let strip = |errors: ConfigErrors| errors.to_string().replace(&dir.path().display().to_string(), "DIR");
    let env = |name: &str, value: &str| std::iter::once((name.to_owned(), value.to_owned()));

    assert_snapshot!(strip(Config::load(Some(&path), std::iter::empty()).unwrap_err()), @r"
    the configuration has a problem
    DIR/pgsluice.toml: there is no such configuration file
      hint: name the file with --config FILE or PGSLUICE_CONFIG
    ");
    assert_snapshot!(strip(Config::load(Some(dir.path()), std::iter::empty()).unwrap_err()), @r"
    the configuration has a problem
    DIR: the configuration file cannot be read
      detail: Is a directory (os error 21)
    ");
    // Named, so it has to be there, whatever the environment configures.
    assert!(Config::load(Some(&path), env("PGSLUICE__TARGET__URL", "host=x")).is_err());
    assert!(Config::load(None, env("PGSLUICE_CONFIG", "/nowhere/pgsluice.toml")).is_err());

    fs::write(&path, MINIMAL).unwrap();
    assert_eq!(Config::load(Some(&path), std::iter::empty()).unwrap().subscriptions.len(), 1);
    let from_env = Config::load(None, env("PGSLUICE_CONFIG", &path.display().to_string())).unwrap();
    assert_eq!(from_env.subscriptions.len(), 1);
}

#[test]
fn a_default_file_may_be_missing_if_the_environment_speaks() {
    let default = || ConfigFile::Default("/nowhere/pgsluice.toml".into());
    let read = |env: Env<'_>| {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let surroundings = Surroundings { env, os_user: None, files: DefaultFiles::default() };
        let mut report = Report::default();
        read_file(default(), &surroundings, &mut report).ok_or_else(|| report.into_errors().to_string())
    };
    assert_eq!(read(&[("PGSLUICE__TARGET__URL", "host=x")]), Ok(String::new()));
    assert_snapshot!(read(&[("PATH", "/bin")]).unwrap_err(), @r"
    the configuration has a problem
    /nowhere/pgsluice.toml: there is no such configuration file
      hint: name the file with --config FILE or PGSLUICE_CONFIG
    ");
}

#[test]
fn passwords_come_from_a_password_file_that_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passfile");
    fs::write(&path, "db-master:*:*:*:theirs\ntarget:*:*:*:ours\n").unwrap();
    let passfile = path.display().to_string();
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let strip = |config: &Config| {
        let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        warnings.join("\n").replace(&dir.path().display().to_string(), "DIR")
    };

    mode(0o600);
    let config = loaded(MINIMAL, &[("PGPASSFILE", &passfile)]);
    let password = |conninfo: &ConnInfo| conninfo.password.as_ref().map(|secret| secret.expose().to_owned());
    assert_eq!(password(&config.target.conninfo).as_deref(), Some("ours"));
    assert_eq!(password(&config.subscriptions[0].publisher).as_deref(), Some("theirs"));
    assert_eq!(strip(&config), "");

    mode(0o640);
    let config = loaded(MINIMAL, &[("PGPASSFILE", &passfile)]);
    assert_eq!(password(&config.target.conninfo), None);
    assert_snapshot!(strip(&config), @r"
    password file DIR/passfile is ignored: its group or others may access it
      hint: chmod 0600 'DIR/passfile'
    ");
    let missing = dir.path().join("missing").display().to_string();
    assert_snapshot!(strip(&loaded(MINIMAL, &[("PGPASSFILE", &missing)])), @r"
    password file DIR/missing is ignored: No such file or directory (os error 2)
      hint: correct passfile or PGPASSFILE, or create the file with mode 0600
    ");
    let directory = dir.path().display().to_string();
    assert_snapshot!(strip(&loaded(MINIMAL, &[("PGPASSFILE", &directory)])), @"password file DIR is ignored: it is not a plain file");
}

#[test]
fn a_reload_knows_what_changed() {
    let subscription = |name: &str, more: &str| {
        format!(
            "[[subscriptions]]\nname = \"{name}\"\npublisher = \"host=x\"\npublications = [\"p\"]\n{more}\n"
        )
    };
    let target = "target.url = \"host=a\"\n";
    let old =
        [target, &subscription("same", ""), &subscription("gone", ""), &subscription("edited", "")].concat();
    let new = [
        target,
        &subscription("edited", "enabled = false"),
        &subscription("new", ""),
        &subscription("same", "copy_data = true"),
    ]
    .concat();
    let (old, new) = (loaded(&old, &[]), loaded(&new, &[]));
    let changes = old.changes(&new);
    let names = |list: &[&Subscription]| list.iter().map(|s| s.name.to_string()).collect::<Vec<_>>();
    assert_eq!((names(&changes.added), names(&changes.removed)), (vec!["new".into()], vec!["gone".into()]));
    let changed: Vec<_> =
        changes.changed.iter().map(|(old, new)| (old.name.as_str(), old.enabled, new.enabled)).collect();
    assert_eq!(changed, [("edited", true, false)]);
    assert!(!changes.target && !changes.service && !changes.is_empty());
    assert!(old.changes(&old).is_empty());
    let other = loaded("target.url = \"host=b\"\nservice.listen = \"127.0.0.1:1\"", &[]);
    let changes = old.changes(&other);
    assert!(changes.target && changes.service);
    assert_eq!(changes.removed.len(), 3);
}

proptest! {
    /// Whatever is written, there is a configuration or at least one problem, and no panic.
    #[test]
    fn no_text_is_rejected_without_a_reason(
        lines in prop::collection::vec(
            (
                "(service|target|subscriptions|subscriptions\\.tables|)",
                "(listen|url|name|publisher|publications|slot|tables|source|columns|on_delete|two_phase|typo)",
                "(5|true|'off'|'a'|''|\\[\\]|\\['a'\\]|\\{\\}|\\{a=1\\}|\\[\\{source='a'\\}\\])",
            ),
            0..8,
        ),
        env in prop::collection::vec(("PGSLUICE__[A-Z0_]{0,30}", ".{0,10}"), 0..3),
    ) {
        let line = |(head, key, value): &(String, String, String)| match head.as_str() {
            "" => format!("{key} = {value}\n"),
            "service" | "target" => format!("[{head}]\n{key} = {value}\n"),
            _ => format!("[[{head}]]\n{key} = {value}\n"),
        };
        let text: String = lines.iter().map(line).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if let Err(errors) = load(&text, &env) {
            prop_assert!(!errors.problems().is_empty(), "{text}");
        }
    }
}
