//! Which account the throw-away servers run as.
//!
//! PostgreSQL refuses to run as root. Called by root (in a container, in continuous integration),
//! the servers run as `postgres` or, where there is no such account, as `nobody`; called by anybody
//! else, as the caller. What such a server touches has to be its own: [`Account::give`].
//! Nothing here starts anything.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What Linux and the BSDs give an account without a name: `nobody` by convention.
const NOBODY: u32 = 65_534;

/// The account that owns and runs the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// The caller's own; it is not root.
    Caller { uid: u32 },
    /// Another one, because the caller is root.
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// The account for this caller. `own` is a file or directory that the caller has just made:
    /// its owner is the caller, which the standard library cannot tell otherwise.
    pub fn for_owner_of(own: &Path) -> io::Result<Self> {
        let uid = std::fs::metadata(own)?.uid();
        if uid != 0 {
            return Ok(Self::Caller { uid });
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let (uid, gid) =
            look_up(&passwd, "postgres").or_else(|| look_up(&passwd, "nobody")).unwrap_or((NOBODY, NOBODY));
        Ok(Self::Other { uid, gid })
    }

    /// The account's user id.
    #[must_use]
    pub const fn uid(self) -> u32 {
        match self {
            Self::Caller { uid } | Self::Other { uid, .. } => uid,
        }
    }

    /// Has `command` run as this account, with no supplementary groups of the caller's
    /// (the standard library drops them when root changes the user).
    pub fn run_as(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Makes `path` (itself, not what is in it) the account's.
    pub fn give(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Caller { .. } => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }
}

/// User and group of `name` in the text of a passwd(5) file. Root does not count.
fn look_up(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    (uid != 0).then_some((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\n\
        toor:x:0:0::/root:/bin/sh\n\
        broken:x:many\n";

    #[test]
    fn accounts_are_found_by_their_whole_name_and_root_is_none() {
        assert_eq!(look_up(PASSWD, "postgres"), Some((101, 104)));
        assert_eq!(look_up(PASSWD, "postgre"), None);
        assert_eq!(look_up(PASSWD, "toor"), None);
        assert_eq!(look_up(PASSWD, "broken"), None);
    }
}
