//! Report 7: a remedy of older days is still there, and replies to Windows never leave (WSL#14063).

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service,
    checks::{load, sh},
    loopback, servers,
};

use crate::{HANGS, assert_status_says_steering, before_and_after_load, from_linux, from_windows};

/// The rule, as threads recommend it.
const REMEDY: &str = "ip rule add pref 0 to 127.0.0.0/8 lookup local";

#[test]
fn an_older_remedy_makes_every_port_hang_for_windows() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(from_windows(&lab, 8100), Ok(()), "without the rule");
    sh(&lab, REMEDY);
    before_and_after_load(&lab, |when| {
        assert_eq!(from_windows(&lab, 8100), HANGS, "{when}: Windows");
        assert_eq!(from_linux(&lab, 8100), Ok(()), "{when}: Linux");
    });
}

#[test]
fn status_says_steering_although_windows_hangs() {
    let lab = Lab::builder().build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    docker.run(Container::new("web").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
    load(&lab);
    assert_eq!(from_windows(&lab, 8080), Ok(()), "without the rule");
    sh(&lab, REMEDY);
    assert_eq!(from_windows(&lab, 8080), HANGS);
    assert_status_says_steering(&lab);
}
