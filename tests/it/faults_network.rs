//! Faults 1 and 5, a wrong network and a firewall that drops packets, in network namespaces of the
//! test's own.
//!
//! ```text
//! the test, in a namespace (unshare)                    pgsluice, in another
//!   publisher, target (its Unix-domain socket)
//!   10.77.2.1 on lo      10.77.1.1 ──── veth pair ──── 10.77.1.2
//! ```
//! The test starts itself again within a new namespace; both namespaces and their contents vanish with
//! their processes. This needs root, `ip`, `unshare` and `nsenter`, and for a firewall `nft` or
//! `iptables`. If something is missing, the test says so on stderr and checks nothing else.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use pgsluice::demo::process::{Guarded, Signal};

use crate::check::{Checked, WIDGETS};
use crate::faults::{assert_said_once, cut_off, named, told, wait_same};
use crate::support::cli::{self, Outcome};
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PUBLISHER_ROLE, Servers, World};

const TEST: &str = "faults_network::a_wrong_network_and_a_firewall_are_told_apart";
/// Set where the test runs within its namespace.
const INSIDE: &str = "PGSLUICE_TEST_INSIDE_NETWORK";
const PATIENCE: Duration = Duration::from_mins(3);
/// The publisher's address, to which pgsluice's namespace has no route at first.
const PUBLISHER: &str = "10.77.2.1";
/// libpq's shortest time-out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Allowance for starting processes and for talking to the target.
const SLACK: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_wrong_network_and_a_firewall_are_told_apart() {
    if std::env::var_os(INSIDE).is_some() {
        return inside().await;
    }
    for (program, arguments) in
        [("unshare", &["--net", "true"][..]), ("ip", &["-V"][..]), ("nsenter", &["--version"][..])]
    {
        if let Err(problem) = tried(program, arguments) {
            return loudly(&format!("faults 1 and 5 are NOT tested here: {program}: {problem}"));
        }
    }
    let mut command = tokio::process::Command::new("unshare");
    command.arg("--net").arg(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(INSIDE, "1").kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("not ended in {PATIENCE:?}")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
    for line in errors.lines().filter(|line| line.contains("NOT")) {
        loudly(line);
    }
}

/// Prints past the test runner's capture.
fn loudly(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** {text}\n");
}

/// Runs a command and returns its error output if it fails.
fn tried(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(complaint) }
}

fn done(line: &str) {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let arguments: Vec<&str> = words.collect();
    if let Err(problem) = tried(program, &arguments) {
        panic!("{line}: {problem}");
    }
}

/// The namespace in which pgsluice runs.
struct Elsewhere {
    holder: Guarded,
}

impl Elsewhere {
    async fn new() -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "600"]);
        let elsewhere = Self { holder: Guarded::spawn(&mut command, &log, Signal::Kill, None).unwrap() };
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let pid = elsewhere.holder.pid().to_string();
        until("the namespace is made", async || of(&pid).is_some() && of(&pid) != of("self")).await;
        done(&format!("ip link add near type veth peer name far netns {pid}"));
        done("ip addr add 10.77.1.1/30 dev near");
        done("ip link set near up");
        elsewhere.done("ip addr add 10.77.1.2/30 dev far");
        elsewhere.done("ip link set lo up");
        elsewhere.done("ip link set far up");
        elsewhere
    }

    fn enter(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.holder.pid())
    }

    fn done(&self, line: &str) {
        done(&format!("nsenter {} {line}", self.enter()));
    }

    /// Runs `pgsluice check --json` there and returns how long it took.
    async fn check(&self, world: &World) -> (Checked, Duration) {
        let began = Instant::now();
        let mut command = tokio::process::Command::from(self.pgsluice(world));
        let output = command.args(["check", "--json"]).kill_on_drop(true).output().await.unwrap();
        let outcome = Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        (Checked::from(outcome), began.elapsed())
    }

    fn pgsluice(&self, world: &World) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.enter()).arg(cli::executable().get_program());
        command.arg("--config").arg(&world.config).env("NO_COLOR", "1");
        command
    }

    fn run(&self, world: &World) -> Service {
        let mut command = self.pgsluice(world);
        command.arg("run");
        let log: PathBuf = world.dir().join("run-elsewhere.log");
        Service::spawn(command, log, &[])
    }
}

