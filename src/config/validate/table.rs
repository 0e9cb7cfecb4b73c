//! Validates `[[subscriptions.tables]]`: rules for single tables.
//!
//! Two tables of one subscription may not share a target table, because a TRUNCATE or a new copy of one
//! would remove the other's rows. Tables of different subscriptions may, because several publishers can
//! feed one table.

use std::collections::{BTreeMap, BTreeSet};

use super::{Validator, not_supported_yet};
use crate::config::TableRule;
use crate::config::path::KeyPath;
use crate::config::raw::{RawColumn, RawOnDelete, RawTable};
use crate::error::Diagnosis;
use crate::pg::QualifiedName;

/// Schema of pgsluice's own tables in the target.
const STATE_SCHEMA: &str = "pgsluice";

impl Validator<'_> {
    pub(super) fn tables(&mut self, raw: Vec<RawTable>, list: &KeyPath) -> Option<Vec<TableRule>> {
        let count = raw.len();
        let rules: Vec<_> = raw
            .into_iter()
            .enumerate()
            .filter_map(|(i, raw)| Some((i, self.table(raw, &list.index(i))?)))
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

    fn table(&mut self, raw: RawTable, path: &KeyPath) -> Option<TableRule> {
        let source_path = path.key("source");
        let target_path = path.key("target");
        let hint = "name the publisher's table: source = \"schema.table\"";
        let source = self.required(raw.source, &source_path, hint);
        let source = source.and_then(|name| self.table_name(&name, &source_path));
        let target = match raw.target {
            Some(name) => self.table_name(&name, &target_path),
            None => source.clone().filter(|_| !self.report.is_discarded(&target_path)),
        };
        if target.as_ref().is_some_and(|target| target.schema == STATE_SCHEMA) {
            let problem = Diagnosis::new("schema pgsluice of the target holds pgsluice's own state")
                .hint("choose a table in another schema");
            self.problem(&target_path, problem);
        }
        let coerced = self.columns(&raw.columns, &path.key("columns"));
        self.set(&raw.set, &raw.columns, &path.key("set"));
        if let Some(on_delete) = raw.on_delete {
            self.on_delete(&on_delete, &path.key("on_delete"));
        }
        let policies = self.policies(&raw.conflicts, &path.key("conflicts"));
        policies.and(Some(TableRule { source: source?, target: target?, coerced }))
    }

    fn table_name(&mut self, name: &str, path: &KeyPath) -> Option<QualifiedName> {
        let parsed = name.parse();
        parsed.map_err(|error| self.problem(path, Diagnosis::new(format!("{error}")))).ok()
    }

    /// Returns the columns with `coerce`. Other column rules are checked although they are refused, so that all
    /// problems are known before they are supported.
    fn columns(&mut self, columns: &BTreeMap<String, RawColumn>, path: &KeyPath) -> BTreeSet<String> {
        let (mut first, mut coerced, mut is_mapped) = (BTreeMap::new(), BTreeSet::new(), false);
        for (name, column) in columns {
            let path = path.key(name);
            self.catalog_name(name, &path);
            let RawColumn { to, ignore, ignore_if_null, coerce } = column;
            let (ignore, ignore_if_null) = (ignore.unwrap_or(false), ignore_if_null.unwrap_or(false));
            is_mapped |= ignore || ignore_if_null || to.is_some();
            if coerce.unwrap_or(false) {
                coerced.insert(name.clone());
            }
            if ignore && (to.is_some() || ignore_if_null || coerce.is_some()) {
                let problem = Diagnosis::new("an ignored column can have nothing else")
                    .hint("remove ignore, or the other keys");
                self.problem(&path, problem);
            }
            let says_nothing = to.is_none() && coerce.is_none() && !ignore && !ignore_if_null;
            if says_nothing && !self.report.is_discarded(&path) {
                let problem = Diagnosis::new("the column's rule says nothing")
                    .hint("set to = \"…\", ignore = true, ignore_if_null = true or coerce = true");
                self.problem(&path, problem);
            }
            let Some(to) = to else { continue };
            self.catalog_name(to, &path.key("to"));
            if let Some(earlier) = first.insert(to, name) {
                let primary = format!("column \"{earlier}\" goes to \"{to}\" already");
                self.problem(&path.key("to"), Diagnosis::new(primary));
            }
        }
        if is_mapped {
            let problem =
                not_supported_yet("mapping columns").hint("leave to, ignore and ignore_if_null out");
            self.problem(path, problem);
        }
        coerced
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

    fn on_delete(&mut self, on_delete: &RawOnDelete, path: &KeyPath) {
        let use_instead = "leave it out, or use \"apply\"";
        match on_delete {
            RawOnDelete::Word(word) if word == "apply" => {}
            RawOnDelete::Word(word) if word == "ignore" => {
                self.problem(path, not_supported_yet("\"ignore\"").hint(use_instead));
            }
            RawOnDelete::Word(word) => {
                let primary = format!("\"{}\" is not one of this key's values", word.escape_debug());
                let hint = "use \"apply\", \"ignore\" or { mark = \"column\" }";
                self.problem(path, Diagnosis::new(primary).hint(hint));
            }
            RawOnDelete::Mark { mark } => {
                let mark_path = path.key("mark");
                let hint = "name the target's column that takes the time of the deletion";
                if let Some(mark) = self.required(mark.as_deref(), &mark_path, hint) {
                    self.catalog_name(mark, &mark_path);
                }
                self.problem(path, not_supported_yet("marking deleted rows").hint(use_instead));
            }
        }
    }
}
