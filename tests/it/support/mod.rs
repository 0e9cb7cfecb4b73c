//! What the integration tests share: real servers, a configuration, pgsluice as a process.
//!
//! ```text
//! World ─┬─ servers    one or two throw-away clusters       cluster.rs
//!        ├─ publisher, target: Database                     database.rs
//!        ├─ pgsluice.toml, in a directory of its own        world.rs
//!        └─ Service = a real `pgsluice run`                 service.rs
//! ```
//! # Rules
//! - Each test has its own servers. Copying a template data directory and starting takes a few tenths
//!   of a second, and what a test does to a server cannot disturb another test, whether the runner uses
//!   threads or processes.
//! - No test sleeps to let something happen: [`wait::until`] waits for a condition, with a deadline.
//! - Roles have the least privileges that docs/security.md documents, granted with that page's
//!   statements, unless a test asks for others.
//! - Everything that is started ends with the test, even if the runner kills it.

pub(crate) mod awaited;
pub(crate) mod beside;
pub(crate) mod cli;
pub(crate) mod clusters;
pub(crate) mod copies;
pub(crate) mod database;
pub(crate) mod faulty_proxy;
pub(crate) mod http;
pub(crate) mod privileges;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod shown;
pub(crate) mod wait;
pub(crate) mod world;
