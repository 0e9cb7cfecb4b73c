//! Sets: many row changes of a table as few statements.
//!
//! Pure, but for `array` and `copy_data` knowing the driver's type descriptions. `compact` decides
//! what is written, `sql` and `full_row` how, `row_search` how rows are found, `array` and `copy_data`
//! bring values into the form that travels.

pub(crate) mod array;
pub mod compact;
pub(crate) mod copy_data;
pub(crate) mod fragments;
pub(crate) mod full_row;
pub(crate) mod row_search;
pub mod sql;
pub mod suitability;
