//! The account that the throw-away servers run as.
//!
//! PostgreSQL refuses to run as root. If the caller is root (in a container, in continuous
//! integration), the servers run as `postgres` or, where there is no such account, as `nobody`;
//! otherwise they run as the caller. A server's files have to belong to its account: [`Account::give`].
//! Nothing here starts a server.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// User id of `nobody` on Linux and the BSDs.
const NOBODY: u32 = 65_534;

/// The account that owns and runs the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// The caller's account, which is not root.
    Caller { uid: u32 },
    /// Another account, because the caller is root.
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// Chooses the account. `own` is a file or directory that the caller has just created; its owner is
    /// the caller, which the standard library cannot tell otherwise.
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

    /// Makes `command` run as this account. The standard library drops supplementary groups when root
    /// changes the user.
    pub fn run_as(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Changes the owner of `path` to the account, without what is in it.
    pub fn give(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Caller { .. } => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }
}

/// Returns user and group of `name` in the text of a passwd(5) file. Root is never returned.
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
