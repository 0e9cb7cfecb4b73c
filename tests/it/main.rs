//! One integration binary: a file per capability.

mod store;
