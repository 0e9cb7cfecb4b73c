//! Tests of the rules on snippets: each rule finds its violations and nothing that only looks like one.

use insta::assert_snapshot;

use super::lexer::{Keep, blank};
use super::rules::{check_comments, check_sources, check_text};
use super::source::{Path, SourceFile};

/// Returns the violations in one file, one per line. A first line with `//!` is put before the source.
fn check(path: &str, source: &str) -> String {
    check_all(&[(path, &format!("//! Purpose.\n{source}"))])
}

fn check_all(sources: &[(&str, &str)]) -> String {
    let files: Vec<_> = sources.iter().map(|(path, source)| SourceFile::new(path, source)).collect();
    let lines: Vec<_> = check_sources(&files)
        .into_iter()
        .map(|found| format!("{}:{}: {}", found.path, found.line, found.what))
        .collect();
    lines.join("\n")
}

#[test]
fn the_pure_core_uses_nothing_impure() {
    assert_snapshot!(check("src/pgoutput/reader.rs", "use tokio::io::{self, AsyncRead};"), @r"
        src/pgoutput/reader.rs:2: uses tokio::io
        src/pgoutput/reader.rs:2: uses tokio::io::AsyncRead
    ");
    assert_snapshot!(check("src/pg/lsn.rs", "use std::{fmt, time::{Duration, Instant as Now}};"), @"src/pg/lsn.rs:2: uses std::time::Instant");
    assert_snapshot!(check("src/error.rs", "use std::time;\nfn f() { time::SystemTime::now(); }"), @"src/error.rs:3: uses std::time::SystemTime::now");
    assert_snapshot!(check("src/conflict/kind.rs", "fn f() -> bool {\n    std::env::var(\"X\").is_ok()\n}"), @"src/conflict/kind.rs:3: uses std::env::var");
    assert_snapshot!(check("src/subscription/state.rs", "use std::time::*;"), @"src/subscription/state.rs:2: uses std::time::*");
    assert_snapshot!(check("src/apply/statement.rs", "fn f() { ::metrics::counter!(\"x\"); }"), @r"
        src/apply/statement.rs:2: uses metrics::counter
        src/apply/statement.rs:2: uses metrics::counter, whose home is telemetry
    ");
    assert_eq!(check("src/pg/lsn.rs", "use std::time::Duration;\nfn f(_: std::fmt::Error) {}"), "");
    assert_eq!(check("src/subscription/worker.rs", "use tokio::select;\nuse std::time::Instant;"), "");
    assert_eq!(check("src/schema/catalog.rs", "use tokio_postgres::Client;"), "");
}

#[test]
fn comments_strings_and_tests_do_not_count() {
    let source = r##"
        // use tokio::time;
        /* tokio::spawn(/* nested */ tokio::x) */
        /// tokio::main
        const A: &str = "tokio::spawn \" tokio::spawn";
        const B: &str = r#"tokio::spawn " tokio::spawn"#;
        const C: (char, char, u8) = ('"', '\'', b'"');
        fn life<'a>(x: &'a str) -> &'a str { x }
        #[cfg(test)]
        mod tests { use tokio::time; fn f() { tokio::spawn(); } }
        #[cfg(any(test, fuzzing))]
        use tokio::sync;
    "##;
    assert_eq!(check("src/pg/lsn.rs", source), "");
    assert_snapshot!(check("src/pg/lsn.rs", "#[cfg(not(test))]\nuse tokio::sync;"), @"src/pg/lsn.rs:3: uses tokio::sync");
    assert_snapshot!(check("src/pg/lsn.rs", "#[cfg(test)]\nfn f() {}\nuse tokio::sync;"), @"src/pg/lsn.rs:4: uses tokio::sync");
}

