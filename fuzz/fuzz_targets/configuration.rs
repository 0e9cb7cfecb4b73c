//! Runs bodies/configuration.rs, as a test does with the corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../bodies/configuration.rs"]
mod body;

fuzz_target!(|data: &[u8]| body::run(data));
