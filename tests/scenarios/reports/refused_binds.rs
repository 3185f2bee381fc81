//! Report 2: Windows refuses binds, and Linux says that somebody has the port (WSL#40984, WSL#13696, microk8s#4858).

use std::{io, net::TcpListener};

use wsl_mirror_lab::{
    Docker, DockerOptions, Lab, Transport,
    checks::{OrPanic as _, sh},
    loopback,
    process::{COMMAND_LIMIT, run},
};

use crate::before_and_after_load;

/// Windows' dynamic range, as `netsh int ipv4 show dynamicportrange tcp` has it by default.
const DYNAMIC: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// What `docker run --publish` says.
#[track_caller]
fn docker_run(docker: &Docker, publish: &str) -> Result<(), String> {
    let mut command = docker.client();
    command.args(["run", "--rm", "--detach", "--publish", publish, "wsl-mirror-lab", "lab-helper", "serve"]);
    let finished = run(&mut command, COMMAND_LIMIT).or_panic();
    if finished.status.success() { Ok(()) } else { Err(finished.stderr) }
}

#[test]
fn docker_cannot_publish_a_port_of_windows_dynamic_range() {
    let lab = Lab::builder().refuse_binds(DYNAMIC).build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    before_and_after_load(&lab, |when| {
        let error = docker_run(&docker, "50000:7").unwrap_err();
        assert!(error.contains("address already in use"), "{when}: {error}");
        let sockets = sh(&lab, "ss --tcp --all --numeric --no-header");
        assert!(!sockets.contains(":50000"), "{when}: no Linux program has it: {sockets}");
    });
}

#[test]
fn a_server_cannot_bind_a_port_of_a_windows_program() {
    let lab = Lab::builder().build().unwrap();
    lab.take_port(Transport::Tcp, 8080).unwrap();
    before_and_after_load(&lab, |when| {
        let error = lab.guest().enter(|| TcpListener::bind(loopback(8080))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{when}");
    });
}
