//! `skb->mark`: which packets carry our bits, and which bits.

use anyhow::Context as _;
use wsl_mirror_core::abi::DEFAULT_MARK;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{HELLO, OrPanic as _, STEER, ifindex, load, load_with, nft, windows, windows_udp},
    loopback, pins, servers, tcp, udp,
};

use crate::world::{PAGE, Probe, bpftool, counted, read_to_the_end, services, syn};

/// Counts packets from Windows to the published ports, and among them those with any other mark than exactly this.
#[track_caller]
fn probe<'a>(lab: &'a Lab, mark: &str) -> Probe<'a> {
    let probe = Probe::new(lab);
    for protocol in ["tcp", "udp"] {
        probe.add(&format!("{protocol}_seen"), &format!("{protocol} dport 8000-8999"));
        probe
            .add(&format!("{protocol}_unmarked"), &format!("{protocol} dport 8000-8999 meta mark != {mark}"));
    }
    probe.add("others_marked", "th dport != 8000-8999 meta mark != 0");
    probe
}

#[track_caller]
fn every_packet_is_marked(lab: &Lab, probe: &Probe<'_>) {
    let before = probe.packets("tcp_seen");
    assert_eq!(windows(lab, 8080).echo(HELLO), Ok(HELLO.to_vec()));
    assert_eq!(read_to_the_end(&mut windows(lab, 8019).connect().or_panic()).or_panic(), PAGE);
    windows(lab, 8009).upload(1 << 20).or_panic();
    let datagrams = windows_udp(lab, 8080).connect().or_panic();
    for _ in 0..5 {
        udp::exchange(&datagrams, HELLO).or_panic();
    }
    assert!(probe.packets("tcp_seen") > before + 20 && probe.packets("udp_seen") >= 5);
    for protocol in ["tcp", "udp"] {
        let unmarked = probe.packets(&format!("{protocol}_unmarked"));
        assert_eq!(unmarked, 0, "{protocol}: {:#}", lab.status().or_panic()["verdicts"]);
    }
}

#[test]
fn packets_of_carried_flows_and_no_others_have_the_mark() {
    let lab = services();
    let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).or_panic();
    let probe = probe(&lab, "0x80");
    load(&lab);
    every_packet_is_marked(&lab, &probe);
    assert_eq!(tcp::Client::new(lab.guest(), loopback(9100)).echo(HELLO), Ok(HELLO.to_vec()));
    assert_eq!(probe.packets("others_marked"), 0);
}

/// A process's reply may carry the mark of what it answers (`tcp_fwmark_accept`); that is not ours to set.
#[test]
fn replies_carry_no_mark() {
    let lab = services();
    load(&lab);
    let ruleset = "add table ip replies; add counter ip replies seen; add counter ip replies marked; \
         add chain ip replies out { type filter hook postrouting priority 200; }; \
         add rule ip replies out oifname loopback0 counter name seen; \
         add rule ip replies out oifname loopback0 meta mark & 0x80 != 0 counter name marked";
    nft(&lab, ruleset);
    assert_eq!(windows(&lab, 8080).echo(HELLO), Ok(HELLO.to_vec()));
    let counted = |name: &str| counted(&nft(&lab, &format!("list counter ip replies {name}")));
    assert!(counted("seen") >= 3);
    assert_eq!(counted("marked"), 0);
}

/// It is there for rules, for tcpdump and for people.
#[test]
fn nothing_depends_on_the_mark() {
    let lab = services();
    let wipe = "add table ip wipe; add chain ip wipe in { type filter hook prerouting priority -350; }; \
         add rule ip wipe in iifname loopback0 meta mark set 0";
    nft(&lab, wipe);
    load(&lab);
    let probe = Probe::new(&lab);
    probe.add("marked", "meta mark != 0");
    for _ in 0..3 {
        assert_eq!(windows(&lab, 8080).echo(HELLO), Ok(HELLO.to_vec()));
        assert_eq!(windows_udp(&lab, 8081).request(HELLO), Ok(HELLO.to_vec()));
    }
    assert_eq!(probe.packets("marked"), 0);
}

#[test]
fn the_configuration_chooses_the_bits() {
    let lab = services();
    let probe = probe(&lab, "0x60000");
    load_with(&lab, "mark = 0x60000\n");
    every_packet_is_marked(&lab, &probe);
}

/// Nothing in front of tc sets a mark on a packet that has just come in but other tc programs, so the packet
/// is handed to the program by `BPF_PROG_TEST_RUN`.
#[test]
fn bits_that_were_set_before_stay() {
    const OTHERS: u32 = 0x00ff_2f01;
    let lab = Lab::builder().build().or_panic();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    load_with(&lab, STEER);
    let ifindex = ifindex(lab.guest(), "loopback0");
    for (port, expected) in [(8100, OTHERS | DEFAULT_MARK), (8101, OTHERS)] {
        // struct __sk_buff: mark is its third word, ingress_ifindex the tenth, ifindex the eleventh.
        let mut context = vec![0; 192];
        context[8..12].copy_from_slice(&OTHERS.to_ne_bytes());
        context[36..40].copy_from_slice(&ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let frame = wsl_mirror_lab::raw::frame_from_windows(&syn(40_000, port, 1));
        lab.guest()
            .enter(|| {
                std::fs::write(format!("{SCRATCH}/frame"), frame).or_panic();
                std::fs::write(format!("{SCRATCH}/context"), context)
            })
            .or_panic();
        bpftool(
            &lab,
            &format!(
                "prog run pinned {} data_in {SCRATCH}/frame data_out {SCRATCH}/out \
                 ctx_in {SCRATCH}/context ctx_out {SCRATCH}/context_out",
                pins::path("program")
            ),
        );
        let after = lab.guest().enter(|| std::fs::read(format!("{SCRATCH}/context_out"))).or_panic();
        let mark = after.get(8..12).context("a context without a mark").or_panic();
        assert_eq!(mark, expected.to_ne_bytes(), "port {port}: {mark:x?}");
    }
}