/// Drops packets from pgsluice to the port, and returns the command that undoes this.
fn drop_packets(port: u16) -> String {
    let chain = "add chain inet faults input { type filter hook input priority 0 ; }";
    let rule = format!("add rule inet faults input iifname near tcp dport {port} drop");
    let nft = ["add table inet faults", chain, &rule]
        .iter()
        .try_for_each(|line| tried("nft", &line.split(' ').collect::<Vec<_>>()));
    if nft.is_ok() {
        return "nft delete table inet faults".to_owned();
    }
    let rule = format!("INPUT -i near -p tcp --dport {port} -j DROP");
    let iptables = format!("-A {rule}");
    if tried("iptables", &iptables.split(' ').collect::<Vec<_>>()).is_ok() {
        return format!("iptables -D {rule}");
    }
    loudly(
        "NOT a true firewall here, neither nft nor iptables works: answers are sent into a black hole instead",
    );
    done("ip route add blackhole 10.77.1.2/32");
    "ip route del blackhole 10.77.1.2/32".to_owned()
}

/// Configures the publisher by an address of the other network and the target by its socket.
fn point_elsewhere(world: &mut World) {
    let (publisher, target) = (world.publisher.port, world.target.port);
    let socket = world.target_server().directory().display().to_string();
    let config = std::fs::read_to_string(&world.config).unwrap();
    let seconds = CONNECT_TIMEOUT.as_secs();
    let config = config
        .replace(
            &format!("host=127.0.0.1 port={publisher}"),
            &format!("connect_timeout={seconds} host={PUBLISHER} port={publisher}"),
        )
        .replace(&format!("host=127.0.0.1 port={target}"), &format!("host={socket} port={target}"));
    std::fs::write(&world.config, config).unwrap();
}

async fn inside() {
    done("ip link set lo up");
    done(&format!("ip addr add {PUBLISHER}/32 dev lo"));
    // Listening on all addresses is safe, because the namespace has only its own.
    let mut world = World::builder()
        .servers(Servers::Separate)
        .publisher_setting("listen_addresses", "*")
        .both_sql(WIDGETS)
        .start()
        .await;
    let line = format!("host all {PUBLISHER_ROLE} 10.77.1.2/32 scram-sha-256");
    world.publisher_server().set_hba(&[&line]).unwrap();
    world.publisher_server().reload().unwrap();
    point_elsewhere(&mut world);
    let elsewhere = Elsewhere::new().await;
    let service = elsewhere.run(&world);

    let (checked, _) = elsewhere.check(&world).await;
    assert_eq!((named(&checked), checked.outcome.code), (vec![1], 3), "{:#}", checked.json);
    insta::assert_snapshot!(told(&world, &checked, 1), @r"
    there is no route to 10.77.2.1:PORT: the network is unreachable
    Network is unreachable (os error 101)
    put both servers on one (private) network, or add the route
    ");
    wait_same(&world, &checked, 1, "retrying", "route").await;
    assert_said_once(&service, "no route to").await;
    elsewhere.done(&format!("ip route add {PUBLISHER}/32 via 10.77.1.1"));
    world.wait_state("streaming").await;

    let undo = drop_packets(world.publisher.port);
    let (checked, took) = elsewhere.check(&world).await;
    assert_eq!((named(&checked), checked.outcome.code), (vec![5], 3), "{:#}", checked.json);
    assert!(took >= CONNECT_TIMEOUT && took < CONNECT_TIMEOUT + SLACK, "{took:?}");
    insta::assert_snapshot!(told(&world, &checked, 5), @r"
    10.77.2.1:PORT did not answer within 2 s: packets vanish on the way

    let the firewalls on the way (and the cloud's security groups) pass TCP port PORT, and check that both servers are on one (private) network
    ");
    cut_off(&world).await;
    wait_same(&world, &checked, 5, "retrying", "port").await;
    assert_said_once(&service, "packets vanish").await;
    done(&undo);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO widgets (name) VALUES ('Hammer')").await;
    world.wait_same_rows("widgets").await;
    let (checked, _) = elsewhere.check(&world).await;
    assert_eq!((named(&checked), checked.outcome.code), (Vec::new(), 0), "{:#}", checked.json);
    assert_eq!(service.sigterm().await, 0);
}
