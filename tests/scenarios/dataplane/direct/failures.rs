//! A direct entry that cannot be made: the flow is steered, or passes.

use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows, windows_udp},
    nat, pace, tcp,
};

use super::{
    machine::{FIRST, Machine, PORT},
    who::{who, who_udp},
};
use crate::world::AT_ONCE;

/// An entry whose replies would have the direct flow's addresses: nobody's but a test's.
#[track_caller]
fn occupy(machine: &Machine, protocol: &str, port: u16) {
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    let tuple =
        format!("-p {protocol} -s 127.119.0.1 -d 192.0.0.8 --sport {PORT} --dport {port} -t 100 {state}");
    nat::conntrack_insert(machine.lab.guest(), &tuple).or_panic();
}

#[test]
fn a_flow_whose_direct_entry_cannot_be_made_is_steered() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    for protocol in ["tcp", "udp"] {
        occupy(&machine, protocol, 40_000);
    }
    let tcp = who(&windows(lab, PORT).from_port(40_000).limit(pace::limit(AT_ONCE)).reset_on_close());
    assert!(tcp.as_ref().is_ok_and(Machine::is_from_proxy), "{tcp:?}");
    let udp = who_udp(&windows_udp(lab, PORT).from_port(40_000));
    assert!(udp.as_ref().is_ok_and(Machine::is_from_proxy), "{udp:?}");
    assert_eq!((machine.packets("steer_instead"), machine.packets("direct_new")), (2, 0));
    // Others are direct.
    let tcp = who(&windows(lab, PORT).limit(pace::limit(AT_ONCE)).reset_on_close());
    assert!(tcp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{tcp:?}");
}

#[test]
fn a_holders_flow_whose_direct_entry_cannot_be_made_passes() {
    let machine = Machine::direct(Service::Holder);
    let lab = &machine.lab;
    occupy(&machine, "tcp", 40_000);
    let tcp = who(&windows(lab, PORT).from_port(40_000).limit(pace::limit(AT_ONCE)).reset_on_close());
    assert!(tcp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "by the engine: {tcp:?}");
    assert_eq!((machine.packets("failed_insert"), machine.packets("direct_new")), (1, 0));
}

/// On a port with earlier direct flows the program looks first: an entry that carries no flow expires.
#[test]
fn a_stray_entry_in_a_direct_flows_place_is_replaced() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    assert_eq!(windows(lab, PORT).echo(HELLO), Ok(HELLO.to_vec()));
    assert_eq!(windows_udp(lab, PORT).request(HELLO), Ok(HELLO.to_vec()));
    for (protocol, states) in [("tcp", ["ESTABLISHED", "SYN_SENT", "CLOSE"].as_slice()), ("udp", &[""])] {
        for state in states {
            let state = if state.is_empty() { String::new() } else { format!("--state {state}") };
            let tuple = format!(
                "-p {protocol} -s 192.0.0.8 -d 127.119.0.1 --sport 40000 --dport {PORT} -t 100 {state}"
            );
            nat::conntrack_insert(lab.guest(), &tuple).or_panic();
            let from = if protocol == "tcp" {
                let client =
                    windows(lab, PORT).from_port(40_000).limit(pace::limit(AT_ONCE)).reset_on_close();
                who(&client).map_err(|failure: tcp::Failure| failure.to_string())
            } else {
                who_udp(&windows_udp(lab, PORT).from_port(40_000)).map_err(|failure| failure.to_string())
            };
            assert!(
                from.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)),
                "{protocol} {state}: {from:?}"
            );
            nat::conntrack_flush(lab.guest()).or_panic();
        }
    }
    assert_eq!(machine.packets("steer_instead"), 0);
}
