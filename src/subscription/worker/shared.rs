//! What the workers of a process have in common.

use super::super::instances::Instances;
use super::super::reports::Reports;
use super::super::turns::Turns;
use crate::pg::conninfo::ConnInfo;
use crate::store::Store;

/// It is cloned for each worker; clones share what is behind.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) target: ConnInfo,
    pub(crate) store: Store,
    pub(crate) instance: String,
    pub(crate) reports: Reports,
    pub(crate) turns: Turns,
    pub(crate) instances: Instances,
}
