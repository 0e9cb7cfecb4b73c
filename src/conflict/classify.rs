//! Classifies conflicts from facts. What is done about a conflict is decided elsewhere.
//!
//! There are two kinds of facts: what was found in place of the row ([`classify_row`]), and what the
//! target answered ([`classify_error`]). An error that is no conflict (a lost connection, a deadlock, a
//! full disk, an exception of a trigger) is `None`; its disposition decides what happens then.

use crate::error::ServerError;

use super::{ConflictKind, Operation};

/// What the target has in place of the row that a change refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalRow {
    /// No row with that identity exists.
    Missing,
    /// The row was last written by this subscription, or origins are not tracked.
    SameOrigin,
    /// The row was last written locally or by another origin.
    OtherOrigin,
}

/// Names the conflict between `operation` and the rows that the target already has.
///
/// `unique_hits` counts the unique constraints that the new row would violate. Follows
/// `FindReplTupleInLocalRel` and `ReportApplyConflict` in PostgreSQL's `worker.c` and
/// `conflict.c`, except that a missing row is a conflict that counts, not a log line.
#[must_use]
pub fn classify_row(operation: Operation, row: LocalRow, unique_hits: usize) -> Option<ConflictKind> {
    use ConflictKind as K;
    use LocalRow::{Missing, OtherOrigin, SameOrigin};
    use Operation::{Commit, Delete, Insert, Truncate, Update};

    match (operation, row, unique_hits) {
        (Update, Missing, _) => Some(K::UpdateMissing),
        (Insert | Update, _, 2..) => Some(K::MultipleUniqueConflicts),
        (Insert, _, 1) => Some(K::InsertExists),
        (Update, SameOrigin | OtherOrigin, 1) => Some(K::UpdateExists),
        (Update, OtherOrigin, 0) => Some(K::UpdateOriginDiffers),
        (Delete, Missing, _) => Some(K::DeleteMissing),
        (Delete, OtherOrigin, _) => Some(K::DeleteOriginDiffers),
        (Insert, _, 0) | (Update, SameOrigin, 0) | (Delete, SameOrigin, _) | (Truncate | Commit, _, _) => {
            None
        }
    }
}

/// Names the conflict behind the target's error response, if it is one.
///
/// `unique_hits` is the number of unique constraints that the evidence shows to be violated. It is 0
/// where evidence was not gathered; SQLSTATE 23505 alone proves one violation.
#[must_use]
pub fn classify_error(operation: Operation, error: &ServerError, unique_hits: usize) -> Option<ConflictKind> {
    use ConflictKind as K;

    match (error.class(), error.code.as_str()) {
        (_, "23505") => Some(match (operation, unique_hits) {
            (Operation::Insert | Operation::Update, 2..) => K::MultipleUniqueConflicts,
            (Operation::Insert, _) => K::InsertExists,
            (Operation::Update, _) => K::UpdateExists,
            // A trigger or a cascade wrote the row, or the constraint is deferred.
            (Operation::Delete | Operation::Truncate | Operation::Commit, _) => K::ConstraintViolation,
        }),
        // Of class 23: 23502 not null, 23503 foreign key, 23514 check, 23P01 exclusion, 23001 restrict.
        // TRUNCATE raises 0A000 for a table that a foreign key references.
        ("23", _) => Some(K::ConstraintViolation),
        (_, "0A000") if operation == Operation::Truncate => Some(K::ConstraintViolation),
        // Data exceptions (22P02 invalid text, 22003 out of range, 22001 too long, 22021
        // encoding…), 42804 datatype mismatch, 42846 cannot coerce.
        ("22", _) | (_, "42804" | "42846") => Some(K::ValueError),
        (_, "42501") => Some(K::PermissionDenied),
        // Undefined table, schema, column.
        (_, "42P01" | "3F000" | "42703") => Some(K::TableMissing),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::{Delete, Insert, Truncate, Update};

    #[test]
    fn rows_found_give_postgresqls_names() {
        let check = |operation, row, hits, expected: Option<&str>| {
            let kind = classify_row(operation, row, hits).map(ConflictKind::as_str);
            assert_eq!(kind, expected, "{operation} {row:?} {hits}");
        };
        check(Insert, LocalRow::Missing, 0, None);
        check(Insert, LocalRow::SameOrigin, 1, Some("insert_exists"));
        check(Insert, LocalRow::SameOrigin, 2, Some("multiple_unique_conflicts"));
        check(Update, LocalRow::Missing, 0, Some("update_missing"));
        check(Update, LocalRow::Missing, 2, Some("update_missing"));
        check(Update, LocalRow::SameOrigin, 0, None);
        check(Update, LocalRow::SameOrigin, 1, Some("update_exists"));
        check(Update, LocalRow::OtherOrigin, 0, Some("update_origin_differs"));
        check(Update, LocalRow::OtherOrigin, 3, Some("multiple_unique_conflicts"));
        check(Delete, LocalRow::Missing, 0, Some("delete_missing"));
        check(Delete, LocalRow::SameOrigin, 0, None);
        check(Delete, LocalRow::OtherOrigin, 0, Some("delete_origin_differs"));
        check(Truncate, LocalRow::Missing, 0, None);
    }

    #[test]
    fn sqlstates_give_names_or_nothing() {
        let check = |operation, code: &str, hits, expected: Option<&str>| {
            let error = ServerError { code: code.to_owned(), ..ServerError::default() };
            let kind = classify_error(operation, &error, hits).map(ConflictKind::as_str);
            assert_eq!(kind, expected, "{operation} {code} {hits}");
        };
        check(Insert, "23505", 0, Some("insert_exists"));
        check(Insert, "23505", 2, Some("multiple_unique_conflicts"));
        check(Update, "23505", 1, Some("update_exists"));
        check(Delete, "23505", 0, Some("constraint_violation"));
        for code in ["23502", "23503", "23514", "23P01"] {
            check(Insert, code, 0, Some("constraint_violation"));
        }
        for code in ["22P02", "22003", "22001", "22021", "42804"] {
            check(Update, code, 0, Some("value_error"));
        }
        check(Delete, "42501", 0, Some("permission_denied"));
        for code in ["42P01", "3F000", "42703"] {
            check(Truncate, code, 0, Some("table_missing"));
        }
        check(Truncate, "0A000", 0, Some("constraint_violation"));
        for code in ["", "0A000", "40001", "40P01", "53100", "57P01", "08006", "P0001", "25006"] {
            check(Insert, code, 0, None);
        }
    }
}
