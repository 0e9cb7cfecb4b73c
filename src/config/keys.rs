//! Every key of the configuration and the shape of its value. Reading, environment overrides,
//! suggestions and the test of the documentation all use this list.

/// The syntactic shape of a value, which is checked before the value is validated.
#[derive(Debug)]
pub(super) enum Shape {
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number,
    TextList,
    Table(&'static [Key]),
    /// A list of tables. An element with a `name` can be addressed by it in the environment.
    Tables(&'static [Key]),
    /// A table whose keys are names that the operator chooses.
    Map(&'static Shape),
    TextOrTable(&'static [Key]),
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape }
}

pub(super) static ROOT: Shape = Shape::Table(&[
    key("service", Shape::Table(SERVICE)),
    key("target", Shape::Table(&[key("url", Shape::Text), key("max_connections", Shape::Number)])),
    key("subscriptions", Shape::Tables(SUBSCRIPTION)),
]);

const SERVICE: &[Key] = &[
    key("listen", Shape::Text),
    key("api_token_file", Shape::Text),
    key("log_format", Shape::Text),
    key("password_requires_tls", Shape::Flag),
    key("share_after", Shape::Text),
];

const SUBSCRIPTION: &[Key] = &[
    key("name", Shape::Text),
    key("publisher", Shape::Text),
    key("publications", Shape::TextList),
    key("slot", Shape::Text),
    key("create_slot", Shape::Flag),
    key("copy_data", Shape::Flag),
    key("enabled", Shape::Flag),
    key("auto_refresh", Shape::Flag),
    key("retry_conflict_interval", Shape::Text),
    key("binary", Shape::Text),
    key("streaming", Shape::Text),
    key("two_phase", Shape::Flag),
    key("origin", Shape::Text),
    key("synchronous_commit", Shape::Text),
    key("stall_timeout", Shape::Text),
    key("peer_timeout", Shape::Text),
    key("max_value_bytes", Shape::Number),
    key("conflict_defaults", Shape::Table(CONFLICT_TYPES)),
    key("tables", Shape::Tables(TABLE)),
];

const TABLE: &[Key] = &[
    key("source", Shape::Text),
    key("target", Shape::Text),
    key("columns", Shape::Map(&Shape::Table(COLUMN))),
    key("set", Shape::Map(&Shape::Text)),
    key("on_delete", Shape::TextOrTable(&[key("mark", Shape::Text)])),
    key("conflicts", Shape::Table(CONFLICT_TYPES)),
];

const COLUMN: &[Key] = &[
    key("to", Shape::Text),
    key("ignore", Shape::Flag),
    key("ignore_if_null", Shape::Flag),
    key("coerce", Shape::Flag),
];

/// Conflict types, each with a policy.
pub(super) const CONFLICT_TYPES: &[Key] = &[
    key("insert_exists", Shape::Text),
    key("update_exists", Shape::Text),
    key("update_missing", Shape::Text),
    key("delete_missing", Shape::Text),
    key("update_origin_differs", Shape::Text),
    key("delete_origin_differs", Shape::Text),
    key("multiple_unique_conflicts", Shape::Text),
    key("constraint_violation", Shape::Text),
    key("value_error", Shape::Text),
    key("permission_denied", Shape::Text),
    key("table_missing", Shape::Text),
];

impl Shape {
    /// The shape's description for "expected …".
    pub(super) const fn expected(&self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Flag => "true or false",
            Self::Number => "a whole number",
            Self::TextList => "a list of strings",
            Self::Table(_) | Self::Map(_) => "a table",
            Self::Tables(_) => "a list of tables",
            Self::TextOrTable(_) => "a string or a table",
        }
    }
}
