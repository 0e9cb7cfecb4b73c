//! Conflicts: their names, their classification, and their evidence.
//!
//! ```text
//! facts (rows found, SQLSTATE) ─classify─▶ ConflictKind ─┐
//! evidence (rows, transaction, server's message) ─────────┴▶ ConflictReport ─▶ store, command line, API
//! ```
//!
//! Pure: no socket, clock or driver. `apply` gathers the facts and the evidence, `store` keeps them,
//! `cli` shows them. [`Policy`] says whether a conflict pauses the subscription or is resolved
//! automatically; this module never decides.

mod classify;
mod kind;
mod policy;
mod report;

pub use classify::{LocalRow, classify_error, classify_row};
pub use kind::{ConflictKind, Operation, ParseConflictNameError};
pub use policy::{Policy, Resolution};
pub use report::{ConflictReport, FieldValue, RowImage, START_CHARS, VALUE_BYTES_MAX};
