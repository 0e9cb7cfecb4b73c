//! The skip of one transaction: armed by an operator, refused where there cannot be such a transaction, and disarmed.
//!
//! `conflict` settles a skip once its transaction has been passed over.

use serde_json::json;
use sqlx::PgConnection;

use crate::boundary;
use crate::pg::Lsn;

use super::error::SkipRefusal;
use super::subscription::unknown;
use super::{EventKind, Ownership, Store, StoreError, StoreErrorKind, event, lost, owner};

impl Store {
    /// Arms a skip of exactly the transaction that finishes at `lsn`, whether or not it has been received. It
    /// is refused if there cannot be such a transaction to skip ([`SkipRefusal`]). It replaces an armed skip.
    pub async fn arm_skip(&self, name: &str, lsn: Lsn) -> Result<(), StoreError> {
        self.run("arm the skip", async {
            let mut tx = self.pool.begin().await?;
            arm_skip(&mut tx, name, lsn).await?;
            Ok(boundary::deed!("skip::arm", tx.commit().await, Err(lost()))?)
        })
        .await
    }

    /// Disarms the skip of `lsn`; one that was armed for another position stays.
    pub async fn clear_skip(&self, owner: &Ownership, lsn: Lsn) -> Result<(), StoreError> {
        self.run("disarm the skip", async {
            let mut tx = self.pool.begin().await?;
            owner::require(&mut tx, owner).await?;
            disarm_skip(&mut tx, owner.name(), lsn).await?;
            Ok(tx.commit().await?)
        })
        .await
    }
}

/// Arms a skip within the open transaction.
pub(super) async fn arm_skip(session: &mut PgConnection, name: &str, lsn: Lsn) -> Result<(), StoreErrorKind> {
    let row: Option<(Option<Lsn>, Option<Lsn>)> = sqlx::query_as(
        "SELECT p.applied_lsn, c.commit_lsn FROM pgsluice.subscription s \
         LEFT JOIN pgsluice.progress p ON p.subscription = s.name \
         LEFT JOIN pgsluice.conflict c ON s.state = 'paused' AND c.id = s.conflict_id \
              AND c.resolved_at IS NULL \
         WHERE s.name = $1 FOR UPDATE OF s",
    )
    .bind(name)
    .fetch_optional(&mut *session)
    .await?;
    let (applied, conflict) = row.ok_or_else(|| unknown(name))?;
    if let Some(refusal) = refuse_skip(lsn, applied, conflict) {
        return Err(StoreErrorKind::SkipRefused(refusal));
    }
    sqlx::query("UPDATE pgsluice.subscription SET skip_lsn = $2 WHERE name = $1")
        .bind(name)
        .bind(lsn)
        .execute(&mut *session)
        .await?;
    let message = format!("the transaction that finishes at {lsn} is to be passed over");
    event::insert(session, Some(name), EventKind::Skip, &message, Some(json!({ "lsn": lsn }))).await
}

/// Disarms the skip of `lsn` within the open transaction.
pub(super) async fn disarm_skip(
    session: &mut PgConnection,
    name: &str,
    lsn: Lsn,
) -> Result<(), StoreErrorKind> {
    sqlx::query("UPDATE pgsluice.subscription SET skip_lsn = NULL WHERE name = $1 AND skip_lsn = $2")
        .bind(name)
        .bind(lsn)
        .execute(session)
        .await?;
    Ok(())
}

fn refuse_skip(lsn: Lsn, applied: Option<Lsn>, conflict: Option<Lsn>) -> Option<SkipRefusal> {
    match (applied, conflict) {
        (Some(applied), _) if lsn <= applied => Some(SkipRefusal::AlreadyApplied { lsn, applied }),
        (_, Some(conflict)) if conflict != lsn => Some(SkipRefusal::OtherConflict { lsn, conflict }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_means_one_transaction_ahead() {
        let lsn = Lsn::new;
        assert_eq!(refuse_skip(lsn(5), None, None), None);
        assert_eq!(refuse_skip(lsn(5), Some(lsn(4)), Some(lsn(5))), None);
        for applied in [5, 6] {
            assert_eq!(
                refuse_skip(lsn(5), Some(lsn(applied)), None),
                Some(SkipRefusal::AlreadyApplied { lsn: lsn(5), applied: lsn(applied) })
            );
        }
        assert_eq!(
            refuse_skip(lsn(5), Some(lsn(4)), Some(lsn(7))),
            Some(SkipRefusal::OtherConflict { lsn: lsn(5), conflict: lsn(7) })
        );
    }
}
