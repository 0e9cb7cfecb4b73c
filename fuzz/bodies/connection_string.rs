//! Any connection string is parsed, or refused with reasons that do not repeat it. What is behind a zero byte is the
//! text of a password file.

use pgsluice::pg::conninfo::{DefaultFiles, Defaults, parse, quote_value};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (text, passwords) = text.split_once('\0').unwrap_or((text, ""));
    let (env, files) = (|_: &str| None, DefaultFiles::default());
    let defaults = Defaults { env: &env, os_user: Some("sammy"), files: &files };
    let mut info = match parse(text, &defaults) {
        Ok(parsed) => parsed.conninfo,
        Err(errors) => return assert!(!errors.to_string().is_empty()),
    };
    assert!(!info.hosts.is_empty());
    let user =
        parse(&format!("user={}", quote_value(&info.user)), &defaults).expect("a quoted value is valid");
    assert_eq!(user.conninfo.user, info.user);
    // A password that is long, and no part of another value, is in nothing that is shown.
    let shown = |info: &pgsluice::pg::conninfo::ConnInfo| format!("{} {info:?}", info.redacted());
    if let Some(password) = info.password.clone() {
        let password = password.expose();
        let is_unlike = password.len() >= 8 && text.matches(password).count() == 1;
        assert!(!is_unlike || !shown(&info).contains(password));
    }
    info.take_passwords(passwords);
    assert!(!shown(&info).is_empty());
    for host in &info.hosts {
        assert!(info.password_for(host).is_some() || !info.exposes_password(host));
    }
}
