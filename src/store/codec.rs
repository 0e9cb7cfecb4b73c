//! Encodes and decodes `pg_lsn` and `timestamptz` for sqlx, which supports neither `pg_lsn` nor jiff's
//! timestamps.
//!
//! In binary both have eight bytes: a position in the WAL (`pg_lsn_send`), and microseconds since 2000-01-01
//! UTC (`timestamptz_send`).

use jiff::{SignedDuration, Timestamp};
use serde::Serializer;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::pg::Lsn;

/// OID of `pg_lsn` in PostgreSQL's `pg_type.dat`.
const PG_LSN_OID: Oid = Oid(3220);
/// OID of `timestamptz` in PostgreSQL's `pg_type.dat`.
const TIMESTAMPTZ_OID: Oid = Oid(1184);
/// PostgreSQL's epoch, 2000-01-01 00:00:00 UTC, in seconds since the Unix epoch.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

impl Type<Postgres> for Lsn {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(PG_LSN_OID)
    }
}

impl Encode<'_, Postgres> for Lsn {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buf.extend_from_slice(&self.as_u64().to_be_bytes());
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Lsn {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => Ok(Self::new(u64::from_be_bytes(value.as_bytes()?.try_into()?))),
            PgValueFormat::Text => Ok(value.as_str()?.parse()?),
        }
    }
}

/// A `timestamptz`, rounded to microseconds as in PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Timestamp);

impl Type<Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ_OID)
    }
}

impl Encode<'_, Postgres> for Time {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let epoch_micros = POSTGRES_EPOCH_SECONDS * 1_000_000;
        buf.extend_from_slice(&(self.0.as_microsecond() - epoch_micros).to_be_bytes());
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Time {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
                let epoch = Timestamp::from_second(POSTGRES_EPOCH_SECONDS)?;
                Ok(Self(epoch.checked_add(SignedDuration::from_micros(micros))?))
            }
            PgValueFormat::Text => Ok(Self(value.as_str()?.parse()?)),
        }
    }
}

/// Writes RFC 3339 in UTC, for JSON.
pub(super) fn serialize_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
pub(super) fn serialize_time_option<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}
