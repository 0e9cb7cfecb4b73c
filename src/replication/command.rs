//! The replication commands as text, for the server's version. Pure.
//!
//! The syntax is in protocol.sgml, "Streaming Replication Protocol", and `repl_gram.y`. The options of
//! each version follow `libpqwalreceiver.c` (`libpqrcv_create_slot`, `libpqrcv_startstreaming`).
//!
//! # What is left out and what is refused
//!
//! Options that only make the stream cheaper (`binary`, `streaming`), or for which an older publisher
//! has nothing to send (`messages`), are left out for servers that do not know them. Options that
//! change what arrives or what the slot guarantees (`two_phase`, `origin = none`, `failover`) are
//! refused, because leaving them out would change the result.

use crate::pg::{Lsn, SlotName, quote_ident, quote_literal};

/// The versions in which the options appeared (release notes of 14 to 17).
const BINARY_SINCE: u32 = 140_000;
const STREAMING_SINCE: u32 = 140_000;
const MESSAGES_SINCE: u32 = 140_000;
const TWO_PHASE_SINCE: u32 = 150_000;
const OPTION_LIST_SINCE: u32 = 150_000;
const PARALLEL_SINCE: u32 = 160_000;
const ORIGIN_SINCE: u32 = 160_000;
const FAILOVER_SINCE: u32 = 170_000;

/// A replication slot to be created with pgoutput.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSpec {
    pub name: SlotName,
    pub lifetime: SlotLifetime,
    pub snapshot: SlotSnapshot,
    /// Whether prepared transactions are decoded at PREPARE (15 and later).
    pub two_phase: bool,
    /// Whether the slot is synchronised to standbys (17 and later).
    pub failover: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotLifetime {
    Permanent,
    /// The slot exists until the session that created it ends or meets an error.
    Temporary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotSnapshot {
    /// Export a snapshot of the consistent point. Other sessions can use it (`SET TRANSACTION
    /// SNAPSHOT`) until the session that created the slot runs another command or ends.
    Export,
    Nothing,
}

/// Whether dropping a slot waits for the session that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenActive {
    Fail,
    Wait,
}

/// Options of START_REPLICATION.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartOptions {
    pub slot: SlotName,
    /// Position to start from; the publisher uses the slot's confirmed position if that is later.
    pub start: Lsn,
    /// Highest version of pgoutput's protocol that the caller decodes; it is lowered to what the server
    /// supports.
    pub proto_version: u32,
    /// Names of the publications as in the catalog.
    pub publications: Vec<String>,
    pub binary: bool,
    pub streaming: Streaming,
    pub two_phase: bool,
    pub origin: Origin,
    /// Whether logical decoding messages (`pg_logical_emit_message`) are sent.
    pub messages: bool,
}

/// Whether transactions in progress are sent before they commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    Off,
    On,
    /// On, with the positions of aborts for parallel apply; plain `On` before 16.
    Parallel,
}

/// Selects the changes that are sent by their origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Any,
    /// Only changes without an origin.
    None,
}

/// The server is too old for an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{feature} needs PostgreSQL {} or later on the publisher, which is {}", .since / 10_000, .actual / 10_000)]
pub struct Unsupported {
    pub feature: &'static str,
    /// First version with the feature, as `server_version_num`.
    pub since: u32,
    /// The server's version, as `server_version_num`.
    pub actual: u32,
}

fn require(feature: &'static str, since: u32, actual: u32) -> Result<(), Unsupported> {
    if actual >= since { Ok(()) } else { Err(Unsupported { feature, since, actual }) }
}

pub(super) fn create_slot(spec: &SlotSpec, version: u32) -> Result<String, Unsupported> {
    let temporary = match spec.lifetime {
        SlotLifetime::Permanent => "",
        SlotLifetime::Temporary => " TEMPORARY",
    };
    if spec.two_phase {
        require("a two-phase slot", TWO_PHASE_SINCE, version)?;
    }
    if spec.failover {
        require("a failover slot", FAILOVER_SINCE, version)?;
    }
    let head =
        format!("CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput", quote_ident(spec.name.as_str()));
    if version < OPTION_LIST_SINCE {
        let snapshot = match spec.snapshot {
            SlotSnapshot::Export => "EXPORT_SNAPSHOT",
            SlotSnapshot::Nothing => "NOEXPORT_SNAPSHOT",
        };
        return Ok(format!("{head} {snapshot}"));
    }
    let mut options = vec![match spec.snapshot {
        SlotSnapshot::Export => "SNAPSHOT 'export'",
        SlotSnapshot::Nothing => "SNAPSHOT 'nothing'",
    }];
    if spec.two_phase {
        options.push("TWO_PHASE");
    }
    if spec.failover {
        options.push("FAILOVER");
    }
    Ok(format!("{head} ({})", options.join(", ")))
}

pub(super) fn drop_slot(name: &SlotName, when_active: WhenActive) -> String {
    let wait = match when_active {
        WhenActive::Fail => "",
        WhenActive::Wait => " WAIT",
    };
    format!("DROP_REPLICATION_SLOT {}{wait}", quote_ident(name.as_str()))
}

