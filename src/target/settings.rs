//! Settings of the target session. Time-outs are set in every session by `pg::TimeLimits`.

/// Settings of sessions that write replicated rows. With these keepalives, the target notices within half a
/// minute that a writer's host is gone, and releases its lock.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    // Input functions depend on these settings. With other values they would change or refuse values of the
    // publisher.
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    // Rows are found by their key's index, also if a statement was prepared while the table was small.
    // Statements are neither planned nor compiled again for each batch.
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    // With this memory, the rows of a batch's arrays are sorted without temporary files.
    ("work_mem", "16MB"),
    ("plan_cache_mode", "force_generic_plan"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];
