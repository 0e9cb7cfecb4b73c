//! `docker/Dockerfile` and `.dockerignore` fit the repository.

use super::{assert_parses, read, repository};

/// One instruction: its name and its arguments, with continuation lines joined.
#[derive(Debug)]
struct Instruction {
    name: String,
    rest: String,
}

/// Returns the stages, each from its `FROM` on, without what stands before the first.
fn stages() -> Vec<Vec<Instruction>> {
    let mut stages: Vec<Vec<Instruction>> = Vec::new();
    let text = read("docker/Dockerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for line in lines.join("\n").replace("\\\n", " ").lines().filter(|line| !line.trim().is_empty()) {
        let (name, rest) = line.trim().split_once(' ').unwrap();
        if name == "FROM" {
            stages.push(Vec::new());
        }
        let instruction = Instruction { name: name.to_owned(), rest: rest.trim().to_owned() };
        match stages.last_mut() {
            Some(stage) => stage.push(instruction),
            None => assert_eq!(name, "ARG", "{instruction:?} before the first FROM"),
        }
    }
    stages
}

/// Returns the arguments of the only instruction `name` of a stage.
fn only<'a>(stage: &'a [Instruction], name: &str) -> &'a str {
    let found: Vec<_> = stage.iter().filter(|instruction| instruction.name == name).collect();
    let [one] = found.as_slice() else { panic!("{name}: {found:?}") };
    &one.rest
}

/// Parses a JSON list of words, as `CMD` and `ENTRYPOINT` have it.
fn words(list: &str) -> Vec<String> {
    serde_json::from_str(list).unwrap_or_else(|error| panic!("{list} is no exec form: {error}"))
}

/// Returns the path at which the image looks for its configuration.
pub(super) fn config_path() -> String {
    let stages = stages();
    only(stages.last().unwrap(), "ENV").strip_prefix("PGSLUICE_CONFIG=").unwrap().to_owned()
}

/// Whether `.dockerignore` lets a path into the build context; the last pattern that matches counts.
fn in_context(path: &str) -> bool {
    let mut admitted = true;
    for line in read(".dockerignore").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (admits, pattern) = line.strip_prefix('!').map_or((false, line), |pattern| (true, pattern));
        assert!(pattern == "*" || !pattern.contains(['*', '?', '[']), "{pattern}: not understood here");
        if pattern == "*" || path == pattern || path.starts_with(&format!("{pattern}/")) {
            admitted = admits;
        }
    }
    admitted
}

/// Returns the paths that the build stage copies from the context.
fn copied(build: &[Instruction]) -> Vec<String> {
    let copies = build.iter().filter(|instruction| instruction.name == "COPY");
    copies
        .flat_map(|copy| {
            let words: Vec<&str> = copy.rest.split_whitespace().collect();
            words[..words.len() - 1].iter().map(|&word| word.to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn what_the_build_copies_is_there_and_in_its_context() {
    let stages = stages();
    let copied = copied(&stages[0]);
    for path in &copied {
        assert!(repository(path).exists(), "COPY {path}: there is no such file");
        assert!(in_context(path), "COPY {path}: .dockerignore keeps it out");
    }
    // The sources of the library and the program.
    for needed in ["Cargo.toml", "Cargo.lock", "src", "migrations"] {
        assert!(copied.iter().any(|path| path == needed), "{needed} is not copied");
    }
    for kept_out in ["target", ".git", "tests", "docs", "docker/secrets/postgres_password"] {
        assert!(!in_context(kept_out), "{kept_out} is in the build context");
    }
}

/// Returns every `key = "value"` of Cargo.toml in any table.
fn manifest_values(key: &str) -> Vec<String> {
    let start = format!("{key} = \"");
    let text = read("Cargo.toml");
    let values = text.lines().filter_map(|line| line.strip_prefix(&start)?.strip_suffix('"'));
    values.map(str::to_owned).collect()
}

/// Cargo refuses a manifest whose targets have no files, so the layer of the dependencies creates a
/// file for each target that Cargo.toml names by its path.
#[test]
fn the_dependencies_layer_has_a_file_for_every_target() {
    let stages = stages();
    let run = stages[0].iter().find(|instruction| instruction.name == "RUN").unwrap();
    let targets = manifest_values("path");
    assert!(targets.len() >= 4, "{targets:?}");
    // A bench without a path is found by its name.
    assert!(read("Cargo.toml").contains("name = \"decode\"\nharness"));
    let targets = targets.into_iter().chain(["benches/decode.rs".to_owned()]);
    for target in targets {
        assert!(run.rest.contains(&target), "{target} is missing in: {}", run.rest);
        let (directory, _) = target.rsplit_once('/').unwrap();
        assert!(directory == "benches" || run.rest.contains(directory), "{directory}: {}", run.rest);
    }
}

#[test]
fn the_builders_rust_is_new_enough() {
    let text = read("docker/Dockerfile");
    let rust = text.lines().find_map(|line| line.strip_prefix("ARG RUST=")).unwrap();
    let needed = &manifest_values("rust-version")[0];
    let number = |version: &str| {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap());
        (parts.next().unwrap(), parts.next().unwrap())
    };
    assert!(number(rust) >= number(needed), "the image builds with {rust}, Cargo.toml asks for {needed}");
    // The build stage names Debian's release, the base image its number.
    assert!(text.contains("ARG DEBIAN=bookworm\n") && text.contains("-debian12:nonroot\n"), "{text}");
}

#[test]
fn the_image_runs_as_nobody_in_particular_and_asks_itself() {
    let stages = stages();
    assert_eq!(stages.len(), 2);
    let image = stages.last().unwrap();
    let user = only(image, "USER");
    let ids: Vec<u32> = user.split(':').map(|id| id.parse().unwrap()).collect();
    assert!(ids.len() == 2 && !ids.contains(&0), "{user}");
    assert_eq!(only(image, "STOPSIGNAL"), "SIGTERM");
    assert!(only(image, "LABEL").contains("org.opencontainers.image.licenses=\"Apache-2.0 OR MIT\""));
    assert_eq!(only(image, "COPY"), "--from=build /src/out /");
    assert_eq!(only(&stages[0], "WORKDIR"), "/src");

    let entry = words(only(image, "ENTRYPOINT"));
    assert_eq!(entry, ["/usr/local/bin/pgsluice"]);
    let command = words(only(image, "CMD"));
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    assert_parses(&arguments);
    let (_, check) = only(image, "HEALTHCHECK").split_once("CMD ").unwrap();
    let check = words(check);
    let (program, arguments) = check.split_first().unwrap();
    assert_eq!(program, &entry[0]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_parses(&arguments);

    // Compose creates the password file for the image's user.
    assert!(read("docker/prepare-secrets").contains(&format!("chown {user} ")), "{user}");
}
