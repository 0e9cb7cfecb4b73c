//! The binary: parses, calls the library, turns an error into an exit code.

fn main() {}
