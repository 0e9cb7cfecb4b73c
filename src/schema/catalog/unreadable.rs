//! The diagnosis of published tables that the initial copy may not read. `check` reports it beforehand,
//! and the copy when it is refused. Pure.

use crate::error::Diagnosis;
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::render::table_sql;

use super::{UnselectableReason, UnselectableTable};

/// Largest number of tables named in a text; the others are only counted.
const NAMED_MAX: usize = 10;

/// Describes the privileges that `role` lacks, with the statements that grant them.
#[must_use]
pub fn unreadable(role: &str, tables: &[UnselectableTable]) -> Diagnosis {
    let mut statements: Vec<String> = Vec::new();
    for table in tables {
        let statement = cure(role, table);
        if !statements.contains(&statement) {
            statements.push(statement);
        }
    }
    let hint = format!("on the publisher: {}", statements.join(" "));
    match tables {
        [table] => Diagnosis::new(format!(
            "role \"{role}\" may not read {}, which the initial copy needs",
            table.name
        ))
        .detail(why(&table.reason))
        .hint(hint),
        tables => {
            let named =
                tables.iter().take(NAMED_MAX).map(|table| format!("{} ({})", table.name, why(&table.reason)));
            let mut detail = named.collect::<Vec<_>>().join("; ");
            if tables.len() > NAMED_MAX {
                detail = format!("{detail}; and {} more", tables.len() - NAMED_MAX);
            }
            Diagnosis::new(format!(
                "role \"{role}\" may not read {} published tables, which the initial copy needs",
                tables.len()
            ))
            .detail(detail)
            .hint(hint)
        }
    }
}

/// Describes the publisher's refusal (SQLSTATE 42501) to copy `table`, as [`unreadable`] does.
#[must_use]
pub fn refused_copy(role: &str, table: &QualifiedName, message: &str) -> Diagnosis {
    // "permission denied for schema …" (`aclcheck_error` in `aclchk.c`); "query would be affected by
    // row-level security policy …" (`get_row_security_policies` in `rowsecurity.c`).
    let reason = if message.contains("for schema") {
        UnselectableReason::Schema
    } else if message.contains("row-level security") {
        UnselectableReason::RowSecurity
    } else {
        UnselectableReason::Columns(Vec::new())
    };
    let table = UnselectableTable { name: table.clone(), reason };
    unreadable(role, std::slice::from_ref(&table)).detail(format!("the publisher says: {message}"))
}

fn why(reason: &UnselectableReason) -> String {
    match reason {
        UnselectableReason::Schema => "no USAGE on its schema".to_owned(),
        UnselectableReason::Columns(columns) if columns.is_empty() => "no SELECT on it".to_owned(),
        UnselectableReason::Columns(columns) => format!("no SELECT on {}", columns.join(", ")),
        UnselectableReason::RowSecurity => "row-level security would hide rows from the copy".to_owned(),
    }
}

fn cure(role: &str, table: &UnselectableTable) -> String {
    let (role, name) = (quote_ident(role), table_sql(&table.name));
    match &table.reason {
        UnselectableReason::Schema => {
            format!("GRANT USAGE ON SCHEMA {} TO {role};", quote_ident(&table.name.schema))
        }
        UnselectableReason::Columns(_) => format!("GRANT SELECT ON TABLE {name} TO {role};"),
        UnselectableReason::RowSecurity => format!("ALTER ROLE {role} BYPASSRLS;"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, reason: UnselectableReason) -> UnselectableTable {
        UnselectableTable { name: name.parse().unwrap(), reason }
    }

    #[test]
    fn each_reason_has_its_statement() {
        let columns = UnselectableReason::Columns(vec!["price".to_owned()]);
        insta::assert_snapshot!(unreadable("sammy", &[table("public.widgets", columns.clone())]), @r#"
        role "sammy" may not read public.widgets, which the initial copy needs
          detail: no SELECT on price
          hint: on the publisher: GRANT SELECT ON TABLE public.widgets TO "sammy";
        "#);
        let many = [
            table("hidden.a", UnselectableReason::Schema),
            table("hidden.b", UnselectableReason::Schema),
            table("public.c", UnselectableReason::RowSecurity),
        ];
        insta::assert_snapshot!(unreadable("sammy", &many), @r#"
        role "sammy" may not read 3 published tables, which the initial copy needs
          detail: hidden.a (no USAGE on its schema); hidden.b (no USAGE on its schema); public.c (row-level security would hide rows from the copy)
          hint: on the publisher: GRANT USAGE ON SCHEMA "hidden" TO "sammy"; ALTER ROLE "sammy" BYPASSRLS;
        "#);
    }

    #[test]
    fn a_refused_copy_says_the_same() {
        let name: QualifiedName = "public.widgets".parse().unwrap();
        let before = unreadable("sammy", &[table("public.widgets", UnselectableReason::Columns(Vec::new()))]);
        let refused = refused_copy("sammy", &name, "permission denied for table widgets");
        assert_eq!((refused.primary, refused.hint), (before.primary, before.hint));
        let schema = refused_copy("sammy", &name, "permission denied for schema public");
        assert!(schema.hint.unwrap().contains("GRANT USAGE ON SCHEMA"));
    }
}
