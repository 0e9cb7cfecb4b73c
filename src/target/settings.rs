//! Settings of the target session; its time-outs are every session's (`pg::TimeLimits`).

/// Settings that every replicated write runs under. Keepalives make the target notice within half
/// a minute that a writer's host has died, so that its lock does not outlive it.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    // Input functions ask these; each would change or refuse a value that the publisher had.
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    // Rows are found by their key's index, whatever a statement that was prepared while the table was
    // small would prefer; and nothing is planned, or compiled, for each batch anew.
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("jit", "off"),
    // The arrays' rows of a whole batch are sorted in memory.
    ("work_mem", "16MB"),
    ("plan_cache_mode", "force_generic_plan"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];
