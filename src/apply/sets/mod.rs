//! Sets: many row changes of a table as few statements.
//!
//! Pure, except that `array` and `copy_data` use the driver's type descriptions. `compact` decides which sets
//! are written, `row_search` how their rows are found, `sql` and `full_row` write the statements, `array` and
//! `copy_data` the values.

pub(crate) mod array;
pub mod compact;
pub(crate) mod copy_data;
pub(crate) mod fragments;
pub(crate) mod full_row;
pub(crate) mod row_search;
pub mod sql;
pub mod suitability;
