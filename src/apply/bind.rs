//! Binds values as the publisher sent them. The target type's input function reads text values, its receive
//! function binary ones. So a type works whatever its OID is on the target, and values are not decoded or
//! encoded here.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use crate::apply::change::Param;

/// Values from this size on are given room for what follows them, bytes.
const LARGE_BYTES: usize = 1 << 20;

impl ToSql for Param {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Text(bytes) | Self::Binary(bytes) => {
                if bytes.len() >= LARGE_BYTES {
                    // What follows would double the buffer if it ended with the value.
                    out.reserve(bytes.len() + bytes.len() / 16);
                }
                out.put_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(ty, out)
    }

    fn encode_format(&self, _ty: &Type) -> Format {
        match self {
            Self::Binary(_) => Format::Binary,
            Self::Null | Self::Text(_) => Format::Text,
        }
    }
}
