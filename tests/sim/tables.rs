//! The tables of both sides, and their rows in the three forms that they have: values, wire, description.

use bytes::{BufMut as _, Bytes, BytesMut};
use pgsluice::pg::QualifiedName;
use pgsluice::pgoutput::{Message, Relation, RelationColumn, Tuple, Value, decode};
use pgsluice::schema::older_rows::MissingValue;
use pgsluice::schema::{
    ArrayInput, ColumnDefault, FiringTriggers, Indexes, KeyEquality, LengthUnit, PublishedColumn,
    PublishedRelation, ReplicaIdentity, TableKind, TablePrivileges, TargetColumn, TargetTable, TypeName,
    UniqueKey,
};

/// What a table is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A row for each transaction; no key.
    Log,
    /// Key `id`.
    Keyed,
    /// Key `id`, REPLICA IDENTITY FULL.
    KeyedFull,
    /// Key `id`, and `a` is unique.
    Uniques,
    /// Key `id`, with a trigger that fires for replicated rows.
    Fires,
    /// Key `(id, a)`, and no other column.
    AllKey,
    /// No key, REPLICA IDENTITY FULL.
    Keyless,
}

pub(crate) const TABLES: [Kind; 9] = [
    Kind::Log,
    Kind::Keyed,
    Kind::Keyless,
    Kind::Uniques,
    Kind::AllKey,
    Kind::Fires,
    Kind::KeyedFull,
    Kind::Keyed,
    Kind::Keyless,
];
/// The last ones join the publication later, if at all.
pub(crate) const LATER: usize = 6;
pub(crate) const LOG: usize = 0;

pub(crate) type Cell = Option<u16>;
/// `id`, `a`, `b` and `c`.
pub(crate) type Row = [Cell; 4];

const NAMES: [&str; 4] = ["id", "a", "b", "c"];
const TEXT_OID: u32 = 25;

impl Kind {
    /// The columns of the key.
    pub(crate) const fn key(self) -> &'static [usize] {
        match self {
            Self::Log | Self::Keyless => &[],
            Self::Keyed | Self::KeyedFull | Self::Uniques | Self::Fires => &[0],
            Self::AllKey => &[0, 1],
        }
    }

    pub(crate) const fn is_full(self) -> bool {
        matches!(self, Self::Keyless | Self::KeyedFull)
    }

    /// Every unique key.
    pub(crate) fn uniques(self) -> Vec<&'static [usize]> {
        match self {
            Self::Log | Self::Keyless => vec![],
            Self::Keyed | Self::KeyedFull | Self::Fires => vec![&[0]],
            Self::Uniques => vec![&[0], &[1]],
            Self::AllKey => vec![&[0, 1]],
        }
    }

    /// How many columns there can be.
    pub(crate) const fn width(self) -> usize {
        match self {
            Self::AllKey => 2,
            _ => 4,
        }
    }
}

/// The name of a table, which has its place within `TABLES`. A renamed one has a number, too.
pub(crate) fn named(table: usize, number: u32) -> QualifiedName {
    let name = if number == 0 { format!("t{table}") } else { format!("t{table}_{number}") };
    QualifiedName::new("public", name)
}

/// The first OID of a table on the publisher, and its OID on the target.
pub(crate) fn oid(table: usize) -> u32 {
    100 + u32::try_from(table).unwrap_or(0)
}

/// The table's place within `TABLES`, whatever it is called.
pub(crate) fn by_name(name: &QualifiedName) -> usize {
    let digits = name.name[1..].split('_').next();
    digits.and_then(|digits| digits.parse().ok()).expect("a table of ours")
}

/// A row of the wire, with these values; unchanged ones are marked.
pub(crate) fn tuple(row: &Row, width: usize, only: Option<&[usize]>, unchanged: &[usize]) -> Tuple {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(b'I');
    out.put_u32(0);
    out.put_u8(b'N');
    out.put_u16(u16::try_from(width).unwrap_or(0));
    for (at, cell) in row.iter().enumerate().take(width) {
        let named = only.is_none_or(|only| only.contains(&at));
        match cell {
            _ if unchanged.contains(&at) => out.put_u8(b'u'),
            Some(value) if named => {
                let text = value.to_string();
                out.put_u8(b't');
                out.put_u32(u32::try_from(text.len()).unwrap_or(0));
                out.put_slice(text.as_bytes());
            }
            _ => out.put_u8(b'n'),
        }
    }
    let payload: Bytes = out.freeze();
    match decode(payload) {
        Ok(Message::Insert(insert)) => insert.new,
        other => panic!("not an insert: {other:?}"),
    }
}

