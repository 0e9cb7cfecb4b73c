//! Tests of loading. Tests of refused values are in `problems`, those of overrides in `environment`.

mod environment;
mod problems;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::pg::conninfo::DefaultFiles;

type Env<'a> = &'a [(&'a str, &'a str)];

/// A configuration with only the required keys.
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
    let (os_user, files) = (Some("osuser".into()), DefaultFiles::default());
    let surroundings = Surroundings { env, os_user, files, memory_bytes: None };
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
        share_after: Some(Duration::from_secs(30)),
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
        stall_timeout: Duration::from_secs(10),
        peer_timeout: Duration::from_secs(30),
        max_value_bytes: 1 << 30,
        two_phase: false,
        origin: Origin::Any,
        synchronous_commit: SynchronousCommit::On,
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
    // A file that was named has to exist, even if the environment configures everything.
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
        let files = DefaultFiles::default();
        let surroundings = Surroundings { env, os_user: None, files, memory_bytes: None };
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

    mode(0o604);
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
    /// Any text gives a configuration or at least one problem, and never a panic.
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

#[test]
fn a_password_requires_tls_if_that_is_set() {
    use crate::pg::conninfo::Passwords;
    let with = |setting: &str, publisher: &str| {
        let text = MINIMAL.replace("host=db-master", publisher);
        load(&format!("[service]\n{setting}\n{text}"), &[])
    };
    let remote = "password=hunter2 host=db-master";
    let config = with("", remote).unwrap();
    assert_eq!(config.subscriptions[0].publisher.tls.passwords, Passwords::OverAnyConnection);
    let config = with("password_requires_tls = true", remote).unwrap();
    assert_eq!(config.subscriptions[0].publisher.tls.passwords, Passwords::OverTlsOnly);
    assert_eq!(config.target.conninfo.tls.passwords, Passwords::OverTlsOnly);
    let plain = "password=hunter2 sslmode=disable host";
    assert!(with("password_requires_tls = false", &format!("{plain}=db-master")).is_ok());
    for harmless in [format!("{plain}=localhost"), "sslmode=disable host=db-master".to_owned()] {
        assert!(with("password_requires_tls = true", &harmless).is_ok(), "{harmless}");
    }
    let refused =
        with("password_requires_tls = true", &format!("{plain}=db-master")).unwrap_err().to_string();
    assert_snapshot!(refused, @r"
    the configuration has a problem
    pgsluice.toml:9:1: subscriptions[0].publisher: sslmode=disable with a password for db-master, and service.password_requires_tls
      detail: a log-in without TLS lets others on the network learn the password
      hint: use sslmode=verify-full with sslrootcert, or leave the password out
    ");
}
