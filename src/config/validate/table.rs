//! Validates `[[subscriptions.tables]]`: rules for single tables.
//!
//! Two tables of one subscription may not share a target table, because a TRUNCATE or a new copy of one
//! would remove the other's rows. Tables of different subscriptions may, because several publishers can
//! feed one table.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Validator, Word, not_supported_yet};
use crate::config::TableRule;
use crate::config::path::KeyPath;
use crate::config::raw::{RawColumn, RawOnDelete, RawTable};
use crate::error::Diagnosis;
use crate::pg::QualifiedName;
use crate::schema::{ColumnRule, Goes, Operations, TableRules};

/// Schema of pgsluice's own tables in the target.
const STATE_SCHEMA: &str = "pgsluice";

impl Validator<'_> {
    pub(super) fn tables(&mut self, raw: Vec<RawTable>, list: &KeyPath) -> Option<Vec<TableRule>> {
        let count = raw.len();
        let rules: Vec<_> = raw
            .into_iter()
            .enumerate()
            .filter_map(|(i, raw)| Some((i, self.table(&raw, &list.index(i))?)))
            .collect();
        let mut sources = BTreeMap::new();
        let mut targets = BTreeMap::new();
        for (i, rule) in &rules {
            if let Some(earlier) = sources.get(&rule.source) {
                let primary = format!("{} is the source of {} already", rule.source, list.index(*earlier));
                let problem = Diagnosis::new(primary).hint("put everything about a table into one rule");
                self.problem(&list.index(*i).key("source"), problem);
            } else if let Some(earlier) = targets.get(&rule.target) {
                let primary = format!("{} is the target of {} already", rule.target, list.index(*earlier));
                let problem = Diagnosis::new(primary)
                    .detail("a TRUNCATE or a new copy of one table would remove the other's rows")
                    .hint("give each table of a subscription its own target");
                self.problem(&list.index(*i).key("target"), problem);
            } else {
                sources.insert(rule.source.clone(), *i);
                targets.insert(rule.target.clone(), *i);
            }
        }
        (rules.len() == count).then(|| rules.into_iter().map(|(_, rule)| rule).collect())
    }

    fn table(&mut self, raw: &RawTable, path: &KeyPath) -> Option<TableRule> {
        let source_path = path.key("source");
        let target_path = path.key("target");
        let hint = "name the publisher's table: source = \"schema.table\"";
        let source = self.required(raw.source.as_deref(), &source_path, hint);
        let source = source.and_then(|name| self.table_name(name, &source_path));
        let target = match &raw.target {
            Some(name) => self.table_name(name, &target_path),
            None => source.clone().filter(|_| !self.report.is_discarded(&target_path)),
        };
        if target.as_ref().is_some_and(|target| target.schema == STATE_SCHEMA) {
            let problem = Diagnosis::new("schema pgsluice of the target holds pgsluice's own state")
                .hint("choose a table in another schema");
            self.problem(&target_path, problem);
        }
        let rules = self.rules(raw, path);
        let policies = self.policies(&raw.conflicts, &path.key("conflicts"));
        policies.and(Some(TableRule { source: source?, target: target?, rules: Arc::new(rules?) }))
    }

    fn rules(&mut self, raw: &RawTable, path: &KeyPath) -> Option<TableRules> {
        let columns = self.columns(&raw.columns, &path.key("columns"));
        self.set(&raw.set, &raw.columns, &path.key("set"));
        let operations = match &raw.operations {
            Some(names) => self.operations(names, &path.key("operations")),
            None => Some(Operations::ALL),
        };
        let on_delete = raw.on_delete.as_ref();
        let deletes = on_delete.map_or(Some(true), |word| self.on_delete(word, &path.key("on_delete")));
        let truncates = self.word(
            raw.on_truncate.as_deref().unwrap_or("apply"),
            &path.key("on_truncate"),
            &[
                ("apply", Word::Means(OnTruncate::Apply)),
                ("ignore", Word::Means(OnTruncate::Ignore)),
                ("pause", Word::Means(OnTruncate::Pause)),
            ],
        );
        let (truncates, mut applied) = (truncates?, operations?);
        if !deletes? {
            applied = applied.without(Operations::DELETE);
        }
        if truncates == OnTruncate::Ignore {
            applied = applied.without(Operations::TRUNCATE);
        }
        Some(TableRules {
            columns: columns?,
            left_out: Operations::ALL.without(applied),
            truncate_pauses: truncates == OnTruncate::Pause,
        })
    }

    fn operations(&mut self, names: &[String], path: &KeyPath) -> Option<Operations> {
        let words = [
            ("insert", Word::Means(Operations::INSERT)),
            ("update", Word::Means(Operations::UPDATE)),
            ("delete", Word::Means(Operations::DELETE)),
            ("truncate", Word::Means(Operations::TRUNCATE)),
        ];
        let named: Vec<Option<Operations>> =
            names.iter().enumerate().map(|(i, name)| self.word(name, &path.index(i), &words)).collect();
        if names.is_empty() && !self.report.is_discarded(path) {
            let problem = Diagnosis::new("nothing would be applied to the table")
                .hint("name operations, or take the table out of the publication");
            self.problem(path, problem);
            return None;
        }
        named.into_iter().collect()
    }

    fn table_name(&mut self, name: &str, path: &KeyPath) -> Option<QualifiedName> {
        let parsed = name.parse();
        parsed.map_err(|error| self.problem(path, Diagnosis::new(format!("{error}")))).ok()
    }

    fn columns(
        &mut self,
        columns: &BTreeMap<String, RawColumn>,
        path: &KeyPath,
    ) -> Option<BTreeMap<String, ColumnRule>> {
        let (mut first, mut rules, mut is_unique) = (BTreeMap::new(), BTreeMap::new(), true);
        for (name, column) in columns {
            let path = path.key(name);
            self.catalog_name(name, &path);
            if let Some(goes) = self.goes(column, &path) {
                rules.insert(name.clone(), ColumnRule { goes, coerced: column.coerce.unwrap_or(false) });
            }
            let Some(to) = &column.to else { continue };
            if let Some(earlier) = first.insert(to, name) {
                let primary = format!("column \"{earlier}\" goes to \"{to}\" already");
                self.problem(&path.key("to"), Diagnosis::new(primary));
                is_unique = false;
            }
        }
        (is_unique && rules.len() == columns.len()).then_some(rules)
    }

    /// Returns where a column's values go.
    fn goes(&mut self, column: &RawColumn, path: &KeyPath) -> Option<Goes> {
        let RawColumn { to, ignore, ignore_if_null, coerce } = column;
        let (ignore, ignore_if_null) = (ignore.unwrap_or(false), ignore_if_null.unwrap_or(false));
        let problem = match (to, ignore, ignore_if_null) {
            (Some(to), false, false) => {
                return self.catalog_name(to, &path.key("to")).then(|| Goes::To(to.clone()));
            }
            (None, true, false) if coerce.is_none() => return Some(Goes::Ignored),
            (None, false, true) if coerce.is_none() => return Some(Goes::IgnoredIfNull),
            (None, false, false) if coerce.is_some() => return Some(Goes::ToItsName),
            (None, false, false) if self.report.is_discarded(path) => return None,
            (None, false, false) => Diagnosis::new("the column's rule says nothing")
                .hint("set to = \"…\", ignore = true, ignore_if_null = true or coerce = true"),
            (_, true, _) => Diagnosis::new("an ignored column can have nothing else")
                .hint("remove ignore, or the other keys"),
            (_, _, true) => Diagnosis::new("a column that is ignored if it is NULL can have nothing else")
                .hint("remove ignore_if_null, or the other keys"),
        };
        self.problem(path, problem);
        None
    }

    fn set(&mut self, set: &BTreeMap<String, String>, columns: &BTreeMap<String, RawColumn>, path: &KeyPath) {
        for (name, expression) in set {
            let path = path.key(name);
            self.catalog_name(name, &path);
            if expression.trim().is_empty() {
                let problem = Diagnosis::new("an empty string is not an SQL expression")
                    .hint("write NULL for null, and '…' in single quotes for text");
                self.problem(&path, problem);
            }
            if columns.values().any(|column| column.to.as_ref() == Some(name)) {
                let problem = Diagnosis::new("the column already gets its value from the publisher")
                    .detail("a rule in columns names it in \"to\"");
                self.problem(&path, problem);
            }
        }
        if !set.is_empty() {
            self.problem(path, not_supported_yet("setting columns").hint("leave set out"));
        }
    }

    /// Returns whether deletes are applied.
    fn on_delete(&mut self, on_delete: &RawOnDelete, path: &KeyPath) -> Option<bool> {
        match on_delete {
            RawOnDelete::Word(word) if word == "apply" => Some(true),
            RawOnDelete::Word(word) if word == "ignore" => Some(false),
            RawOnDelete::Word(word) => {
                let primary = format!("\"{}\" is not one of this key's values", word.escape_debug());
                let hint = "use \"apply\", \"ignore\" or { mark = \"column\" }";
                self.problem(path, Diagnosis::new(primary).hint(hint));
                None
            }
            RawOnDelete::Mark { mark } => {
                let mark_path = path.key("mark");
                let hint = "name the target's column that takes the time of the deletion";
                if let Some(mark) = self.required(mark.as_deref(), &mark_path, hint) {
                    self.catalog_name(mark, &mark_path);
                }
                let problem = not_supported_yet("marking deleted rows");
                self.problem(path, problem.hint("leave it out, or use \"apply\" or \"ignore\""));
                None
            }
        }
    }
}

/// What a TRUNCATE of the publisher's table leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnTruncate {
    Apply,
    Ignore,
    Pause,
}
