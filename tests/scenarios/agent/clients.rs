//! Linux' own clients: hooks of UDP follow targets, and this machine's LAN addresses follow its routes.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use aya::maps::{Array, Map, MapData};
use rustix::{
    process::Signal,
    time::{ClockId, clock_gettime},
};
use wsl_mirror_core::abi::LocalAddresses;
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, load, sh},
    lab_sockets, pins,
    sockets::{PROXY, proxy_arguments},
};

use crate::guest::{Agent, soon};

/// Nobody answers there.
const CONTAINER: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 29, 0, 2), 80);

#[test]
fn hooks_of_udp_are_there_before_the_first_target() {
    let lab = Lab::builder().build().or_panic();
    sh(&lab, "ip link add br9 type bridge; ip addr add 172.29.0.1/16 dev br9; ip link set br9 up");
    let agent = Agent::start(&lab, "steering loopback0");
    let is_attached = || lab.guest().enter(|| Path::new(&pins::path("link_sendmsg4")).exists());
    assert!(!is_attached());
    let guest = |program: &str| lab.guest().command(program);
    let mut proxy = lab_sockets!(&lab, command guest, PROXY, proxy_arguments("udp", 8082, CONTAINER));
    proxy.tell("bind u udp 0.0.0.0:8082").or_panic();
    soon("a target", || proxy.tell("target u").or_panic() != "none");
    assert!(is_attached());
    proxy.tell("close u").or_panic();
    // A reload looks at everything, as the agent does twice a minute.
    agent.0.signal(Signal::HUP).or_panic();
    soon("the end of UDP's hooks", || !is_attached());
}

/// The addresses whose clients are translated, each with the seconds for which it counts.
#[track_caller]
fn addresses(lab: &Lab) -> BTreeMap<Ipv4Addr, u64> {
    let map = lab.guest().enter(|| MapData::from_pin(pins::path("LOCAL_ADDRESSES"))).or_panic();
    let map: Array<_, LocalAddresses> = Map::Array(map).try_into().or_panic();
    let LocalAddresses { until, addresses } = map.get(&0, 0).or_panic();
    let now = clock_gettime(ClockId::Monotonic).tv_sec.cast_unsigned();
    let counts = (until / 1_000_000_000).saturating_sub(now);
    let written = addresses.into_iter().filter(|address| *address != [0; 4]);
    written.map(|address| (address.into(), counts)).collect()
}

#[test]
fn lan_addresses_count_while_an_agent_and_their_route_are_there() {
    let lab = Lab::builder().host_address_loopback(true).build().or_panic();
    let lan = lab.lan_address();
    load(&lab);
    assert_eq!(addresses(&lab), BTreeMap::new(), "a load alone could not take them away again");
    let agent = Agent::start(&lab, "steering loopback0");
    let found = addresses(&lab);
    assert!(found.len() == 1 && (100..=150).contains(&found[&lan]), "{found:?}");
    let route = sh(&lab, "ip route show table 128");
    sh(&lab, "ip route flush table 128");
    soon("the end of the address", || addresses(&lab).is_empty());
    sh(&lab, &format!("ip route add {} table 128", route.trim()));
    soon("the address again", || addresses(&lab).contains_key(&lan));
    agent.end();
    assert_eq!(addresses(&lab), BTreeMap::new());
}
