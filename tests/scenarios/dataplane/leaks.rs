//! The alias stays on this machine, whatever goes wrong; and nothing goes round in circles.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use wsl_mirror_lab::{
    SharedLab,
    checks::{HELLO, OrPanic as _, load, nft, unload, windows, windows_udp},
    loopback, nat, pace, tcp, udp,
};

use crate::world::{
    Side, Watch, assert_answers, assert_answers_udp, assert_hangs, detach, on_alias, services,
};

/// Enough for retransmissions of both ends.
const A_WHILE: Duration = Duration::from_millis(700);

/// Carried flows to the container, in use: a connection and a socket.
struct Flows {
    tcp: std::net::TcpStream,
    udp: UdpSocket,
}

impl Flows {
    #[track_caller]
    fn begin(lab: &SharedLab) -> Self {
        let tcp = windows(lab, 8080).reset_on_close().limit(pace::limit(A_WHILE)).connect().or_panic();
        let udp = windows_udp(lab, 8080).limit(pace::limit(A_WHILE)).connect().or_panic();
        let mut flows = Self { tcp, udp };
        assert_eq!(flows.talk(), [true; 2]);
        assert!(lab.packets("steer_reply").or_panic() >= 3);
        flows
    }

    /// Whether the connection and the socket get an answer.
    fn talk(&mut self) -> [bool; 2] {
        let tcp = tcp::exchange(&mut self.tcp, HELLO).is_ok();
        [tcp, udp::exchange(&self.udp, HELLO).is_ok()]
    }
}

/// Old flows go on, or try to; new ones are tried: with listeners, without, and those of Linux.
#[track_caller]
fn everything(lab: &SharedLab, flows: &mut Flows) {
    flows.talk();
    for port in [8080, 8081, 8199] {
        let _ = windows(lab, port).reset_on_close().limit(A_WHILE / 2).echo(HELLO);
        let _ = windows_udp(lab, port).limit(A_WHILE / 7).request(HELLO);
    }
    let _ = tcp::Client::new(lab.guest(), loopback(8080)).reset_on_close().limit(A_WHILE / 2).echo(HELLO);
    flows.talk();
}

/// Loads, has flows begin, lets the trouble come, and watches what happens then.
#[track_caller]
fn stays_inside(what: &str, trouble: impl FnOnce(&SharedLab)) {
    let lab = services();
    load(&lab);
    let watch = Watch::start(&lab);
    let mut flows = Flows::begin(&lab);
    trouble(&lab);
    everything(&lab, &mut flows);
    watch.never_saw_the_alias(what);
    drop(flows);
}

#[test]
fn without_trouble_the_alias_stays_inside() {
    stays_inside("as usual", |_| ());
}

/// NAT's hooks go with the last nat chain, and nobody runs that would notice.
#[test]
fn after_the_ruleset_is_flushed_the_alias_stays_inside() {
    stays_inside("nft flush ruleset", |lab| {
        nft(lab, "flush ruleset");
    });
}

#[test]
fn with_untracked_packets_the_alias_stays_inside() {
    for (hook, side) in [("prerouting", "iifname"), ("output", "oifname")] {
        stays_inside(hook, |lab| {
            let chain = format!("add chain ip own raw {{ type filter hook {hook} priority raw; }}");
            nft(lab, &format!("add table ip own; {chain}; add rule ip own raw {side} loopback0 notrack"));
        });
    }
}

#[test]
fn flows_with_deleted_entries_go_on_and_the_alias_stays_inside() {
    let lab = services();
    load(&lab);
    let watch = Watch::start(&lab);
    let mut flows = Flows::begin(&lab);
    for _ in 0..3 {
        for protocol in ["tcp", "udp"] {
            // After the first round the connection has an entry on its own tuple.
            let entries = nat::conntrack_with(lab.guest(), &[protocol, "dport=8080", &on_alias()]).or_panic();
            if !entries.is_empty() {
                let arguments = format!("-p {protocol} --orig-dst {} --orig-port-dst 8080", &on_alias()[4..]);
                nat::conntrack_delete(lab.guest(), &arguments).or_panic();
            }
        }
        assert_eq!(flows.talk(), [true; 2]);
    }
    watch.never_saw_the_alias("with deleted entries");
    assert!(lab.packets("pass_picked_up").or_panic() > 0);
    drop(flows);
}

#[test]
fn without_the_ingress_program_the_alias_stays_inside() {
    stays_inside("ingress gone", |lab| detach(lab, Side::Ingress));
}

/// The flows' ends keep sending all the while.
#[test]
fn unload_under_traffic_keeps_the_alias_inside() {
    let lab = services();
    let connection = || windows(&lab, 8080).keep_alive(Duration::from_millis(1)).or_panic();
    for round in 0..pace::rounds(10).max(2) {
        load(&lab);
        let watch = Watch::start(&lab);
        let (socket, stop) = (windows_udp(&lab, 8080).connect().or_panic(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // The answer does not matter.
                    let _ = socket.send(HELLO);
                    thread::sleep(Duration::from_micros(100));
                }
            });
            let busy = connection();
            thread::sleep(Duration::from_millis(50));
            unload(&lab);
            thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            drop(busy.stop());
        });
        watch.never_saw_the_alias(&format!("unload {round}"));
        assert_eq!(nat::conntrack_with(lab.guest(), &[&on_alias()]).or_panic(), Vec::<String>::new());
    }
}

/// Then replies do leave with the alias: Windows drops them or resets them, and nothing goes round.
#[test]
fn without_the_egress_program_replies_leave_and_nothing_loops() {
    let lab = services();
    load(&lab);
    let watch = Watch::start(&lab);
    let mut flows = Flows::begin(&lab);
    watch.never_saw_the_alias("with both programs");
    detach(&lab, Side::Egress);
    assert_eq!(flows.talk(), [false; 2]);
    assert_hangs(&lab, 8081);
    // All that could still be under way.
    thread::sleep(A_WHILE);
    let seen = watch.with_alias();
    let on = |interface: &str| seen.iter().filter(|(nic, _)| *nic == interface).count();
    assert!(on("winlo0") > 0, "replies do leave");
    // Each of the few packets once on either end of the cable, and a retransmission or two.
    assert!(seen.len() < 60, "{} frames: something goes round", seen.len());
    assert_eq!((on("eth0"), on("docker0"), on("winlan0")), (0, 0, 0));
    let later = || watch.with_alias().len();
    let still = (later(), thread::sleep(A_WHILE), later()).2;
    assert!(still < 20, "{still} more frames");
    // A load heals it.
    load(&lab);
    assert_answers(&lab, 8080);
    assert_answers_udp(&lab, 8080);
    unload(&lab);
}
