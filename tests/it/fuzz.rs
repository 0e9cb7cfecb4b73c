//! The bodies of fuzz targets (`fuzz/`), run with their corpus and a few changes of it: so they are used, and kept in order,
//! without a nightly compiler.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

#[path = "../../fuzz/bodies/configuration.rs"]
mod configuration;
#[path = "../../fuzz/bodies/connection_string.rs"]
mod connection_string;
#[path = "../../fuzz/bodies/pgoutput_decode.rs"]
mod pgoutput_decode;
#[path = "../../fuzz/bodies/replication_frame.rs"]
mod replication_frame;
#[path = "../../fuzz/bodies/start_up.rs"]
mod start_up;

/// How many changes of each file are tried.
const CHANGES: u64 = 60;

/// Runs a body with every file of its corpus, and with changed ones. What makes it fail is printed.
fn run(target: &str, body: fn(&[u8])) {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    files.sort();
    assert!(files.len() > 5, "the corpus of {target} is small");
    for file in &files {
        for seed in 0..CHANGES {
            let data = if seed == 0 { file.clone() } else { changed(file, seed) };
            let outcome = std::panic::catch_unwind(|| body(&data));
            assert!(outcome.is_ok(), "{target} fails with {}", data.escape_ascii());
        }
    }
}

/// Cuts, repeats, changes or inserts a few bytes.
fn changed(file: &[u8], seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = file.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=data.len());
        match random.random_range(0..4) {
            0 => data.truncate(at),
            1 => data.insert(at, random.random()),
            2 => {
                let again = data[at..].to_vec();
                data.extend(again);
            }
            _ if at < data.len() => data[at] = random.random(),
            _ => {}
        }
    }
    data
}

#[test]
fn start_up_takes_any_bytes() {
    run("start_up", start_up::run);
}

#[test]
fn connection_strings_may_be_any_text() {
    run("connection_string", connection_string::run);
}

#[test]
fn configurations_may_be_any_text() {
    run("configuration", configuration::run);
}

#[test]
fn messages_of_a_stream_may_be_any_bytes() {
    run("pgoutput_decode", pgoutput_decode::run);
}

#[test]
fn frames_may_be_any_bytes() {
    run("replication_frame", replication_frame::run);
}
