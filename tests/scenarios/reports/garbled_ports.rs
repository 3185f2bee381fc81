//! Report 1: TCP packets arrive on `loopback0` with another destination port (WSL#41137, WSL#40343, WSL#41102,
//! WSL#10855, WSL#12269, WSL#13327).

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Garbled, Lab, Service,
    checks::{OrPanic as _, load},
    loopback, servers,
};

use crate::{HANGS, REFUSED, Seen, before_and_after_load, from_linux, from_windows};

/// What users report while Windows garbles all packets of these kinds: of Windows to Linux, Linux to Linux, Linux to
/// Windows, and Linux to a port that nobody has.
#[track_caller]
fn check(kinds: &[Garbled], seen: &[Seen; 4]) {
    let build = || {
        let lab = Lab::builder().garbles(kinds, 1000).build()?;
        let servers = [
            servers::tcp_echo(lab.guest(), loopback(8100))?,
            servers::tcp_echo(lab.windows(), loopback(9100))?,
        ];
        anyhow::Ok((lab, servers))
    };
    let (lab, _servers) = build().or_panic();
    before_and_after_load(&lab, |when| {
        let now = [
            from_windows(&lab, 8100),
            from_linux(&lab, 8100),
            from_linux(&lab, 9100),
            from_linux(&lab, 9101),
        ];
        assert_eq!(&now, seen, "{when}");
    });
}

#[test]
fn windows_hangs_while_syns_are_garbled() {
    check(&[Garbled::Syn], &[HANGS, HANGS, Ok(()), REFUSED]);
}

#[test]
fn linux_clients_hang_while_syn_acks_are_garbled() {
    check(&[Garbled::SynAck], &[Ok(()), HANGS, HANGS, REFUSED]);
}

/// Closed ports take two minutes instead of an error at once.
#[test]
fn closed_ports_hang_while_resets_are_garbled() {
    check(&[Garbled::Rst], &[Ok(()), Ok(()), Ok(()), HANGS]);
}

#[test]
fn a_published_port_hangs_for_windows_although_it_is_steered() {
    let lab = Lab::builder().build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    docker.run(Container::new("web").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
    load(&lab);
    assert_eq!(from_windows(&lab, 8080), Ok(()), "steered");
    lab.garble(&Garbled::ALL, 1000).unwrap();
    assert_eq!(from_windows(&lab, 8080), HANGS);
}
