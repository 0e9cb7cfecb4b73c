//! A way to a server that fails when it is told to.
//!
//! ```text
//! client ──▶ proxy ──▶ server     cut     every connection ends now
//!        ◀──       ◀──            stall   nothing is accepted or forwarded, connections stay open
//!                                 strand  those connections never forward again, others do
//!                                 mute    what the client says arrives, answers vanish
//!                                 lose    the next COMMIT arrives, its answer vanishes, then a cut
//! ```
//! It knows no more of the protocol than the text of `COMMIT`, as a statement and as a command tag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::wait::until_within;

const BUFFER_BYTES: usize = 64 << 10;
/// The statement, as a client sends it in text.
const STATEMENT: &[u8] = b"COMMIT";
/// The command tag of the server's answer.
const TAG: &[u8] = b"COMMIT\0";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    Stalled,
    Muted,
}

#[derive(Debug, Clone, Copy)]
struct Orders {
    flow: Flow,
    /// How often everything was cut. A connection that was there before the last cut ends.
    cuts: u64,
    /// How often connections were stranded. One that was there before forwards nothing any more.
    strandings: u64,
}

/// What connections have in common.
#[derive(Debug, Default)]
struct Shared {
    /// The answer to this many'th COMMIT from now on is lost; 0: none is.
    commits_until_loss: AtomicU32,
    /// COMMITs whose answer the server has sent and the client has not got.
    lost: AtomicU64,
}

/// Listens on loopback and forwards to a port there. Dropping it ends every connection.
#[derive(Debug)]
pub(crate) struct FaultyProxy {
    port: u16,
    orders: watch::Sender<Orders>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl FaultyProxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let (orders, receiver) = watch::channel(Orders { flow: Flow::Open, cuts: 0, strandings: 0 });
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, to, receiver, Arc::clone(&shared)));
        Self { port, orders, shared, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Forwards nothing more of the connections that there are, which stay open. Others come through.
    pub(crate) fn strand(&self) {
        self.orders.send_modify(|orders| orders.strandings += 1);
    }

    /// Forwards nothing and accepts nothing, until [`FaultyProxy::open`].
    pub(crate) fn stall(&self) {
        self.orders.send_modify(|orders| orders.flow = Flow::Stalled);
    }

    /// Drops what the server says, until [`FaultyProxy::open`].
    pub(crate) fn mute(&self) {
        self.orders.send_modify(|orders| orders.flow = Flow::Muted);
    }

    /// Forwards again. After a time without answers, connections make no sense any more: they are cut.
    pub(crate) fn open(&self) {
        self.orders.send_modify(|orders| {
            if orders.flow == Flow::Muted {
                orders.cuts += 1;
            }
            orders.flow = Flow::Open;
        });
    }

    /// Loses the answer to the `nth` COMMIT from now on and then cuts every connection. Returns whether
    /// the server had committed by then; false if there were no such COMMIT and answer in `patience`.
    pub(crate) async fn lose_answer(&self, nth: u32, patience: Duration) -> bool {
        let before = self.lost();
        self.shared.commits_until_loss.store(nth, Ordering::SeqCst);
        let seen = async {
            // Its own deadline lies behind the one that counts.
            until_within(patience * 2, "an answer is lost", async || self.lost() > before).await;
        };
        let lost = tokio::time::timeout(patience, seen).await.is_ok();
        self.shared.commits_until_loss.store(0, Ordering::SeqCst);
        self.cut();
        lost || self.lost() > before
    }

    fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, to: u16, mut orders: watch::Receiver<Orders>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while not_stalled(&mut orders).await {
        let Ok((client, _)) = listener.accept().await else { return };
        // It may have been told to stall while it waited for somebody to come.
        if !not_stalled(&mut orders).await {
            return;
        }
        while connections.try_join_next().is_some() {}
        let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        connections.spawn(connection(client, server, orders.clone(), Arc::clone(&shared)));
    }
}

/// Waits until it is not stalled; false once the proxy is gone.
async fn not_stalled(orders: &mut watch::Receiver<Orders>) -> bool {
    orders.wait_for(|orders| orders.flow != Flow::Stalled).await.is_ok()
}

/// One connection: both directions, until both have ended or it is cut. Sockets close with it.
async fn connection(
    client: TcpStream,
    server: TcpStream,
    mut orders: watch::Receiver<Orders>,
    shared: Arc<Shared>,
) {
    let line = Line { muted: AtomicBool::new(false), answered: Notify::new(), shared };
    let Orders { cuts, strandings, .. } = *orders.borrow();
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let requests = line.requests(client_reads, server_writes, orders.clone());
    let answers = line.answers(server_reads, client_writes, orders.clone());
    // Both sockets stay open while this is there, also when it is not polled any more.
    let mut both = std::pin::pin!(async { tokio::join!(requests, answers) });
    let mut stranded = orders.clone();
    tokio::select! {
        biased;
        _ = async { orders.wait_for(|orders| orders.cuts > cuts).await.map(|_| ()) } => return,
        _ = stranded.wait_for(|orders| orders.strandings > strandings) => {}
        _ = &mut both => return,
        () = line.answered.notified() => return,
    }
    let _ = orders.wait_for(|orders| orders.cuts > cuts).await;
}

