//! Sockets that were bound or handed on, until it is known what serves them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::host::sockets::Served;

/// How long a noted socket may take to serve: dockerd binds, writes the rules of all ports, and listens then.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long no engine may hold a socket that serves. docker-proxy is told of when it takes a socket over.
const PATIENCE_SERVING: Duration = Duration::from_millis(100);
/// More than these are not kept: then all sockets count as noted once.
const MAX: usize = 100_000;

/// The noted sockets.
#[derive(Debug, Default)]
pub struct Noted {
    /// When a socket was noted last, by cookie.
    sockets: BTreeMap<u64, Instant>,
    /// Whether there are others that nobody could tell of.
    pub are_lost: bool,
}

impl Noted {
    /// Notes sockets.
    pub fn note(&mut self, cookies: &[u64], now: Instant) {
        self.sockets.extend(cookies.iter().map(|cookie| (*cookie, now)));
        if self.sockets.len() > MAX {
            self.sockets.clear();
            self.are_lost = true;
        }
    }

    /// Whether the socket was noted.
    pub fn contains(&self, cookie: u64) -> bool {
        self.sockets.contains_key(&cookie)
    }

    /// Forgets a socket: it is known what serves it.
    pub fn forget(&mut self, cookie: u64) {
        self.sockets.remove(&cookie);
    }

    /// A look at these sockets, which serve, has ended: those that nobody is going to serve are forgotten.
    pub fn age(&mut self, now: Instant, served: &BTreeMap<u64, Served>) {
        self.are_lost = false;
        self.sockets.retain(|cookie, noted| {
            let patience = if served.contains_key(cookie) { PATIENCE_SERVING } else { PATIENCE };
            now.duration_since(*noted) < patience
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use wsl_mirror_core::abi::Protocol;

    fn served(cookie: u64) -> BTreeMap<u64, Served> {
        let address = Ipv4Addr::LOCALHOST.into();
        let socket = Served { protocol: Protocol::Tcp, address, port: 80, inode: 1, cookie };
        BTreeMap::from([(cookie, socket)])
    }

    #[test]
    fn a_socket_that_serves_is_soon_forgotten_and_another_later() {
        let (mut noted, now) = (Noted::default(), Instant::now());
        noted.note(&[1, 2], now);
        noted.age(now + PATIENCE_SERVING / 2, &served(1));
        assert!(noted.contains(1) && noted.contains(2));
        noted.age(now + PATIENCE_SERVING, &served(1));
        assert!(!noted.contains(1) && noted.contains(2));
        noted.note(&[2], now + PATIENCE / 2);
        noted.age(now + PATIENCE, &served(1));
        assert!(noted.contains(2), "it was told of again");
        noted.age(now + PATIENCE * 3 / 2, &served(1));
        assert!(!noted.contains(2));
    }

    #[test]
    fn too_many_sockets_count_as_lost_for_one_look() {
        let (mut noted, now) = (Noted::default(), Instant::now());
        noted.note(&(0..=100_000).collect::<Vec<_>>(), now);
        assert!(noted.are_lost && !noted.contains(5));
        noted.age(now, &BTreeMap::new());
        assert!(!noted.are_lost);
    }
}
