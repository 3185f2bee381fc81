//! What the README shows people who look inside with bpftool.

use wsl_mirror_lab::{
    Lab,
    checks::{STEER, ok, sh},
    loopback, pins, servers, tcp,
};

use crate::{
    bpf,
    guest::{exempt_ports, is_steered, ours, published},
};

#[test]
fn maps_are_readable_by_name() {
    let lab = Lab::builder().configuration(STEER).build().unwrap();
    ok(&lab, &["load"]);
    ok(&lab, &["exempt", "add", "8080/tcp"]);
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(tcp::Client::new(lab.windows(), loopback(8100)).echo(b"hello"), Ok(b"hello".to_vec()));
    for (map, words) in [
        ("SETTINGS", ["\"mark\": 128", "\"ifindex\": "]),
        ("PORT_POLICY", ["\"port\": 8080", "\"cli\": 1"]),
        ("VERDICTS", ["\"steer_new\": 1", "\"pass_exempt\": 0"]),
        ("OWNERS", ["\"uid\": 0", "\"policy\": 2"]),
        ("PORT_STATS", ["\"port\": 8100", "\"steered_flows\": 1"]),
        ("SETTINGS", ["\"alias\": [127,119,0,1", "\"carrying\": 1"]),
    ] {
        let dump = sh(&lab, &format!("bpftool map dump pinned {}", pins::path(map)));
        for word in words {
            assert!(dump.contains(word), "no {word} in {map}:\n{dump}");
        }
    }
    let (program, _) = ours(&lab);
    let shown = sh(&lab, &format!("bpftool prog show pinned {}", pins::path("program")));
    assert!(shown.starts_with(&format!("{program}: sched_cls  name wsl_mirror  tag ")), "{shown}");
    // How old ever bpftool is, it lists the link; 7.1 has no name for its type.
    if bpf::has_tcx(&lab) {
        let links = sh(&lab, "bpftool link show");
        assert!(links.contains(&format!("prog {program}")), "{links}");
    }
}

#[test]
fn an_exemption_can_be_written_by_hand() {
    let lab = published();
    ok(&lab, &["load"]);
    assert!(is_steered(&lab, 8080));
    let map = pins::path("PORT_POLICY");
    sh(&lab, &format!("bpftool map update pinned {map} key hex 06 00 90 1f value hex 01 00 00 00"));
    assert_eq!(exempt_ports(&lab), ["8080/tcp"]);
    assert!(!is_steered(&lab, 8080));
    ok(&lab, &["exempt", "del", "8080/tcp"]);
    assert!(is_steered(&lab, 8080));
}
