//! Which connection is closed when there are too many: the rule by which a new one always gets a place.
//!
//! A connection that waits in the backlog cannot be told from a health check, so nothing waits there: every
//! connection is accepted, and if that is one too many, another one is closed. Load balancers and container runtimes
//! ask from any address, also from the one that the slow clients have. So an address that has reached its own bound
//! closes connections of its own, the quietest first. The last places are out of reach of any single address.
//!
//! The listener owns the list; connections tell their progress and are told to end through their [`Place`].

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

/// Largest number of connections.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// Largest number of connections of one address; the other places are for other addresses. It is larger than the
/// number of connections that are accepted before a request that has come is read.
pub(super) const CONNECTIONS_PER_ADDRESS_MAX: usize = 96;

/// The connections that have a place.
#[derive(Debug)]
pub(super) struct Places {
    began: Instant,
    taken: Vec<Weak<Place>>,
}

/// A connection's place. It is free once the connection has dropped it.
#[derive(Debug)]
pub(super) struct Place {
    began: Instant,
    client: Client,
    is_answered: AtomicBool,
    /// When it last got on, milliseconds since `began`.
    got_on_ms: AtomicU64,
    is_lost: AtomicBool,
    connection: AtomicWaker,
}

/// Whose connection it is: an IPv4 address, or the network of an IPv6 address, because one machine has all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Client(IpAddr);

impl Client {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }
}

/// What the rule knows of a connection.
#[derive(Debug, Clone, Copy)]
struct Seen {
    client: Client,
    /// Whether a request is being answered. The others have sent no whole request head since their last answer.
    is_answered: bool,
    got_on_ms: u64,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), taken: Vec::with_capacity(CONNECTIONS_MAX) }
    }

    /// Returns a place for a new connection, and closes another connection if there are too many.
    pub(super) fn take(&mut self, address: IpAddr) -> Arc<Place> {
        let client = Client::of(address);
        let held: Vec<_> =
            self.taken.iter().filter_map(Weak::upgrade).filter(|place| !place.is_lost()).collect();
        let seen: Vec<_> = held.iter().map(|place| place.seen()).collect();
        let loser = to_close(&seen, client);
        if let Some(loser) = loser.and_then(|index| held.get(index)) {
            loser.lose();
        }
        let place = Arc::new(Place {
            began: self.began,
            client,
            is_answered: AtomicBool::new(false),
            got_on_ms: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
            connection: AtomicWaker::new(),
        });
        place.note();
        let kept = held.iter().filter(|place| !place.is_lost()).chain([&place]);
        self.taken = kept.map(Arc::downgrade).collect();
        place
    }
}

/// Returns the connection that a new one of `client` takes the place of, if all places are taken.
fn to_close(seen: &[Seen], client: Client) -> Option<usize> {
    let count = |of: Client| seen.iter().filter(|other| other.client == of).count();
    let of = if count(client) >= CONNECTIONS_PER_ADDRESS_MAX {
        client
    } else if seen.len() >= CONNECTIONS_MAX {
        seen.iter().map(|one| one.client).max_by_key(|&of| count(of))?
    } else {
        return None;
    };
    let of_client = seen.iter().enumerate().filter(|(_, one)| one.client == of);
    Some(of_client.min_by_key(|(_, one)| (one.is_answered, one.got_on_ms))?.0)
}

impl Place {
    /// Notes that a whole request head has come.
    pub(super) fn asked(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
        self.note();
    }

    /// Notes that something of the answer was sent.
    pub(super) fn answered(&self) {
        self.is_answered.store(false, Ordering::Relaxed);
        self.note();
    }

    /// Fails once the place has been given to another connection; wakes `waker` when that happens.
    pub(super) fn check(&self, waker: &Waker) -> io::Result<()> {
        self.connection.register(waker);
        if self.is_lost() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn note(&self) {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.got_on_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Ends the connection.
    pub(super) fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
        self.connection.wake();
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    fn seen(&self) -> Seen {
        Seen {
            client: self.client,
            is_answered: self.is_answered.load(Ordering::Relaxed),
            got_on_ms: self.got_on_ms.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: &str = "192.0.2.1";
    const OTHER: &str = "192.0.2.2";

    fn client(address: &str) -> Client {
        Client::of(address.parse().unwrap())
    }

    /// `count` connections of one address, the quietest first.
    fn seen(count: usize, address: &str) -> Vec<Seen> {
        (0..count as u64)
            .map(|got_on_ms| Seen { client: client(address), is_answered: false, got_on_ms })
            .collect()
    }

    #[test]
    fn an_address_that_has_too_many_closes_its_own() {
        let mut held = seen(CONNECTIONS_PER_ADDRESS_MAX, SLOW);
        assert_eq!(to_close(&held, client(OTHER)), None, "there are places for others");
        assert_eq!(to_close(&held, client(SLOW)), Some(0));
        held[0].is_answered = true;
        assert_eq!(to_close(&held, client(SLOW)), Some(1), "what is being answered stays");
        for one in &mut held {
            one.is_answered = true;
        }
        assert_eq!(to_close(&held, client(SLOW)), Some(0));
    }

    #[test]
    fn if_all_places_are_taken_the_address_with_most_closes_one() {
        let mut held = seen(CONNECTIONS_MAX - CONNECTIONS_PER_ADDRESS_MAX, OTHER);
        let own = held.len();
        held.extend(seen(CONNECTIONS_PER_ADDRESS_MAX, SLOW));
        assert_eq!(to_close(&held, client(OTHER)), Some(own));
        assert_eq!(to_close(&held, client("192.0.2.3")), Some(own));
        held.pop();
        assert_eq!(to_close(&held, client(OTHER)), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client(SLOW));
    }

    #[test]
    fn a_place_is_free_once_it_is_dropped() {
        let mut places = Places::new();
        let address: IpAddr = SLOW.parse().unwrap();
        let held: Vec<_> = (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| places.take(address)).collect();
        assert!(held.iter().all(|place| !place.is_lost()));
        let one_more = places.take(address);
        assert_eq!(held.iter().filter(|place| place.is_lost()).count(), 1);
        drop((held, one_more));
        let again: Vec<_> = (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| places.take(address)).collect();
        assert!(again.iter().all(|place| !place.is_lost()));
        assert!(places.taken.len() <= CONNECTIONS_MAX);
    }
}