/// The values of a row of the wire, as far as they came.
pub(crate) fn cells(row: &Tuple) -> [Option<Cell>; 4] {
    let mut cells = [Some(None); 4];
    for (cell, value) in cells.iter_mut().zip(row.iter()) {
        *cell = match value {
            Value::Null => Some(None),
            Value::Unchanged => None,
            Value::Text(bytes) | Value::Binary(bytes) => {
                Some(std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()))
            }
        };
    }
    cells
}

/// What the publisher says of a table, whose OID and name are these.
pub(crate) fn relation(table: usize, oid: u32, name: QualifiedName, width: usize) -> Relation {
    let kind = TABLES[table];
    let key = |at: usize| kind.is_full() || kind.key().contains(&at);
    Relation {
        oid,
        schema: name.schema,
        name: name.name,
        replica_identity: if kind.is_full() { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
        columns: (0..width)
            .map(|at| RelationColumn {
                key: key(at),
                name: NAMES[at].to_owned(),
                type_oid: TEXT_OID,
                typmod: -1,
            })
            .collect(),
    }
}

fn builtin(name: &str) -> TypeName {
    TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() }
}

/// What the publisher's catalog says of it.
pub(crate) fn published(table: usize, width: usize) -> PublishedRelation {
    let said = relation(table, oid(table), named(table, 0), width);
    PublishedRelation {
        name: named(table, 0),
        identity: said.replica_identity,
        columns: said
            .columns
            .into_iter()
            .map(|column| PublishedColumn {
                name: column.name,
                target: None,
                ty: builtin("text"),
                typmod: -1,
                key: column.key,
                domain: None,
                inner_types: Vec::new(),
            })
            .collect(),
    }
}

/// What the target's catalog says of it.
pub(crate) fn target(table: usize, name: QualifiedName, stamp: i64) -> TargetTable {
    let kind = TABLES[table];
    let column = |at: usize| TargetColumn {
        name: NAMES[at].to_owned(),
        attnum: i16::try_from(at + 1).unwrap_or(1),
        ty: builtin("text"),
        type_oid: TEXT_OID,
        typmod: -1,
        array_input: ArrayInput::OfType,
        base_type: builtin("text"),
        display_type: "text".to_owned(),
        not_null: kind.key().contains(&at),
        not_null_domain: None,
        default: ColumnDefault::None,
        default_sql: None,
        missing: MissingValue::None,
        is_as_created: false,
        is_virtual: false,
        equality: Some(builtin("=")),
        deterministic: true,
        inner_types: Vec::new(),
    };
    let keys: Vec<UniqueKey> = kind
        .uniques()
        .into_iter()
        .enumerate()
        .map(|(at, columns)| UniqueKey {
            name: format!("t{table}_{at}"),
            primary: at == 0,
            columns: columns.iter().map(|&at| NAMES[at].to_owned()).collect(),
            equality: KeyEquality::Deterministic,
        })
        .collect();
    let unique = u32::try_from(keys.len()).unwrap_or(0);
    TargetTable {
        oid: oid(table),
        stamp,
        name,
        kind: TableKind::Table,
        family_oid: oid(table),
        root: None,
        columns: (0..kind.width()).map(column).collect(),
        unique_keys: keys,
        fires: FiringTriggers { before_row: false, any: kind == Kind::Fires },
        has_foreign_keys: false,
        has_ordinary_triggers: false,
        ordinary_before_row: false,
        row_security: false,
        privileges: TablePrivileges {
            schema_usage: true,
            select: true,
            insert: true,
            update: true,
            delete: true,
            truncate: true,
        },
        owner: None,
        not_enforced: Vec::new(),
        checks: Vec::new(),
        indexes: Indexes { unique, all: unique, computing: false },
        utf8: true,
        length_unit: LengthUnit::Characters,
        partitioning: None,
    }
}
