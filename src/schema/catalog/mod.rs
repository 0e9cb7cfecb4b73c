//! Reads both sides' catalogs: what is published, what the target has, and what the roles may do.
//!
//! It only runs queries; the pure modules of `schema` draw the conclusions.
//!
//! # Invariants
//! - Nothing here needs a superuser, changes anything, or takes a lock beyond those of reading
//!   catalogs. The number of queries does not depend on the number of tables.
//! - Sessions have an empty `search_path`. Tables, functions and types are qualified in any case; the
//!   empty path makes `pg_get_expr` and `format_type` qualify *their* output, so that a row filter
//!   means the same in any session.
//! - Catalog text must be UTF-8 or converted to it by the server, as tokio-postgres requires.

mod column_facts;
mod definitions;
mod error;
mod fingerprint;
mod inner_types;
mod known_tables;
mod listing;
mod members;
mod publisher;
mod publisher_settings;
mod sessions;
mod slot;
mod slot_wait;
mod target;
mod target_columns;
mod target_owners;
mod unlogged;
mod unreadable;
mod unselectable;

pub use column_facts::{ColumnsLook, look_at_columns};
pub use definitions::misfit_facts;
pub use error::{CatalogError, MissingPublications, Side};
pub use fingerprint::{PublicationsLook, look_at_publications};
pub use known_tables::{KnownTables, Look, look_at};
pub use listing::user_tables;
pub use members::{ExistingTable, existing_tables, places_of, target_oids, target_places};
pub use publisher::{Published, SeenPublication, published, publisher_query};
pub use publisher_settings::{
    PublisherFacts, PublisherSettings, has_synchronous_standbys, publisher_facts, publisher_settings,
};
pub use sessions::{LimitedBy, SessionLimit, session_limit};
pub use slot::{SlotRow, last_checkpoint, slot_row, slot_user};
pub use slot_wait::slot_waits_for;
pub use target::{TargetFacts, table_stamp_sql, target_facts, target_tables};
pub use target_columns::target_column_types;
pub use unlogged::{unlogged, unlogged_tables};
pub use unreadable::{refused_copy, unreadable};
pub use unselectable::{UnselectableReason, UnselectableTable, unselectable_tables};

/// Reads a column of PostgreSQL's type `"char"`, such as `typtype` or `relkind`: one ASCII character.
fn catalog_char(row: &tokio_postgres::Row, column: &str) -> char {
    char::from(row.get::<_, i8>(column).cast_unsigned())
}

/// Reads a count or a setting; it saturates at 32 bits.
fn unsigned(row: &tokio_postgres::Row, column: &str) -> u32 {
    u32::try_from(row.get::<_, i64>(column).max(0)).unwrap_or(u32::MAX)
}
