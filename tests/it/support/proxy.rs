//! A way to a server that takes longer: every byte arrives a fixed time after it was sent.
//! One that fails when it is told to is in `faulty_proxy`.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Largest number of delayed pieces in one direction.
const PIECES_MAX: usize = 4096;

/// Listens on loopback and forwards to a port there. Dropping it ends every connection.
pub(crate) struct DelayingProxy {
    port: u16,
    _tasks: JoinSet<()>,
}

impl DelayingProxy {
    /// Starts the proxy. `delay` applies in each direction, so the round trip takes twice as long.
    pub(crate) async fn start(to: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
                let (client_reads, client_writes) = client.into_split();
                let (server_reads, server_writes) = server.into_split();
                connections.spawn(forward(client_reads, server_writes, delay));
                connections.spawn(forward(server_reads, client_writes, delay));
            }
        });
        Self { port, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

async fn forward(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, piece)) = pieces.recv().await {
        sleep_until(due).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
