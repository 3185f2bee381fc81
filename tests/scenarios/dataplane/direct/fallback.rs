//! A direct flow that nobody answers: the second SYN of the same client leads to docker-proxy, or passes.

use std::time::Duration;

use wsl_mirror_core::abi::{EngineWay, Protocol, Service, Target};
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, nft, windows, windows_udp},
    nat, pace, tcp,
};

use super::{
    machine::{DIRECT, FIRST, Machine, PORT, SECOND},
    who::{who, who_udp},
};
use crate::world::{AT_ONCE, HANG, counted, raw_drop};

/// A SYN is sent again after a second, after two more, after four more.
const TWO_SYNS: Duration = Duration::from_millis(2500);
const SOURCE_ALIAS: &str = "src=192.0.0.8";

/// What a user may write into DOCKER-USER.
#[track_caller]
fn forbid(machine: &Machine, verdict: &str) {
    nft(
        &machine.lab,
        &format!(
            "add table ip user; add chain ip user forward {{ type filter hook forward priority -1; }}; \
             add rule ip user forward iifname loopback0 ip daddr 172.30.0.{FIRST} {verdict}"
        ),
    );
}

#[track_caller]
fn entries(machine: &Machine, fields: &[&str]) -> Vec<String> {
    nat::conntrack_with(machine.lab.guest(), fields).or_panic()
}

#[test]
fn the_second_syn_of_a_dropped_flow_leads_to_docker_proxy() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    forbid(&machine, "drop");
    let client = windows(lab, PORT).from_port(40_000).limit(pace::limit(TWO_SYNS));
    let mut flow = client.connect().or_panic();
    assert!(super::who::who_over(&mut flow).as_ref().is_ok_and(Machine::is_from_proxy));
    assert_eq!((machine.packets("direct_new"), machine.packets("steer_instead")), (1, 1));
    // One flow, one entry: the steered one.
    let of_flow = entries(&machine, &["tcp", "sport=40000", "dport=8080"]);
    assert_eq!(of_flow.len(), 1, "{of_flow:#?}");
    assert!(of_flow[0].contains("src=127.0.0.1 dst=127.119.0.1"), "{of_flow:#?}");
    assert_ne!(machine.read(Protocol::Tcp).unanswered_at, 0);
    // The next flows lose no time.
    for _ in 0..5 {
        let answer = who(&windows(lab, PORT).limit(pace::limit(AT_ONCE)).reset_on_close());
        assert!(answer.as_ref().is_ok_and(Machine::is_from_proxy), "{answer:?}");
    }
    assert_eq!((machine.packets("direct_new"), machine.packets("steer_instead")), (1, 6));
    assert_eq!(tcp::exchange(&mut flow, HELLO), Ok(HELLO.to_vec()));
}

#[test]
fn a_minute_after_an_unanswered_flow_direct_is_tried_again() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let unanswered_at = |at| machine.write(Target { unanswered_at: at, ..machine.target(FIRST) });
    // The minute is over in five seconds.
    unanswered_at(now() - Target::AVOIDED_NS + 5_000_000_000);
    let answer = who(&windows(lab, PORT).reset_on_close());
    assert!(answer.as_ref().is_ok_and(Machine::is_from_proxy), "{answer:?}");
    unanswered_at(now() - Target::AVOIDED_NS);
    let answer = who(&windows(lab, PORT).reset_on_close());
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
}

/// `CLOCK_MONOTONIC` in ns.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A REJECT answers for the container: conntrack counts that for no reply, and Windows repeats a refused SYN.
#[test]
fn a_rejected_flow_leads_to_docker_proxy_with_the_next_syn() {
    for verdict in ["reject", "reject with tcp reset"] {
        let machine = Machine::direct(Service::Proxy);
        let lab = &machine.lab;
        forbid(&machine, verdict);
        let client = windows(lab, PORT).from_port(40_000).limit(pace::limit(TWO_SYNS)).reset_on_close();
        let mut answer = who(&client);
        if answer == Err(tcp::Failure::Refused) {
            assert_eq!(verdict, "reject with tcp reset");
            answer = who(&client);
        }
        assert!(answer.as_ref().is_ok_and(Machine::is_from_proxy), "{verdict}: {answer:?}");
        assert_ne!(machine.read(Protocol::Tcp).unanswered_at, 0, "{verdict}");
        assert_eq!((machine.packets("direct_new"), machine.packets("steer_instead")), (1, 1), "{verdict}");
        assert_eq!(entries(&machine, &[SOURCE_ALIAS]), Vec::<String>::new(), "{verdict}");
    }
}

