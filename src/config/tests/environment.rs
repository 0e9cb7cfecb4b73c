//! Overrides from the environment.

use insta::assert_snapshot;

use super::*;

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
    the configuration has 15 problems
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
      hint: leave it out, or use "apply" or "ignore"
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
