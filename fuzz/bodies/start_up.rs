//! A server that answers a log-in with any bytes: both kinds of connection end with a session or an error that can be
//! shown.

use pgsluice::net::{NetStream, client_over};
use pgsluice::pg::conninfo::{ConnInfo, DefaultFiles, Defaults, parse};
use pgsluice::replication::{ReplicationConnection, SessionOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

pub(crate) fn run(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let info = info();
    let options = SessionOptions { application_name: "fuzz".to_owned(), client_encoding: "UTF8".to_owned() };
    runtime.block_on(async {
        let (stream, server) = answering(data);
        // The server waits until the session has been closed.
        let client = async { client_over(stream, &info).await.map(drop) };
        let (sql, ()) = tokio::join!(client, server);
        let (stream, server) = answering(data);
        let client = async { ReplicationConnection::over(stream, &info, &options).await.map(drop) };
        let (replication, ()) = tokio::join!(client, server);
        for error in [sql.err(), replication.err()].into_iter().flatten() {
            assert!(!error.to_string().is_empty());
        }
    });
}

/// A stream on which `data` comes whatever is sent, and what sends it.
fn answering(data: &[u8]) -> (NetStream, impl Future<Output = ()>) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let server = async move {
        // The client may have gone before it has read everything.
        let _ = theirs.write_all(data).await;
        let _ = theirs.shutdown().await;
        let _ = theirs.read_to_end(&mut Vec::new()).await;
    };
    (NetStream::Unix(ours), server)
}

fn info() -> ConnInfo {
    let env = |_: &str| None;
    let files = DefaultFiles::default();
    let defaults = Defaults { env: &env, os_user: None, files: &files };
    parse("host=/nowhere user=sammy password=secret dbname=example", &defaults).expect("it is valid").conninfo
}