/// The container itself says no: that is an answer.
#[test]
fn a_containers_own_reset_is_passed_on_at_once() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    machine.write(Target { port: 81, ..machine.target(FIRST) });
    let client = windows(lab, PORT).from_port(40_000).limit(pace::limit(AT_ONCE)).reset_on_close();
    if !lab.is_at_least((6, 2)).or_panic() {
        // Egress looks the flow up there, and conntrack has deleted the entry: the border drops the reset.
        assert_eq!(who(&client), Err(tcp::Failure::ConnectTimedOut));
        assert_eq!(machine.read(Protocol::Tcp).unanswered_at, 0);
        return;
    }
    for round in 0..3 {
        assert_eq!(who(&client), Err(tcp::Failure::Refused), "round {round}");
    }
    assert_eq!(machine.read(Protocol::Tcp).unanswered_at, 0);
    assert_eq!(machine.packets("steer_instead"), 0);
    // Conntrack forgets a flow that a reset refuses.
    assert_eq!((machine.packets("direct_new"), machine.packets("direct_reused")), (3, 0));
    machine.aim(FIRST);
    let answer = who(&client);
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
}

/// A holder never accepts: the engine's own way is left.
#[test]
fn a_holders_unanswered_flow_passes() {
    let machine = Machine::direct(Service::Holder);
    let lab = &machine.lab;
    // The engine's way is open, and marks its flows.
    nft(
        lab,
        &format!(
            "add table ip user; add chain ip user forward {{ type filter hook forward priority -1; }}; \
             add rule ip user forward iifname loopback0 ip saddr 192.0.0.8 ip daddr 172.30.0.{FIRST} drop"
        ),
    );
    let answer = who(&windows(lab, PORT).from_port(40_000).limit(pace::limit(TWO_SYNS)).reset_on_close());
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "by the engine: {answer:?}");
    assert_eq!((machine.packets("direct_new"), machine.packets("pass_unanswered")), (1, 1));
    assert_ne!(machine.read(Protocol::Tcp).unanswered_at, 0);
    assert_eq!(entries(&machine, &[SOURCE_ALIAS]), Vec::<String>::new());
    let answer = who(&windows(lab, PORT).limit(pace::limit(AT_ONCE)).reset_on_close());
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
    assert_eq!((machine.packets("direct_new"), machine.packets("pass_unanswered")), (1, 2));
}

/// Where the engine's rules drop the flow as well, nothing else works: direct is tried again.
#[test]
fn a_holder_under_a_raw_drop_is_tried_all_the_same() {
    let machine = Machine::direct(Service::Holder);
    let lab = &machine.lab;
    raw_drop(lab, "tcp", PORT);
    machine.write(Target { flags: EngineWay::Dropped as u8, ..machine.target(FIRST) });
    forbid(&machine, "drop");
    let answer = who(&windows(lab, PORT).from_port(40_000).limit(pace::limit(HANG * 3)).reset_on_close());
    assert_eq!(answer, Err(tcp::Failure::ConnectTimedOut));
    assert_ne!(machine.read(Protocol::Tcp).unanswered_at, 0);
    // A slow machine waits for more than two.
    assert!(machine.packets("direct_new") >= 2);
    assert_eq!(machine.packets("pass_unanswered"), 0);
    nft(lab, "delete table ip user");
    let answer = who(&windows(lab, PORT).limit(pace::limit(AT_ONCE)).reset_on_close());
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
}

/// A datagram says nothing about the one before it: what a rule drops is lost, as on the way from docker-proxy.
#[test]
fn datagrams_fall_back_never() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    forbid(&machine, "drop");
    let socket = windows_udp(lab, PORT).limit(pace::limit(HANG / 5)).connect().or_panic();
    for _ in 0..3 {
        assert!(super::who::who_from(&socket).is_err());
    }
    assert_eq!(machine.packets("steer_instead"), 0);
    assert_eq!(machine.read(Protocol::Udp).unanswered_at, 0);
    // Another container, which no rule forbids: the same client gets through.
    machine.aim(SECOND);
    let answer = who_udp(&windows_udp(lab, PORT));
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(SECOND, who)), "{answer:?}");
}

/// The container has answered, and its answer was lost: the second SYN is no second try.
#[test]
fn a_slow_container_is_given_the_second_syn() {
    let machine = Machine::new(Service::Proxy);
    machine.load(DIRECT);
    let lab = &machine.lab;
    // The first answer of the container is lost behind conntrack: it has seen the reply.
    nft(
        lab,
        "add table ip user; add counter ip user lost; \
         add chain ip user post { type filter hook postrouting priority 300; }; \
         add rule ip user post oifname loopback0 tcp flags syn,ack / syn,ack limit rate over 1/minute burst 1 packets accept; \
         add rule ip user post oifname loopback0 tcp flags syn,ack / syn,ack counter name lost drop",
    );
    let answer = who(&windows(lab, PORT).limit(pace::limit(TWO_SYNS)).reset_on_close());
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
    assert_eq!(counted(&nft(lab, "list counter ip user lost")), 1);
    assert_eq!((machine.packets("direct_new"), machine.packets("steer_instead")), (1, 0));
}
