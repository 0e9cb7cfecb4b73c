//! What the comparison of tables needs to know about the session that applies.

/// What a comparison needs to know about the session that applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    pub replication_role: ReplicationRole,
    /// The applying role, named in the GRANT that a misfit suggests.
    pub role: String,
    pub run_as: RunAs,
}

/// As which role rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// As the owner of their table, where the applying role may become that. So the code that a table brings along
    /// (triggers, constraints, defaults) has its owner's privileges, as with PostgreSQL's own subscriber from 16 on.
    Owner,
    /// As the applying role.
    Role,
}

/// Whether the applying session runs with `session_replication_role = replica`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationRole {
    /// Ordinary triggers, rules and foreign keys do not act on replicated rows.
    Replica,
    /// Ordinary triggers, rules and foreign keys act on replicated rows.
    Origin,
}
