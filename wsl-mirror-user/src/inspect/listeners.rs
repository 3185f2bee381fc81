//! Listeners with and without a container behind them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;
use wsl_mirror_core::abi::{PortKey, Target};

use crate::loader::listeners;
use crate::loader::maps::SocketTargets;

/// A socket that serves, and the target on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Its port.
    pub key: PortKey,
    /// The address that it is bound to.
    pub address: IpAddr,
    /// Its target, if it has one.
    pub target: Option<Target>,
    /// For how long direct flows are avoided from now on, since one was found unanswered.
    pub avoided: Option<Duration>,
}

impl Listener {
    /// Reads all of them, in order.
    pub fn read_all(map: &SocketTargets) -> Result<Vec<Self>> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec.try_into().unwrap_or_default());
        let mut all: Vec<Self> = listeners::targets(map)?
            .into_iter()
            .map(|(socket, target)| Self {
                key: PortKey::new(socket.protocol, socket.port),
                address: socket.address,
                avoided: target.and_then(|target| avoided(&target, now)),
                target,
            })
            .collect();
        all.sort();
        Ok(all)
    }

    /// Whether clients on 127.0.0.1 may find it.
    pub fn is_on_localhost(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => address.is_unspecified() || address == Ipv4Addr::LOCALHOST,
            IpAddr::V6(address) => {
                address.is_unspecified() || address.to_ipv4_mapped() == Some(Ipv4Addr::LOCALHOST)
            }
        }
    }
}

fn avoided(target: &Target, now: Duration) -> Option<Duration> {
    let noted = Duration::from_nanos(target.unanswered_at);
    let left = (noted + Duration::from_nanos(Target::AVOIDED_NS)).checked_sub(now)?;
    (target.unanswered_at != 0 && !left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_avoided_for_the_rest_of_a_minute() {
        let second = Duration::from_secs;
        let target = Target { unanswered_at: 5_000_000_000, ..Target::default() };
        assert_eq!(avoided(&target, second(5)), Some(second(60)));
        assert_eq!(avoided(&target, second(23)), Some(second(42)));
        assert_eq!(avoided(&target, second(65)), None);
        assert_eq!(avoided(&target, second(100)), None);
        assert_eq!(avoided(&Target::default(), second(5)), None, "never");
    }
}
