//! Parses a server's version number from the version that it reports at start-up. Pure.

/// Converts `server_version` to `server_version_num`: 150018 for `15.18 (Debian …)`, 180000 for
/// `18devel`, 90624 for `9.6.24`. It follows libpq (`pqSaveParameterStatus` in `fe-exec.c`).
pub(crate) fn server_version_num(server_version: &str) -> Option<u32> {
    let mut parts = [None; 3];
    let mut rest = server_version;
    for part in &mut parts {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Ok(number) = rest[..digits].parse::<u32>() else { break };
        *part = Some(number);
        match rest[digits..].strip_prefix('.') {
            Some(next) => rest = next,
            None => break,
        }
    }
    let [Some(major), minor, revision] = parts else { return None };
    let number = match (minor, revision) {
        (Some(minor), Some(revision)) => {
            major.checked_mul(100)?.checked_add(minor)?.checked_mul(100)?.checked_add(revision)?
        }
        (Some(minor), None) if major < 10 => major.checked_mul(100)?.checked_add(minor)?.checked_mul(100)?,
        (minor, None) | (minor @ None, Some(_)) => {
            major.checked_mul(10_000)?.checked_add(minor.unwrap_or(0))?
        }
    };
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::server_version_num;

    #[test]
    fn versions_read_as_libpq_reads_them() {
        let check = |text: &str, expected: Option<u32>| {
            assert_eq!(server_version_num(text), expected, "{text}");
        };
        check("15.18 (Debian 15.18-0+deb12u1)", Some(150_018));
        check("10.23", Some(100_023));
        check("9.6.24", Some(90_624));
        check("9.6", Some(90_600));
        check("18devel", Some(180_000));
        check("17beta2", Some(170_000));
        check("16rc1 (Ubuntu)", Some(160_000));
        check("", None);
        check("devel", None);
        check("99999999999", None);
        check("4294967295.1", None);
    }
}