#[test]
fn test_modules_in_their_own_file_do_not_count() {
    let parent = ("src/pg/mod.rs", "//! Purpose.\n#[cfg(test)]\nmod tests;");
    let child = ("src/pg/tests.rs", "//! Purpose.\nuse tokio::time;");
    assert_eq!(check_all(&[parent, child]), "");
    assert_snapshot!(check_all(&[("src/pg/mod.rs", "//! Purpose.\nmod tests;"), child]), @"src/pg/tests.rs:2: uses tokio::time");
}

#[test]
fn a_dependency_is_used_at_home_only() {
    assert_snapshot!(check("src/cli/run.rs", "use axum::Router;"), @"src/cli/run.rs:2: uses axum::Router, whose home is http");
    assert_snapshot!(check("src/runtime.rs", "#[derive(clap::Parser)]\nstruct A;"), @"src/runtime.rs:2: uses clap::Parser, whose home is cli, main");
    assert_snapshot!(check("src/subscription/worker.rs", "use sqlx::query;"), @"src/subscription/worker.rs:2: uses sqlx::query, whose home is store");
    assert_snapshot!(check("src/store/mod.rs", "use tokio_postgres::Client;\nuse postgres_protocol as wire;"), @r"
        src/store/mod.rs:2: uses tokio_postgres::Client, whose home is net, target, apply, copy, schema::catalog, demo
        src/store/mod.rs:3: uses postgres_protocol, whose home is replication
    ");
    assert_snapshot!(check("src/replication/tls.rs", "use tokio_rustls::rustls::ClientConfig;"), @"src/replication/tls.rs:2: uses tokio_rustls::rustls::ClientConfig, whose home is net");
    assert_snapshot!(check("src/runtime.rs", "use ::config::Config;"), @"src/runtime.rs:2: uses config::Config, whose home is config");
    for (path, source) in [
        ("src/http/mod.rs", "use axum::Router;"),
        ("src/main.rs", "use clap::Parser;"),
        ("src/config/raw.rs", "use config::Config;"),
        ("src/net/tls.rs", "use rustls::ClientConfig;"),
        ("src/demo/mod.rs", "use tokio_postgres::Client;"),
        // This crate's own module of the same name.
        ("src/runtime.rs", "use crate::config;\nfn f() { config::load(); }"),
        ("src/lib.rs", "pub mod config;\npub use config::Config;"),
    ] {
        assert_eq!(check(path, source), "", "{path}");
    }
}

#[test]
fn http_leaves_workers_alone() {
    assert_snapshot!(check("src/http/status.rs", "use crate::subscription::{state, worker::Worker};"), @"src/http/status.rs:2: uses crate::subscription::worker::Worker");
    assert_snapshot!(check("src/http/status.rs", "use crate::subscription::*;"), @"src/http/status.rs:2: uses crate::subscription::*");
    assert_eq!(check("src/http/status.rs", "use crate::subscription::Snapshot;"), "");
    assert_eq!(check("src/runtime.rs", "use crate::subscription::worker::Worker;"), "");
}

#[test]
fn progress_is_written_by_apply_only() {
    let update = "const SQL: &str = \"Update \\\n    \\\"pgsluice\\\".progress SET x\";";
    assert_snapshot!(check("src/store/lifecycle.rs", update), @r#"src/store/lifecycle.rs:2: writes "update pgsluice.progress""#);
    assert_snapshot!(check("src/copy/mod.rs", "const SQL: &str = r#\"INSERT INTO  pgsluice.progress\"#;"), @r#"src/copy/mod.rs:2: writes "insert into pgsluice.progress""#);
    assert_eq!(check("src/apply/progress.rs", update), "");
    assert_eq!(check("src/store/lifecycle.rs", "const SQL: &str = \"SELECT FROM pgsluice.progress\";"), "");
    assert_eq!(check("src/store/lifecycle.rs", "// UPDATE pgsluice.progress is apply's"), "");
}

#[test]
fn modules_open_with_their_purpose() {
    assert_snapshot!(check_all(&[("src/pg/lsn.rs", "// Purpose.\n")]), @"src/pg/lsn.rs:1: does not open with //!");
    assert_snapshot!(check_all(&[("src/pg/lsn.rs", "")]), @"src/pg/lsn.rs:1: does not open with //!");
    assert_eq!(check_all(&[("src/pg/lsn.rs", "\n//! Purpose.\n")]), "");
}

#[test]
fn functions_and_files_have_an_end() {
    let function = |lines: usize| {
        format!("fn f<T>(x: [u8; 2]) -> [T; 2]\nwhere\n    T: Copy,\n{{\n{}}}", "    g();\n".repeat(lines))
    };
    assert_eq!(check("src/pg/lsn.rs", &function(70)), "");
    assert_snapshot!(check("src/pg/lsn.rs", &function(71)), @"src/pg/lsn.rs:2: the body of f has 71 lines, more than 70");
    assert_eq!(
        check("src/pg/lsn.rs", &format!("trait T {{ fn f(); }}\nstruct S {{\n{}}}", "\n".repeat(75))),
        ""
    );
    assert_eq!(check("src/pg/lsn.rs", &"\n".repeat(499)), "");
    assert_snapshot!(check("src/pg/lsn.rs", &"\n".repeat(500)), @"src/pg/lsn.rs:1: has 501 lines without tests, more than 500");
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(600));
    assert_eq!(check("src/pg/lsn.rs", &tests), "");
}

#[test]
fn lints_are_expected_and_not_allowed() {
    assert_snapshot!(check("src/pg/lsn.rs", "#[allow(dead_code)]\nfn f() {}"), @"src/pg/lsn.rs:2: has #[allow(…)]");
    assert_snapshot!(check("src/pg/lsn.rs", "#![allow(dead_code)]"), @"src/pg/lsn.rs:2: has #[allow(…)]");
    assert_snapshot!(check("src/pg/lsn.rs", "#[cfg_attr(\n    test,\n    allow(x)\n)]\nfn f() {}"), @"src/pg/lsn.rs:2: has #[allow(…)]");
    assert_snapshot!(check("src/pg/lsn.rs", "#[cfg(test)]\nmod tests {\n    #[allow(x)]\n    fn f() {}\n}"), @"src/pg/lsn.rs:4: has #[allow(…)]");
    assert_eq!(
        check("src/pg/lsn.rs", "#[expect(dead_code, reason = \"x\")]\nfn allow(x: u8) { allow(x) }"),
        ""
    );
}

#[test]
fn dependencies_point_down() {
    assert_snapshot!(check("src/pg/name.rs", "use crate::schema::TypeName;"), @"src/pg/name.rs:2: uses crate::schema::TypeName, and schema is above it");
    assert_snapshot!(check("src/pgoutput/mod.rs", "use crate::apply::execute;"), @"src/pgoutput/mod.rs:2: uses crate::apply::execute, and apply is above it");
    assert_snapshot!(check("src/schema/diff.rs", "use super::catalog::read;"), @"src/schema/diff.rs:2: uses crate::schema::catalog::read, and schema::catalog is above it");
    assert_snapshot!(check("src/apply/sets/compact/group.rs", "fn f() { super::super::super::execute::run(); }"), @"src/apply/sets/compact/group.rs:2: uses crate::apply::execute::run, and apply is above it");
    assert_snapshot!(check("src/net/mod.rs", "mod inner {\n    use super::super::http::x;\n}"), @"src/net/mod.rs:3: uses crate::http::x, and http is above it");
    assert_snapshot!(check("src/store/mod.rs", "use crate::{pg::Lsn, subscription as s};\nfn f() { s::x(); }"), @r"
        src/store/mod.rs:2: uses crate::subscription, and subscription is above it
        src/store/mod.rs:3: uses crate::subscription::x, and subscription is above it
    ");
    assert_snapshot!(check("src/cli/mod.rs", "use crate::main::x;"), @"src/cli/mod.rs:2: uses crate::main::x, and main is above it");
    assert_snapshot!(check("src/novel.rs", ""), @"src/novel.rs:1: module novel is in no layer of tests/it/tidy");
    for (path, source) in [
        ("src/main.rs", "use pgsluice::cli;"),
        ("src/cli/demo.rs", "use crate::{demo, runtime};"),
        ("src/subscription/worker.rs", "use super::state::step;\nuse crate::apply;"),
        ("src/apply/mod.rs", "mod plan;\npub use plan::Plan;"),
        ("src/apply/statement.rs", "use crate::pgoutput::Tuple;\nuse crate::schema::*;"),
        ("src/copy/mod.rs", "use crate::replication::Snapshot;"),
        ("src/store/mod.rs", "fn f<'a>() -> impl Sized + use<'a> { crate::pg::Lsn::ZERO }"),
    ] {
        assert_eq!(check(path, source), "", "{path}");
    }
}

#[test]
fn tracked_text_names_no_machine() {
    let check = |text: &str| {
        let found = check_text("README.md", text);
        found.iter().map(|found| format!("{}: {}", found.line, found.what)).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(check(concat!("fine\nsee /wo", "rk/main")), concat!("2: names /wo", "rk/"));
    assert_snapshot!(check(concat!("index = \"sparse", "+https://mirror.example/index\"")), @"1: names the registry https://mirror.example/index");
    assert_eq!(check(concat!("source = \"registry", "+https://github.com/rust-lang/crates.io-index\"")), "");
    assert_eq!(check("a framework/work item, a chroot"), "");
}

#[test]
fn paths_are_spelled_out() {
    let source = "use a::{b::{self, c as d}, e::*, f};\nuse super::g;\nfn h() { d::i(); g::j::<k::L>(); <M as n::O>::p(); q.r::<u8>(); }";
    let paths: Vec<_> = SourceFile::new("src/x/y.rs", source)
        .paths()
        .into_iter()
        .map(|(_, path)| match path {
            Path::Internal(path) => format!("crate::{}", path.join("::")),
            Path::External(path) => path.join("::"),
        })
        .collect();
    assert_snapshot!(paths.join("\n"), @r"
        a::b
        a::b::c
        a::e::*
        a::f
        crate::x::g
        a::b::c::i
        crate::x::g::j
        k::L
        n::O
    ");
}

#[test]
fn blanking_keeps_every_position() {
    let source = "a /* ü\n */ \"ö\\\"\" 'ß' b'\\'' br#\"\"\"# r#type // x\nb";
    for keep in [Keep::Code, Keep::CodeAndStrings] {
        assert_eq!(blank(source, keep).len(), source.len());
    }
    assert_snapshot!(blank(source, Keep::Code).split_whitespace().collect::<Vec<_>>().join(" "), @"a b b r#type b");
}

#[test]
fn comments_state_facts_of_the_repository() {
    let check = |source: &str| {
        let lines: Vec<_> = check_comments("src/pg/lsn.rs", source)
            .into_iter()
            .map(|found| format!("{}:{}: {}", found.path, found.line, found.what))
            .collect();
        lines.join("\n")
    };
    assert_snapshot!(check(concat!("/", "/! Purpose.\n/", "/ As EDGE_CASES 5 says.\nfn f() {} /", "/ Whoever calls it")), @r#"
    src/pg/lsn.rs:2: a comment names EDGE_CASES, which is not in the repository
    src/pg/lsn.rs:3: a comment says "Whoever"
    "#);
    assert_snapshot!(check("/* one\n DESIGN.md,\n guarantee 3 */"), @r"
    src/pg/lsn.rs:2: a comment names DESIGN, which is not in the repository
    src/pg/lsn.rs:3: a comment names guarantee 3, which is not in the repository
    ");
    assert_eq!(check(concat!("const S: &str = \"/", "/ whoever, EDGE_CASES\";")), "");
    assert_eq!(check("/// Its design and style; the guarantee of 3 servers.\nfn style() {}"), "");
}
