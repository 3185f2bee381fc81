//! Exempt ports, from their next flow on.

use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, windows, windows_udp},
    loopback, nat, pins, servers, tcp, udp,
};

use crate::world::{
    Probe, assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, bpftool, exempt, port_packets,
    reset, services,
};

#[test]
fn an_exemption_acts_on_the_next_flow_alone() {
    let lab = services();
    let probe = Probe::new(&lab);
    for port in [40_000, 40_001] {
        probe.add(&format!("seen_{port}"), &format!("th sport {port} th dport 8080"));
        probe.add(
            &format!("unmarked_{port}"),
            &format!("th sport {port} th dport 8080 meta mark & 0x80 == 0"),
        );
    }
    load(&lab);
    let mut connection = windows(&lab, 8080).from_port(40_000).connect().or_panic();
    let datagrams = windows_udp(&lab, 8080).from_port(40_001).connect().or_panic();
    let mut go_on = |when: &str| {
        for _ in 0..3 {
            assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
            assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        }
        for port in [40_000, 40_001] {
            assert!(probe.packets(&format!("seen_{port}")) >= 3);
            let unmarked = probe.packets(&format!("unmarked_{port}"));
            assert_eq!(unmarked, 0, "packets from {port} {when}");
        }
    };
    go_on("when they begin");
    let before = nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic();
    exempt(&lab, "add", "8080");
    go_on("after their port was exempted");
    assert_hangs(&lab, 8080);
    assert_hangs_udp(&lab, 8080);
    assert!(nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic() > before, "Docker's rule has it again");
    assert!(lab.packets("pass_exempt").or_panic() >= 2);
    go_on("after others did not get through");
    exempt(&lab, "del", "8080");
    assert_answers(&lab, 8080);
    assert_answers_udp(&lab, 8080);
    go_on("after the exemption was taken back");
}

#[test]
fn tcp_and_udp_are_exempt_apart_and_ranges_in_one() {
    let lab = services();
    load(&lab);
    exempt(&lab, "add", "8080/tcp");
    assert_hangs(&lab, 8080);
    assert_answers_udp(&lab, 8080);
    assert_answers(&lab, 8081);
    exempt(&lab, "del", "8080/tcp");
    exempt(&lab, "add", "8080-8090/udp");
    for port in [8080, 8081] {
        assert_answers(&lab, port);
        assert_hangs_udp(&lab, port);
    }
    exempt(&lab, "del", "8081/udp");
    assert_hangs_udp(&lab, 8080);
    assert_answers_udp(&lab, 8081);
}

#[test]
fn bpftool_writes_an_exemption_by_bytes() {
    let lab = services();
    load(&lab);
    assert_answers(&lab, 8080);
    let map = format!("pinned {}", pins::path("PORT_POLICY"));
    bpftool(&lab, &format!("map update {map} key hex 06 00 90 1f value hex 01 00 00 00"));
    assert_hangs(&lab, 8080);
    assert_answers_udp(&lab, 8080);
    bpftool(&lab, &format!("map delete {map} key hex 06 00 90 1f"));
    assert_answers(&lab, 8080);
}

#[test]
fn the_command_lines_exemptions_beat_the_configurations() {
    let lab = services();
    load_with(&lab, "exempt = [\"8080/tcp\"]\n");
    assert_hangs(&lab, 8080);
    assert_answers(&lab, 8081);
    // 02: steer.
    let map = format!("pinned {}", pins::path("PORT_POLICY"));
    bpftool(&lab, &format!("map update {map} key hex 06 00 90 1f value hex 02 01 00 00"));
    assert_answers(&lab, 8080);
    load_with(&lab, "owners = [{ name = \"docker-proxy\", policy = \"pass\" }]\n");
    assert_hangs(&lab, 8081);
    assert_answers(&lab, 8080);
    assert!(lab.packets("pass_owner_policy").or_panic() > 0);
}

/// The new flow's conntrack entry may lie where the steered one's lay: the flow must not be taken for it.
#[test]
fn an_exempt_flow_is_not_taken_for_a_carried_one() {
    let lab = Lab::builder().build().or_panic();
    let _tcp = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    let _udp = servers::udp_echo(lab.guest(), loopback(8100)).or_panic();
    let probe = Probe::new(&lab);
    probe.add("marked", "th dport 8100 meta mark & 0x80 != 0");
    load_with(&lab, STEER);
    let ports = 40_000..40_050;
    let everything = || {
        for port in ports.clone() {
            let mut connection = windows(&lab, 8100).from_port(port).connect().or_panic();
            tcp::exchange(&mut connection, HELLO).or_panic();
            reset(&connection).or_panic();
            windows_udp(&lab, 8100).from_port(port).request(HELLO).or_panic();
        }
    };
    everything();
    let marked = probe.packets("marked");
    assert!(marked >= 200, "{marked}");
    // Frees the entries of UDP, which would last for a while.
    nat::conntrack_flush(lab.guest()).or_panic();
    exempt(&lab, "add", "8100");
    for round in 0..3 {
        everything();
        assert_eq!(probe.packets("marked"), marked, "round {round}");
        nat::conntrack_flush(lab.guest()).or_panic();
    }
    for protocol in ["tcp", "udp"] {
        assert_eq!(port_packets(&lab, protocol, 8100, "steered_flows"), 50, "{protocol}");
    }
}
