//! The instances that run now (`pgsluice.instance`). Each one renews its own row.
//!
//! Nothing waits for this but the task that does it: a lock on the table only means that nothing is shared meanwhile.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryScalar;
use sqlx::{Connection as _, Executor as _, Postgres, Row as _};

use crate::pg::SubscriptionName;
use crate::subscription::balance::{HandOver, Member, Roles};

use super::{Store, StoreError};

/// An instance that has not renewed its row for so long does not count.
const LIVES: Duration = Duration::from_secs(5);

/// A lock of others is not waited for, because the session is the pool's; and a renewal that is lost in a crash would have been
/// replaced a second later.
const QUICK: &str = "SET LOCAL lock_timeout = '500ms'; SET LOCAL synchronous_commit = off";

/// The number may be given out again by a target that was restored from a backup; the name is then another one.
const RENEW: &str = "UPDATE pgsluice.instance SET owns = $2, streams = $3, stands_by = $4, hands_over = $5, \
    hands_over_to = $6, renewed_at = pg_catalog.clock_timestamp() WHERE name = $1 AND id = $7 RETURNING id";

const REGISTER: &str = "INSERT INTO pgsluice.instance \
    (name, owns, streams, stands_by, hands_over, hands_over_to, renewed_at) \
    VALUES ($1, $2, $3, $4, $5, $6, pg_catalog.clock_timestamp()) RETURNING id";

const FORGET: &str = "DELETE FROM pgsluice.instance \
    WHERE renewed_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(hours => 1)";

const LIVING: &str = "SELECT id, owns, streams, stands_by, hands_over, hands_over_to FROM pgsluice.instance \
    WHERE renewed_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) ORDER BY id";

impl Store {
    /// Renews the row of the instance `id`, or registers it, and returns its number with all instances that live.
    ///
    /// It is meant to be called every second.
    pub async fn renew_instance(
        &self,
        id: Option<i64>,
        name: &str,
        roles: &Roles,
        hands_over: Option<&HandOver>,
    ) -> Result<(i64, Vec<Member>), StoreError> {
        self.run("renew the instance", async {
            let mut session = self.pool.acquire().await?;
            let mut tx = session.begin().await?;
            tx.execute(QUICK).await?;
            let described = |sql| describe(sql, name, roles, hands_over);
            let renewed = match id {
                Some(id) => described(RENEW).bind(id).fetch_optional(&mut *tx).await?,
                None => None,
            };
            let id = match renewed {
                Some(id) => id,
                None => {
                    sqlx::query(FORGET).execute(&mut *tx).await?;
                    described(REGISTER).fetch_one(&mut *tx).await?
                }
            };
            let rows = sqlx::query(LIVING).bind(LIVES.as_secs_f64()).fetch_all(&mut *tx).await?;
            let members = rows.iter().map(member).collect::<Result<_, sqlx::Error>>()?;
            tx.commit().await?;
            Ok((id, members))
        })
        .await
    }

    /// Removes the row of an instance that ends.
    pub async fn withdraw_instance(&self, id: i64) -> Result<(), StoreError> {
        self.run("withdraw the instance", async {
            let mut session = self.pool.acquire().await?;
            let mut tx = session.begin().await?;
            tx.execute(QUICK).await?;
            sqlx::query("DELETE FROM pgsluice.instance WHERE id = $1").bind(id).execute(&mut *tx).await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }
}

type Described<'q> = QueryScalar<'q, Postgres, i64, PgArguments>;

/// The statement `sql`, with what an instance is in its first six parameters.
fn describe<'q>(
    sql: &'static str,
    name: &'q str,
    roles: &Roles,
    hands_over: Option<&'q HandOver>,
) -> Described<'q> {
    let [owns, streams, stands_by] = [&roles.owns, &roles.streams, &roles.stands_by]
        .map(|names| names.iter().map(ToString::to_string).collect::<Vec<String>>());
    sqlx::query_scalar(sql)
        .bind(name)
        .bind(owns)
        .bind(streams)
        .bind(stands_by)
        .bind(hands_over.map(|hand_over| hand_over.subscription.as_str()))
        .bind(hands_over.map(|hand_over| hand_over.to))
}

/// Names that are none, which somebody else has written, are left out.
fn member(row: &PgRow) -> Result<Member, sqlx::Error> {
    let parse = |name: &String| name.parse::<SubscriptionName>().ok();
    let names = |column: &str| -> Result<_, sqlx::Error> {
        Ok(row.try_get::<Vec<String>, _>(column)?.iter().filter_map(parse).collect())
    };
    let handed: Option<String> = row.try_get("hands_over")?;
    let hands_over = handed.as_ref().and_then(parse).zip(row.try_get("hands_over_to")?);
    Ok(Member {
        id: row.try_get("id")?,
        roles: Roles { owns: names("owns")?, streams: names("streams")?, stands_by: names("stands_by")? },
        hands_over: hands_over.map(|(subscription, to)| HandOver { subscription, to }),
    })
}
