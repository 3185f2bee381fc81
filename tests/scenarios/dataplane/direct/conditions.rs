//! A direct flow begins only if the kernel forwards it, and its replies, now. Else docker-proxy gets it.

use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    BRIDGE, HalfMade,
    checks::{OrPanic as _, sh, windows, windows_udp},
    nat, pace, udp,
};

use super::{
    machine::{DIRECT, FIRST, Machine, PORT},
    who::{Who, who, who_udp},
};
use crate::world::AT_ONCE;

type Answers = (Result<Who, wsl_mirror_lab::tcp::Failure>, Result<Who, udp::Failure>);

#[track_caller]
fn next(machine: &Machine) -> Answers {
    let limit = pace::limit(AT_ONCE);
    nat::conntrack_flush(machine.lab.guest()).or_panic();
    (
        who(&windows(&machine.lab, PORT).limit(limit).reset_on_close()),
        who_udp(&windows_udp(&machine.lab, PORT).limit(limit)),
    )
}

#[track_caller]
fn assert_direct(machine: &Machine, when: &str) {
    let (tcp, udp) = next(machine);
    assert!(tcp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{when}: {tcp:?}");
    assert!(udp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{when}: {udp:?}");
}

#[track_caller]
fn assert_steered(machine: &Machine, when: &str) {
    let before = machine.packets("steer_instead");
    let (tcp, udp) = next(machine);
    assert!(tcp.as_ref().is_ok_and(Machine::is_from_proxy), "{when}: {tcp:?}");
    assert!(udp.as_ref().is_ok_and(Machine::is_from_proxy), "{when}: {udp:?}");
    assert_eq!(machine.packets("steer_instead"), before + 2, "{when}");
}

#[test]
fn without_forwarding_flows_are_steered() {
    let machine = Machine::direct(Service::Proxy);
    assert_direct(&machine, "at first");
    for interface in ["loopback0", BRIDGE] {
        let name = format!("net/ipv4/conf/{interface}/forwarding");
        machine.lab.guest().set_sysctls([(name.as_str(), "0")]).or_panic();
        assert_steered(&machine, interface);
        machine.lab.guest().set_sysctls([(name.as_str(), "1")]).or_panic();
        assert_direct(&machine, interface);
    }
}

#[test]
fn without_the_source_aliass_route_flows_are_steered() {
    let machine = Machine::direct(Service::Proxy);
    sh(&machine.lab, "ip route del 192.0.0.8 table 127");
    assert_steered(&machine, "the route is gone");
    machine.load(DIRECT);
    assert_direct(&machine, "the next load has made it");
}

/// One brings flows past the blackhole, the other one is the blackhole: without it containers forge packets of live flows.
#[test]
fn without_the_source_aliass_rules_flows_are_steered() {
    let machine = Machine::direct(Service::Proxy);
    for rule in ["from 192.0.0.8 iif loopback0", "from 192.0.0.8 type blackhole"] {
        sh(&machine.lab, &format!("ip rule del {rule}"));
        assert_steered(&machine, rule);
        machine.load(DIRECT);
        assert_direct(&machine, "the next load has made the rule");
    }
}

/// The kernel removes the routes by a link that goes down. WSL makes its own again, the next load makes ours.
#[test]
fn after_a_link_was_down_flows_are_steered_until_the_next_load() {
    let machine = Machine::direct(Service::Proxy);
    sh(&machine.lab, "ip link set loopback0 down; ip link set loopback0 up");
    machine.lab.complete_network(HalfMade::NoTable127).or_panic();
    assert_steered(&machine, "the link was down");
    machine.load(DIRECT);
    assert_direct(&machine, "the next load");
}

/// Another interface than the target says, or none that leads there.
#[test]
fn a_container_that_is_routed_elsewhere_is_never_direct() {
    let machine = Machine::direct(Service::Proxy);
    for route in ["blackhole 172.30.0.3", "172.30.0.3 via 192.168.50.1 dev eth0"] {
        sh(&machine.lab, &format!("ip route add {route}"));
        assert_steered(&machine, route);
        sh(&machine.lab, "ip route del 172.30.0.3");
        assert_direct(&machine, "again");
    }
}

/// A holder's flow passes: the engine's own rules have it.
#[test]
fn an_unreachable_holders_flow_passes() {
    let machine = Machine::direct(Service::Holder);
    assert_direct(&machine, "at first");
    sh(&machine.lab, "ip route del 192.0.0.8 table 127");
    let before = machine.packets("pass_unreachable");
    assert_direct(&machine, "by the engine");
    assert_eq!(machine.packets("pass_unreachable"), before + 2);
    assert_eq!(machine.packets("direct_new"), 2);
}

/// The other way round nothing is too long.
#[test]
fn a_smaller_mtu_than_the_bridges_is_no_hindrance() {
    let machine = Machine::direct(Service::Proxy);
    sh(&machine.lab, "ip link set loopback0 mtu 1400");
    assert_direct(&machine, "loopback0 has the smaller one");
    sh(&machine.lab, &format!("ip link set loopback0 mtu 1500; ip link set {BRIDGE} mtu 1400"));
    let (_, udp) = next(&machine);
    assert!(udp.as_ref().is_ok_and(Machine::is_from_proxy), "{udp:?}");
    sh(&machine.lab, &format!("ip link set {BRIDGE} mtu 1500"));
    assert_direct(&machine, "they have the same");
}
