//! The switch and the alias in SETTINGS: what the loader decides for all flows.

use anyhow::Context as _;
use wsl_mirror_core::abi::{Carrying, Settings};
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, windows, windows_udp},
    loopback, nat, pins, servers, tcp, udp,
};

use crate::world::{
    assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, bpftool, caught, engine_rule,
    on_alias,
};

/// An echo service behind an engine's rules.
#[track_caller]
fn behind_an_engine() -> (Lab, [servers::Server; 2]) {
    let lab = Lab::builder().build().or_panic();
    for protocol in ["tcp", "udp"] {
        engine_rule(&lab, protocol, 8100);
    }
    let servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).or_panic(),
        servers::udp_echo(lab.guest(), loopback(8100)).or_panic(),
    ];
    (lab, servers)
}

/// Writes four bytes of SETTINGS, as somebody with bpftool would.
#[track_caller]
fn set(lab: &Lab, offset: usize, bytes: [u8; 4]) {
    let map = format!("pinned {}", pins::path("SETTINGS"));
    // -j: the bytes as an array of strings, "0x00".
    let shown = bpftool(lab, &format!("-j map lookup {map} key 0 0 0 0"));
    let shown: serde_json::Value = serde_json::from_str(&shown).or_panic();
    let shown = shown["value"].as_array().context("no bytes").or_panic().clone();
    let mut value: Vec<u8> = shown
        .iter()
        .map(|byte| u8::from_str_radix(byte.as_str().unwrap_or_default().trim_start_matches("0x"), 16))
        .collect::<Result<_, _>>()
        .or_panic();
    assert_eq!(value.len(), size_of::<Settings>());
    value[offset..offset + 4].copy_from_slice(&bytes);
    let value: Vec<_> = value.iter().map(|byte| format!("{byte:02x}")).collect();
    bpftool(lab, &format!("map update {map} key 0 0 0 0 value hex {}", value.join(" ")));
}

#[test]
fn with_carrying_off_every_packet_passes() {
    let (lab, _servers) = behind_an_engine();
    load_with(&lab, STEER);
    let mut connection = windows(&lab, 8100).connect().or_panic();
    let socket = windows_udp(&lab, 8100).connect().or_panic();
    assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()));
    assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    let (steered, before) = (lab.packets("steer_new").or_panic(), caught(&lab));
    let at = std::mem::offset_of!(Settings, carrying);
    set(&lab, at, (Carrying::Off as u32).to_ne_bytes());
    assert_hangs(&lab, 8100);
    assert_hangs_udp(&lab, 8100);
    assert!(caught(&lab) >= before + 2, "the engine's rules have them again");
    assert!(lab.packets("pass_not_carrying").or_panic() >= 2);
    assert_eq!(lab.packets("steer_new").or_panic(), steered);
    // A connection of before waits, for the switch or for its end.
    set(&lab, at, (Carrying::On as u32).to_ne_bytes());
    connection.set_read_timeout(Some(tcp::limit())).or_panic();
    assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()), "it goes on");
    assert_answers(&lab, 8100);
    assert_answers_udp(&lab, 8100);
}

/// Numbers that this build does not know mean Off, and a layout that is not ours means that nobody has written yet.
#[test]
fn with_settings_of_another_build_every_packet_passes() {
    let (lab, _servers) = behind_an_engine();
    load_with(&lab, STEER);
    assert_answers(&lab, 8100);
    set(&lab, std::mem::offset_of!(Settings, carrying), 7_u32.to_ne_bytes());
    assert_hangs(&lab, 8100);
    set(&lab, std::mem::offset_of!(Settings, carrying), (Carrying::On as u32).to_ne_bytes());
    assert_answers(&lab, 8100);
    set(&lab, std::mem::offset_of!(Settings, layout), 99_u32.to_ne_bytes());
    assert_hangs(&lab, 8100);
}

#[test]
fn another_alias_carries_flows_as_well() {
    for (alias, how) in [([127, 200, 3, 4], "config"), ([127, 0, 0, 2], "map")] {
        let (lab, _servers) = behind_an_engine();
        let text = alias.map(|byte| byte.to_string()).join(".");
        if how == "config" {
            load_with(&lab, &format!("{STEER}alias = \"{text}\"\n"));
        } else {
            load_with(&lab, STEER);
            set(&lab, std::mem::offset_of!(Settings, alias), alias);
        }
        assert_answers(&lab, 8100);
        assert_answers_udp(&lab, 8100);
        for protocol in ["tcp", "udp"] {
            let on_this = format!("dst={text}");
            let entries = nat::conntrack_with(lab.guest(), &[protocol, &on_this, "dport=8100"]).or_panic();
            assert_eq!(entries.len(), 1, "{how}: {entries:#?}");
            assert!(nat::conntrack_with(lab.guest(), &[protocol, &on_alias()]).or_panic().is_empty());
        }
        assert_eq!(caught(&lab), 0);
    }
}
