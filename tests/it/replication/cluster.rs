//! A throw-away PostgreSQL server for these tests: its own data directory, a free loopback port, and an
//! unprivileged user. The process that was started is stopped at the end.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use pgsluice::net::{ClientOptions, PgClient, client};
use pgsluice::pg::Secret;
use pgsluice::pg::conninfo::{
    ChannelBinding, ConnInfo, Host, HostAddress, Passwords, RootCert, SslMode, SslNegotiation,
    TargetSessionAttrs, TlsSettings,
};
use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    dir: TempDir,
    port: u16,
    server: Child,
}

impl Cluster {
    /// Starts a server with lines for postgresql.conf and pg_hba.conf and with files for its data
    /// directory, which only the server can read.
    pub(crate) async fn start(conf: &str, hba: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("pgsluice-net-").tempdir().unwrap();
        give_to_server(dir.path());
        let data = dir.path().join("data");
        let initdb = unprivileged("initdb")
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-N",
                "-E",
                "UTF8",
                "--locale=C",
                "--wal-segsize=1",
                "-D",
            ])
            .arg(&data)
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        for (name, content) in files {
            write(&data.join(name), content);
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n\
             wal_level = logical\nlog_min_messages = fatal\nmax_connections = 30\n{conf}\n",
            dir.path().display()
        );
        let mut whole = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        whole.push_str(&settings);
        write(&data.join("postgresql.conf"), &whole);
        write(&data.join("pg_hba.conf"), &format!("local all postgres trust\n{hba}\n"));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let server = unprivileged("postgres").arg("-D").arg(&data).stderr(log).spawn().unwrap();
        let cluster = Self { dir, port, server };
        cluster.wait_until_ready().await;
        cluster
    }

    async fn wait_until_ready(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match client(&self.admin_info(), &ClientOptions::default()).await {
                Ok(_) => return,
                Err(error) if Instant::now() > deadline => {
                    let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                    panic!("{}\n{log}", error.diagnosis());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Connects as superuser over the Unix socket.
    pub(crate) fn admin_info(&self) -> ConnInfo {
        let host =
            Host { address: HostAddress::Unix(self.dir.path().to_owned()), port: self.port, password: None };
        ConnInfo { hosts: vec![host], ..self.info("postgres", None) }
    }

    pub(crate) async fn admin(&self) -> PgClient {
        client(&self.admin_info(), &ClientOptions::default()).await.unwrap()
    }

    /// Connects as a role over TCP, by default without encryption.
    pub(crate) fn info(&self, user: &str, password: Option<&str>) -> ConnInfo {
        info(self.port, user, password)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A fast shutdown waits for the walsenders' acknowledgements, an immediate one does not.
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        let _ = kill(pid, Signal::SIGQUIT);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.server.try_wait().ok().flatten().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub(crate) fn info(port: u16, user: &str, password: Option<&str>) -> ConnInfo {
    let address = HostAddress::Tcp { name: "127.0.0.1".to_owned(), hostaddr: None };
    ConnInfo {
        hosts: vec![Host { address, port, password: None }],
        user: user.to_owned(),
        password: password.map(Secret::new),
        dbname: "postgres".to_owned(),
        tls: TlsSettings {
            mode: SslMode::Disable,
            negotiation: SslNegotiation::Postgres,
            root_cert: RootCert::None,
            client_cert: None,
            channel_binding: ChannelBinding::Prefer,
            passwords: Passwords::OverAnyConnection,
        },
        connect_timeout: Duration::from_secs(20),
        application_name: None,
        options: None,
        keepalives: None,
        tcp_user_timeout: None,
        target_session_attrs: TargetSessionAttrs::Any,
    }
}

/// Returns a command for one of PostgreSQL's programs as an unprivileged user; it ends with the thread
/// that started it.
fn unprivileged(program: &str) -> Command {
    let path = Path::new("/usr/lib/postgresql/15/bin").join(program);
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "QUIT"]);
        command.arg(path);
        command
    } else {
        Command::new(path)
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    command
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    give_to_server(path);
}

fn give_to_server(path: &Path) {
    if geteuid().is_root() {
        let user = User::from_name("postgres").unwrap().unwrap();
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}