/// Returns the highest version of pgoutput's protocol that a server supports (`LOGICALREP_PROTO_*` in
/// `logicalproto.h`).
#[must_use]
pub fn proto_version_max(server_version_num: u32) -> u32 {
    match server_version_num {
        PARALLEL_SINCE.. => 4,
        TWO_PHASE_SINCE.. => 3,
        STREAMING_SINCE.. => 2,
        _ => 1,
    }
}

pub(super) fn start_replication(options: &StartOptions, version: u32) -> Result<String, Unsupported> {
    let proto_version = options.proto_version.min(proto_version_max(version));
    let mut list = vec![
        format!("proto_version '{proto_version}'"),
        format!("publication_names {}", quote_literal(&publication_names(&options.publications))),
    ];
    if options.binary && version >= BINARY_SINCE {
        list.push("binary 'true'".to_owned());
    }
    match options.streaming {
        Streaming::Parallel if version >= PARALLEL_SINCE => list.push("streaming 'parallel'".to_owned()),
        Streaming::On | Streaming::Parallel if version >= STREAMING_SINCE => {
            list.push("streaming 'on'".to_owned());
        }
        Streaming::Off | Streaming::On | Streaming::Parallel => {}
    }
    if options.two_phase {
        require("two_phase", TWO_PHASE_SINCE, version)?;
        list.push("two_phase 'on'".to_owned());
    }
    match options.origin {
        Origin::Any => {}
        Origin::None => {
            require("origin = \"none\"", ORIGIN_SINCE, version)?;
            list.push("origin 'none'".to_owned());
        }
    }
    if options.messages && version >= MESSAGES_SINCE {
        list.push("messages 'true'".to_owned());
    }
    let slot = quote_ident(options.slot.as_str());
    Ok(format!("START_REPLICATION SLOT {slot} LOGICAL {} ({})", options.start, list.join(", ")))
}

/// Writes the names as quoted identifiers, which `SplitIdentifierString` parses.
fn publication_names(publications: &[String]) -> String {
    publications.iter().map(|name| quote_ident(name)).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> SlotSpec {
        SlotSpec {
            name: "s".parse().unwrap(),
            lifetime: SlotLifetime::Permanent,
            snapshot: SlotSnapshot::Export,
            two_phase: false,
            failover: false,
        }
    }

    fn start() -> StartOptions {
        StartOptions {
            slot: "s".parse().unwrap(),
            start: Lsn::new(0x1_0000_00AB),
            proto_version: 4,
            publications: vec!["p".to_owned(), "a\"b'c".to_owned()],
            binary: true,
            streaming: Streaming::Parallel,
            two_phase: false,
            origin: Origin::Any,
            messages: true,
        }
    }

    #[test]
    fn slots_are_created_in_the_versions_own_grammar() {
        let temporary =
            SlotSpec { lifetime: SlotLifetime::Temporary, snapshot: SlotSnapshot::Nothing, ..slot() };
        let check = |spec: &SlotSpec, version: u32, expected: &str| {
            assert_eq!(create_slot(spec, version).as_deref(), Ok(expected));
        };
        check(&slot(), 100_023, r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput EXPORT_SNAPSHOT"#);
        check(
            &temporary,
            140_000,
            r#"CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"#,
        );
        check(&slot(), 150_000, r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput (SNAPSHOT 'export')"#);
        check(
            &SlotSpec { two_phase: true, failover: true, ..temporary },
            170_000,
            r#"CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing', TWO_PHASE, FAILOVER)"#,
        );
    }

    #[test]
    fn streaming_starts_with_what_the_version_knows() {
        insta::assert_snapshot!(
            start_replication(&start(), 100_000).unwrap(),
            @r#"START_REPLICATION SLOT "s" LOGICAL 1/AB (proto_version '1', publication_names '"p","a""b''c"')"#
        );
        insta::assert_snapshot!(
            start_replication(&start(), 150_018).unwrap(),
            @r#"START_REPLICATION SLOT "s" LOGICAL 1/AB (proto_version '3', publication_names '"p","a""b''c"', binary 'true', streaming 'on', messages 'true')"#
        );
        let all = StartOptions { two_phase: true, origin: Origin::None, ..start() };
        insta::assert_snapshot!(
            start_replication(&all, 180_000).unwrap(),
            @r#"START_REPLICATION SLOT "s" LOGICAL 1/AB (proto_version '4', publication_names '"p","a""b''c"', binary 'true', streaming 'parallel', two_phase 'on', origin 'none', messages 'true')"#
        );
    }

    #[test]
    fn promises_that_the_server_cannot_keep_are_refused() {
        let origin = StartOptions { origin: Origin::None, ..start() };
        insta::assert_snapshot!(
            start_replication(&origin, 150_018).unwrap_err(),
            @r#"origin = "none" needs PostgreSQL 16 or later on the publisher, which is 15"#
        );
        assert!(create_slot(&SlotSpec { failover: true, ..slot() }, 160_000).is_err());
        assert!(create_slot(&SlotSpec { two_phase: true, ..slot() }, 140_000).is_err());
    }

    #[test]
    fn dropping_waits_only_when_told() {
        let name = "s".parse().unwrap();
        assert_eq!(drop_slot(&name, WhenActive::Fail), r#"DROP_REPLICATION_SLOT "s""#);
        assert_eq!(drop_slot(&name, WhenActive::Wait), r#"DROP_REPLICATION_SLOT "s" WAIT"#);
    }
}