/// What both directions of a connection know.
#[derive(Debug)]
struct Line {
    /// From the COMMIT on whose answer is to be lost.
    muted: AtomicBool,
    /// That answer has come, and was dropped.
    answered: Notify,
    shared: Arc<Shared>,
}

impl Line {
    async fn requests(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        mut orders: watch::Receiver<Orders>,
    ) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut seen = Scanner::new(STATEMENT);
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if !not_stalled(&mut orders).await {
                return;
            }
            for _ in 0..seen.count(&buffer[..read]) {
                if self.is_the_one() {
                    self.muted.store(true, Ordering::SeqCst);
                }
            }
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    }

    async fn answers(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        mut orders: watch::Receiver<Orders>,
    ) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut seen = Scanner::new(TAG);
        // No network loses bytes out of the middle of a connection: behind what was dropped, nothing may follow.
        let mut has_dropped = false;
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if !not_stalled(&mut orders).await {
                return;
            }
            if self.muted.load(Ordering::SeqCst) {
                if seen.count(&buffer[..read]) > 0 {
                    self.shared.lost.fetch_add(1, Ordering::SeqCst);
                    self.answered.notify_one();
                }
                continue;
            }
            has_dropped |= orders.borrow().flow == Flow::Muted;
            if !has_dropped && to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    }

    /// Counts a COMMIT; whether it is the one whose answer is to be lost.
    fn is_the_one(&self) -> bool {
        let count = |left: u32| left.checked_sub(1);
        self.shared.commits_until_loss.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count) == Ok(1)
    }
}

/// Finds a text in a stream of bytes, also across two pieces.
#[derive(Debug)]
struct Scanner {
    text: &'static [u8],
    /// The end of the piece before.
    rest: Vec<u8>,
}

impl Scanner {
    const fn new(text: &'static [u8]) -> Self {
        Self { text, rest: Vec::new() }
    }

    /// How often the text ends in this piece.
    fn count(&mut self, piece: &[u8]) -> usize {
        self.rest.extend_from_slice(piece);
        let found = self.rest.windows(self.text.len()).filter(|window| *window == self.text).count();
        let keep = self.rest.len().min(self.text.len() - 1);
        self.rest.drain(..self.rest.len() - keep);
        found
    }
}

#[test]
fn a_text_is_found_across_pieces() {
    let mut scanner = Scanner::new(STATEMENT);
    let found: Vec<usize> = ["COM", "MIT;COMM", "IT", "COMMIT COMMIT", "COMMI"]
        .map(|piece| scanner.count(piece.as_bytes()))
        .into();
    assert_eq!(found, [0, 1, 1, 2, 0]);
}

#[tokio::test]
async fn it_fails_when_it_is_told_to() {
    use super::world::World;
    use pgsluice::demo::Session;

    let world = World::builder().target_sql("CREATE TABLE t (a int)").start().await;
    let proxy = FaultyProxy::start(world.target.port).await;
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=target", proxy.port());
    let session = Session::connect(&conninfo).await.unwrap();
    assert_eq!(session.value("SELECT 1").await.unwrap().as_deref(), Some("1"));

    proxy.stall();
    let stalled = session.value("SELECT 2");
    assert!(tokio::time::timeout(Duration::from_millis(100), stalled).await.is_err());
    proxy.open();
    assert_eq!(session.value("SELECT 3").await.unwrap().as_deref(), Some("3"));

    // The second COMMIT is done, and nobody is told.
    let patience = Duration::from_secs(20);
    let commits = async {
        session.batch("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
        session.batch("COMMIT").await.unwrap();
        session.batch("BEGIN; INSERT INTO t VALUES (2)").await.unwrap();
        session.batch("COMMIT").await
    };
    let (lost, committed) = tokio::join!(proxy.lose_answer(2, patience), commits);
    assert!(lost && committed.is_err(), "{committed:?}");
    assert_eq!(world.target.lines("SELECT a FROM t").await, ["1", "2"]);

    let session = Session::connect(&conninfo).await.unwrap();
    proxy.mute();
    let muted = session.batch("INSERT INTO t VALUES (3)");
    assert!(tokio::time::timeout(Duration::from_millis(100), muted).await.is_err());
    until_within(patience, "it arrives", async || {
        world.target.value("SELECT count(*) FROM t").await.as_deref() == Some("3")
    })
    .await;
    proxy.open();
    assert!(session.value("SELECT 4").await.is_err());
    let session = Session::connect(&conninfo).await.unwrap();
    proxy.cut();
    assert!(session.value("SELECT 5").await.is_err());
}
