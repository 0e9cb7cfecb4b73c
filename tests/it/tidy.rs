//! Checks the rules of the source that ARCHITECTURE.md states.
//!
//! 1. The pure core imports no runtime, driver, environment or clock.
//! 2. Each dependency is used by one module only.
//! 3. `http` never touches a worker's state.
//! 4. Only `apply` writes the progress row.
//! 5. Every module opens with `//!`.
//! 6. The length of functions and files is bounded.
//! 7. There is no `#[allow]` in `src/`.
//! 8. No tracked file names the machine or the registry that it was made with.
//! 9. Dependencies point down.
//! 10. Comments name no document outside of the repository, and say who or what does something.
//! 11. The table of waits in ARCHITECTURE.md names every constant that bounds one.
//!
//! The tables are in `rules`. A rule reads `use` lines and paths, not types, so it does not see what a
//! glob import or a macro hides. Test code is exempt from rules 1 to 4, 6 and 9.

mod lexer;
mod rules;
mod source;
mod tests;
mod waits;

use std::path::{Path, PathBuf};
use std::process::Command;

use rules::{Violation, check_comments, check_sources, check_text};
use source::SourceFile;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn sources_keep_the_rules() {
    let files: Vec<_> = tracked_files()
        .into_iter()
        .filter(|path| path.starts_with("src/") && Path::new(path).extension() == Some("rs".as_ref()))
        .map(|path| SourceFile::new(&path, &std::fs::read_to_string(root().join(&path)).unwrap()))
        .collect();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "no sources found");
    assert_none(&check_sources(&files));
}

#[test]
fn tracked_files_tell_nothing_of_the_machine() {
    let mut violations = Vec::new();
    for path in tracked_files() {
        // Files that are not text are skipped.
        if let Ok(text) = std::fs::read_to_string(root().join(&path)) {
            violations.extend(check_text(&path, &text));
        }
    }
    assert_none(&violations);
}

#[test]
fn comments_need_nothing_outside_of_the_repository() {
    let mut violations = Vec::new();
    let is_source = |path: &str| ["src/", "tests/", "benches/"].iter().any(|top| path.starts_with(top));
    for path in tracked_files() {
        if is_source(&path) && Path::new(&path).extension() == Some("rs".as_ref()) {
            violations.extend(check_comments(&path, &std::fs::read_to_string(root().join(&path)).unwrap()));
        }
    }
    assert_none(&violations);
}

fn assert_none(violations: &[Violation]) {
    let lines: Vec<_> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

/// Returns the files that git tracks or would add; without git (an unpacked archive), every file.
fn tracked_files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut files: Vec<_> = match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .filter(|path| root().join(path).is_file())
            .map(str::to_owned)
            .collect(),
        _ => files_below(root()),
    };
    files.sort();
    files.dedup();
    files
}

fn files_below(top: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut pending: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let is_built = path.ends_with("target") || path.ends_with(".git");
            if path.is_dir() && !path.is_symlink() {
                pending.extend((!is_built).then_some(path));
            } else if path.is_file() {
                files.push(path.strip_prefix(top).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    files
}
