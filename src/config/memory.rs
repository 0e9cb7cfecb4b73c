//! How much memory this process may use, as far as the operating system limits it: by its control groups, and by
//! the size of its address space (`ulimit -v`).
//!
//! What other processes use is not considered.

use std::path::{Path, PathBuf};

use super::surroundings::read_bounded;

/// The lowest limit, bytes; none if there is none.
pub(super) fn limit_bytes() -> Option<u64> {
    let read = |path: &Path| read_bounded(path).ok();
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = read(Path::new("/proc/self/limits")).unwrap_or_default();
    let of_groups = group_files(&groups).into_iter().filter_map(|path| read(&path)?.trim().parse().ok());
    of_groups.chain(address_space(&limits)).min()
}

/// Returns the files with the limits of a process's control groups and of the groups above them. Lines of
/// `/proc/self/cgroup` are `number:controllers:path`; version 2 has no controllers.
fn group_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

/// Returns the soft limit of the address space from `/proc/self/limits`; none if it is unlimited.
fn address_space(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_limited_by_those_above_them() {
        let paths = |groups: &str| {
            group_files(groups).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            paths("0::/system.slice/pgsluice.service\n"),
            [
                "/sys/fs/cgroup/system.slice/pgsluice.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(paths("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert_eq!(
            paths("5:devices:/a\n4:memory:/a\nbroken\n"),
            ["/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
    }

    #[test]
    fn the_address_space_has_a_soft_limit() {
        let limits = |soft: &str| {
            format!("Limit  Soft Limit  Hard Limit  Units\nMax address space  {soft}  unlimited  bytes\n")
        };
        assert_eq!(address_space(&limits("2048000")), Some(2_048_000));
        assert_eq!(address_space(&limits("unlimited")), None);
        assert_eq!(address_space(""), None);
    }
}
