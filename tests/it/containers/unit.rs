//! `docker/pgsluice.service` is accepted by systemd, and its settings fit pgsluice.

use std::process::Command;

use pgsluice::config::Config;

use super::{assert_parses, read, repository};

const UNIT: &str = "docker/pgsluice.service";

/// Returns section, key and value of every line, including commented-out settings.
fn settings() -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in read(UNIT).lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let shown = line.strip_prefix('#').unwrap_or(line);
        let Some((key, value)) = shown.split_once('=') else { continue };
        if key.chars().all(|c| c.is_ascii_alphanumeric()) {
            settings.push((section.clone(), key.to_owned(), value.to_owned()));
        } else {
            assert!(line.starts_with('#'), "{line:?} is no setting");
        }
    }
    settings
}

#[track_caller]
fn value(key: &str) -> String {
    let found: Vec<_> = settings().into_iter().filter(|(_, name, _)| name == key).collect();
    let [(_, _, value)] = found.as_slice() else { panic!("{key}: {found:?}") };
    value.clone()
}

#[test]
fn the_service_starts_reloads_and_ends_as_pgsluice_does() {
    let start = value("ExecStart");
    let words: Vec<&str> = start.split(' ').collect();
    assert_eq!(words[0], "/usr/local/bin/pgsluice");
    assert_parses(&words[1..]);
    assert_eq!(value("ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!(value("Restart"), "on-failure");
    // Exit code 2 means wrong usage or configuration, which another start would not change.
    assert_eq!(value("RestartPreventExitStatus"), "2");
}

#[test]
fn its_environment_is_pgsluices() {
    let environment = settings().into_iter().filter(|(_, key, _)| key == "Environment");
    let environment: Vec<(String, String)> = environment
        .map(|(_, _, assignment)| {
            let (name, value) = assignment.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect();
    assert!(environment.iter().any(|(name, value)| name == "PGPASSFILE" && value == "%d/pgpass"));
    let credentials: Vec<String> = settings()
        .into_iter()
        .filter(|(_, key, _)| key == "LoadCredential")
        .map(|(_, _, value)| value.split(':').next().unwrap().to_owned())
        .collect();
    for (name, value) in &environment {
        let credential = value.strip_prefix("%d/").unwrap_or_else(|| panic!("{name}={value}"));
        assert!(credentials.iter().any(|known| known == credential), "{credential} is no credential");
    }
    let config = Config::load(Some(&repository("config/pgsluice.toml")), environment.into_iter());
    assert!(config.unwrap().service.api_token_file.is_some());
}

/// Runs systemd's own check if it is installed. It reports unknown keys and values as warnings, which
/// are failures here.
#[test]
fn systemd_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pgsluice.service");
    // The executable in the unit has to exist.
    let unit = read(UNIT).replace("/usr/local/bin/pgsluice", env!("CARGO_BIN_EXE_pgsluice"));
    std::fs::write(&path, unit).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output();
    match verified {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr);
            let ours: Vec<&str> = told.lines().filter(|line| line.contains("pgsluice")).collect();
            assert!(output.status.success() && ours.is_empty(), "{told}");
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("NOT CHECKED: systemd-analyze is missing (Debian's package \"systemd\" has it)");
        }
        Err(error) => panic!("systemd-analyze could not be run: {error}"),
    }
}
