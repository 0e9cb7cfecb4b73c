//! Tests of the problems that are reported and of their texts.

use insta::assert_snapshot;

use super::*;

/// A configuration with a problem in almost every line.
const MANY_PROBLEMS: &str = r#"
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

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    assert_snapshot!(errors(MANY_PROBLEMS, &[("PGSLUICE__SUBSCRIPTIONS__1__ENABLED", "perhaps")]), @r#"
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
      hint: known keys here: name, publisher, publications, slot, create_slot, copy_data, enabled, auto_refresh, retry_conflict_interval, binary, streaming, two_phase, origin, run_as, synchronous_commit, stall_timeout, peer_timeout, max_value_bytes, conflict_defaults, tables
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
    the configuration has 6 problems
    pgsluice.toml:10:1: subscriptions[0].two_phase: true is not supported yet
      hint: leave it out, or set it to false
    pgsluice.toml:11:23: subscriptions[0].conflict_defaults.insert_exists: "apply_remote" is not supported yet
      hint: use "pause"
    pgsluice.toml:11:55: subscriptions[0].conflict_defaults.update_missing: "keep_local" is not supported yet
      hint: use "pause"
    pgsluice.toml:15:1: subscriptions[0].tables[0].set: setting columns is not supported yet
      hint: leave set out
    pgsluice.toml:17:15: subscriptions[0].tables[0].conflicts.delete_missing: "last_update_wins" is not supported yet
      hint: use "pause"
    pgsluice.toml:20:1: subscriptions[0].tables[1].on_delete: marking deleted rows is not supported yet
      hint: leave it out, or use "apply" or "ignore"
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
    the configuration has 12 problems
    pgsluice.toml:12:31: subscriptions[0].tables[0].columns.b: an ignored column can have nothing else
      hint: remove ignore, or the other keys
    pgsluice.toml:12:37: subscriptions[0].tables[0].columns.b.to: column "a" goes to "x" already
    pgsluice.toml:12:64: subscriptions[0].tables[0].columns.c: the column's rule says nothing
      hint: set to = "…", ignore = true, ignore_if_null = true or coerce = true
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
      hint: leave it out, or use "apply" or "ignore"
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
