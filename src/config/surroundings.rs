//! What the configuration uses besides its file: the environment, the operating system's user, libpq's files in
//! the home directory, and the limit of the process's memory. Only this module of `config` reads them, the last
//! with [`memory`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::memory;
use crate::error::Diagnosis;
use crate::pg::conninfo::{DefaultFiles, Passfile};

/// Largest size of a configuration or password file, bytes. A larger file is taken for something else.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Read once per load. It has no `Debug`, because the environment holds passwords.
pub(super) struct Surroundings {
    pub(super) env: BTreeMap<String, String>,
    pub(super) os_user: Option<String>,
    pub(super) files: DefaultFiles,
    /// How much memory the process may use; none if that is not limited.
    pub(super) memory_bytes: Option<u64>,
}

impl Surroundings {
    /// No surroundings at all.
    pub(super) fn none() -> Self {
        Self { env: BTreeMap::new(), os_user: None, files: DefaultFiles::default(), memory_bytes: None }
    }

    /// Reads the surroundings of this process, with the given environment.
    pub(super) fn of_process(env: BTreeMap<String, String>) -> Self {
        let uid = fs::metadata("/proc/self").map(|process| process.uid()).ok();
        let users = read_bounded(Path::new("/etc/passwd")).unwrap_or_default();
        let entry = uid.and_then(|uid| user_entry(&users, uid));
        // The user of a container may be a number without a name.
        let named = || ["USER", "LOGNAME"].into_iter().find_map(|name| non_empty(env.get(name)));
        let os_user = entry.as_ref().map(|(name, _)| name.clone()).or_else(named);
        let home = non_empty(env.get("HOME")).or_else(|| entry.map(|(_, home)| home));
        let files = home.map_or_else(DefaultFiles::default, |home| files_in(Path::new(&home)));
        Self { env, os_user, files, memory_bytes: memory::limit_bytes() }
    }
}

fn non_empty(value: Option<&String>) -> Option<String> {
    value.filter(|value| !value.is_empty()).cloned()
}

/// Returns a user's name and home directory from `/etc/passwd`.
fn user_entry(users: &str, uid: u32) -> Option<(String, String)> {
    users.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, number, _, _, home, _] = fields.as_slice() else { return None };
        (number.parse() == Ok(uid)).then(|| ((*name).to_owned(), (*home).to_owned()))
    })
}

/// Returns the paths of libpq's files in a home directory.
fn files_in(home: &Path) -> DefaultFiles {
    let existing = |name: &str| Some(home.join(name)).filter(|path| path.exists());
    DefaultFiles {
        passfile: existing(".pgpass"),
        root_cert: existing(".postgresql/root.crt"),
        client_cert: existing(".postgresql/postgresql.crt").zip(existing(".postgresql/postgresql.key")),
    }
}

/// Reads a whole UTF-8 file of bounded size.
pub(super) fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("the file is larger than 1 MiB"));
    }
    Ok(text)
}

/// Whether a file of this mode and owner is private enough to be trusted with a password.
///
/// libpq has this rule for private keys (`pgtls_init` in fe-secure-openssl.c); for password files it
/// accepts only a file of the user that nobody else can read. Here, a file that root owns may also be
/// readable by its group, because systemd's credentials and Kubernetes' secrets are handed to a service
/// in this way.
const fn is_private(mode: u32, owner: u32) -> bool {
    let others = if owner == 0 { 0o037 } else { 0o077 };
    mode & others == 0
}

/// Reads a password file. As with libpq, a file that others may read ([`is_private`]) or that is not a
/// plain file is ignored.
///
/// # Errors
///
/// Returns why the file was ignored. This is a warning, since a connection may work without a password.
pub(super) fn read_passfile(passfile: &Passfile) -> Result<String, Diagnosis> {
    let path = passfile.path();
    let ignored = |why: &str| Diagnosis::new(format!("password file {} is ignored: {why}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| {
        ignored(&error.to_string()).hint("correct passfile or PGPASSFILE, or create the file with mode 0600")
    })?;
    if !metadata.is_file() {
        return Err(ignored("it is not a plain file"));
    }
    if !is_private(metadata.mode(), metadata.uid()) {
        return Err(
            ignored("its group or others may access it").hint(format!("chmod 0600 '{}'", path.display()))
        );
    }
    read_bounded(path).map_err(|error| ignored(&error.to_string()))
}

/// Returns the process's environment for [`Config::load`](super::Config::load). Names that are not
/// UTF-8 are left out, since no override has one; in values, bytes that are not UTF-8 become U+FFFD.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// The path of the configuration file, and whether it was chosen or is the default.
pub(super) enum ConfigFile {
    Given(PathBuf),
    Default(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\nsammy:x:1000:1000:S,,,:/home/sammy:/bin/sh\n";
        assert_eq!(user_entry(users, 1000), Some(("sammy".to_owned(), "/home/sammy".to_owned())));
        assert_eq!(user_entry(users, 1), None);
    }

    #[test]
    fn only_files_that_exist_are_defaults() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(files_in(home.path()), DefaultFiles::default());
        fs::create_dir(home.path().join(".postgresql")).unwrap();
        for name in [".pgpass", ".postgresql/root.crt", ".postgresql/postgresql.crt"] {
            fs::write(home.path().join(name), "").unwrap();
        }
        let files = files_in(home.path());
        assert!(files.passfile.is_some() && files.root_cert.is_some());
        assert_eq!(files.client_cert, None);
    }

    #[test]
    fn a_private_file_is_ones_own_or_roots() {
        for (mode, owner, expected) in [
            (0o100_600, 1000, true),
            (0o100_400, 1000, true),
            (0o100_640, 1000, false),
            (0o100_604, 1000, false),
            (0o100_640, 0, true),
            (0o100_440, 0, true),
            (0o100_660, 0, false),
            (0o100_644, 0, false),
        ] {
            assert_eq!(is_private(mode, owner), expected, "{mode:o} of {owner}");
        }
    }

    #[test]
    fn huge_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert_eq!(read_bounded(&path).unwrap_err().to_string(), "the file is larger than 1 MiB");
    }
}
