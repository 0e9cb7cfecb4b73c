//! pgsluice: a standalone logical replication subscriber for PostgreSQL.
//!
//! ```text
//! publisher ──pgoutput──▶ replication ──bytes──▶ pgoutput ──changes──▶ apply ──▶ target
//! ```
//!
//! ARCHITECTURE.md is the map of the modules; the documentation of each module says what it does and
//! what it does not do.

pub mod apply;
pub mod boundary;
pub mod check;
pub mod cli;
pub mod config;
pub mod conflict;
pub mod copy;
pub mod demo;
pub mod error;
pub mod gap;
pub mod http;
#[doc(hidden)]
pub mod mutation;
pub mod net;
pub mod pg;
pub mod pgoutput;
pub mod replication;
mod running;
pub mod runtime;
pub mod schema;
pub mod store;
pub mod subscription;
pub mod target;
pub mod telemetry;
pub mod text;
pub mod words;
