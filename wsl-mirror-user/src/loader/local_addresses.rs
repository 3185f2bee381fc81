//! This machine's LAN addresses whose Linux clients are translated: `run` writes them into `LOCAL_ADDRESSES`.
//!
//! With `hostAddressLoopback` WSL routes them over Windows by table 128, and Linux' connects to them hang there. Elsewhere such
//! connects work, and are left alone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use wsl_mirror_core::abi::LocalAddresses;

use super::{maps, pins};
use crate::host::routing::{Route, Routing};

/// The table that WSL makes for `hostAddressLoopback`.
const TABLE: u32 = 128;
/// The prefix length of a single address.
const SINGLE: u8 = 32;
/// How long an entry counts: an agent that was killed takes none away. The agent looks twice a minute.
const VALIDITY: Duration = Duration::from_secs(150);

/// Writes these addresses in the place of those before.
pub fn write(addresses: &BTreeSet<[u8; 4]>) -> Result<()> {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec.try_into().unwrap_or_default());
    maps::LOCAL_ADDRESSES.pinned()?.set(value(addresses, now))
}

/// Removes all of them.
pub fn clear() -> Result<()> {
    if !pins::path(maps::LOCAL_ADDRESSES.name()).exists() {
        return Ok(());
    }
    maps::LOCAL_ADDRESSES.pinned()?.set(LocalAddresses::default())
}

/// The addresses of this machine to which table 128 has a route of their own.
pub fn of(routing: &Routing) -> BTreeSet<[u8; 4]> {
    let routed = routing.routes.iter().filter(|route| route.table() == TABLE).map(Route::destination);
    let single = routed.filter(|(_, length)| *length == SINGLE).map(|(address, _)| address);
    let is_ours = |address: &_| routing.addresses.iter().any(|(ours, _)| ours == address);
    single
        .filter(|address| !address.is_loopback() && is_ours(address))
        .map(|address| address.octets())
        .collect()
}

/// The map's value. It has room for some addresses; clients of the others are left alone.
fn value(addresses: &BTreeSet<[u8; 4]>, now: Duration) -> LocalAddresses {
    let until = u64::try_from((now + VALIDITY).as_nanos()).unwrap_or(u64::MAX);
    let mut value = LocalAddresses { until, ..LocalAddresses::default() };
    for (place, address) in value.addresses.iter_mut().zip(addresses) {
        *place = *address;
    }
    value
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

    use super::*;

    const LAN: [u8; 4] = [192, 168, 50, 10];

    fn route(table: u8, destination: [u8; 4], length: u8) -> Route {
        let mut message = RouteMessage::default();
        message.header.table = table;
        message.header.destination_prefix_length = length;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(destination.into()))];
        Route(message)
    }

    fn found(routes: Vec<Route>) -> Vec<[u8; 4]> {
        let addresses = [[127, 0, 0, 1], LAN, [10, 0, 0, 7]].map(|address| (Ipv4Addr::from(address), 2));
        of(&Routing { routes, addresses: addresses.to_vec(), ..Routing::default() }).into_iter().collect()
    }

    #[test]
    fn an_address_counts_if_table_128_routes_it_alone() {
        assert_eq!(found(vec![route(128, LAN, 32)]), [LAN]);
        for (other, why) in [
            (route(254, LAN, 32), "another table"),
            (route(128, LAN, 31), "a network"),
            (route(128, [192, 168, 50, 11], 32), "another machine's"),
            (route(128, [127, 0, 0, 1], 32), "of 127.0.0.0/8, which counts in any case"),
        ] {
            assert_eq!(found(vec![other]), Vec::<[u8; 4]>::new(), "{why}");
        }
    }

    #[test]
    fn addresses_count_for_a_while_as_far_as_there_is_room() {
        let one = value(&BTreeSet::from([LAN]), Duration::from_secs(1));
        assert_eq!((one.until, one.addresses[..2].to_vec()), (151_000_000_000, vec![LAN, [0; 4]]));
        let many: BTreeSet<_> = (1..=9).map(|last| [10, 0, 0, last]).collect();
        assert_eq!(value(&many, Duration::ZERO).addresses.last(), Some(&[10, 0, 0, 8]));
    }
}
