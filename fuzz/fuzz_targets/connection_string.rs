//! Runs bodies/connection_string.rs, as a test does with the corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../bodies/connection_string.rs"]
mod body;

fuzz_target!(|data: &[u8]| body::run(data));
