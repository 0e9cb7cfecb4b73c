//! Sets: many row changes of a table as few statements.
//!
//! Pure, but for [`array`] and [`copy_data`] knowing the driver's type descriptions. `compact` decides
//! what is written, `sql` and `full_row` how, `row_search` how rows are found, `array` and `copy_data`
//! bring values into the form that travels.

pub(in crate::apply) mod array;
pub(in crate::apply) mod compact;
pub(in crate::apply) mod copy_data;
pub(in crate::apply) mod full_row;
pub(in crate::apply) mod row_search;
pub(in crate::apply) mod sql;
