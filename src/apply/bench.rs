//! Used by `benches/plan.rs`, which measures how row messages become array parameters. Nothing is sent.
//!
//! This is no public interface: it calls private modules in the way the core and `batches` do.

use std::sync::Arc;

use tokio_postgres::types::Type;

use crate::apply::change::{Param, RowChange};
use crate::apply::core::{Gathered, Moment};
use crate::apply::incoming::event::Event;
use crate::apply::sets::array::set_arrays;
use crate::apply::sets::compact::{SetKind, SetStep, compact};
use crate::apply::sets::sql;
use crate::apply::table::TableContext;
use crate::pg::QualifiedName;
use crate::pgoutput::{Message, TextColumns};
use crate::schema::{
    ArrayInput, BinaryForm, ColumnPlan, FiringTriggers, KeyScope, Operations, PublishedRelation,
    ReplicaIdentity, RowIdentity, TableKind, TablePlan, TypeName,
};

/// One table, and the array types of its columns.
#[derive(Debug)]
pub struct Planner {
    table: Arc<TableContext>,
    arrays: Vec<Type>,
    gathered: Gathered,
}

impl Planner {
    /// `columns` are names with their array types; the first one is the key.
    pub fn new(columns: &[(&str, Type)]) -> Self {
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let table = context(1, plan("orders", &names));
        Self {
            table: Arc::new(table),
            arrays: columns.iter().map(|(_, ty)| ty.clone()).collect(),
            gathered: Gathered::default(),
        }
    }

    /// Plans the messages as one batch. Returns the parameters; none if no sets can be built from them.
    pub fn plan(&mut self, messages: impl IntoIterator<Item = Message>) -> Option<Vec<Param>> {
        let changes = messages.into_iter().filter_map(|message| match message {
            Message::Insert(m) => Some(RowChange::Insert { new: m.new }),
            Message::Update(m) => Some(RowChange::Update { old: m.old, new: m.new }),
            Message::Delete(m) => Some(RowChange::Delete { old: m.old.into() }),
            _ => None,
        });
        for (index, change) in (1..).zip(changes) {
            let event = Event::Change { table: Arc::clone(&self.table), change, index };
            self.gathered.push(event, Moment::ZERO);
        }
        let events = self.gathered.take_all();
        let mut params = Vec::new();
        for step in compact(&events).ok()? {
            if let SetStep::Set { kind, rows, .. } = step {
                let types = self.types(&kind);
                params.extend(set_arrays(&self.table.plan, &kind, &rows, &types).ok()?);
            }
        }
        Some(params)
    }

    /// The types of the set's parameters, as the server reports them for the prepared statement.
    fn types(&self, kind: &SetKind) -> Vec<Type> {
        let (values, identity) = sql::parameters(&self.table.plan, kind);
        values.into_iter().chain(identity).filter_map(|column| self.arrays.get(column).cloned()).collect()
    }
}

/// A table of text columns with these names; the first one is the key. Tests use it, too.
pub(crate) fn plan(table: &str, columns: &[&str]) -> TablePlan {
    let name = QualifiedName::new("public", table);
    TablePlan {
        source: name.clone(),
        target: name,
        target_oid: 1,
        target_stamp: 0,
        target_family_oid: 1,
        target_root: None,
        run_as: None,
        kind: TableKind::Table,
        columns: columns.iter().enumerate().map(|(at, name)| column(name, at == 0)).collect(),
        target_columns: columns.iter().map(|&name| name.to_owned()).collect(),
        row_identity: RowIdentity::Key { columns: vec![0], scope: KeyScope::Table },
        fires: FiringTriggers::default(),
        has_foreign_keys: false,
        has_ordinary_triggers: false,
        order_free: true,
        judges_rows: false,
        other_indexes: false,
        has_unique_index: true,
        identity_always: false,
        unique_keys: Vec::new(),
    }
}

/// A table whose changes can be applied as sets.
pub(crate) fn context(id: u64, plan: TablePlan) -> TableContext {
    let name = plan.source.clone();
    let described = PublishedRelation { name, identity: ReplicaIdentity::Default, columns: Vec::new() };
    TableContext {
        id,
        published: Arc::new(described.clone()),
        text_columns: TextColumns::default(),
        plan,
        described,
        rules: Arc::default(),
        projection: None,
        hindered: Operations::NONE,
        misfits: Vec::new(),
        exact_because: None,
    }
}

/// A text column; `key` is true if it belongs to the key.
pub(crate) fn column(name: &str, key: bool) -> ColumnPlan {
    let builtin = |name: &str| TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() };
    let ty = builtin("text");
    ColumnPlan {
        source: name.to_owned(),
        target: name.to_owned(),
        ty: ty.clone(),
        type_oid: 25,
        base_type: ty,
        array_input: ArrayInput::OfType,
        binary: BinaryForm::Text,
        equality: Some(builtin("=")),
        equal_may_differ: false,
        not_null: key,
        refuses_values: false,
        guard: None,
        key,
        identity_always: false,
    }
}
