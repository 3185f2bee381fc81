//! The address that this machine shares with Windows on the LAN. With `hostAddressLoopback` (table 128) Linux' own connects to
//! it hang without us; else they reach the listener, and are left alone.

use std::{net::SocketAddr, time::Duration};

use socket2::{SockAddr, Socket};
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    LAN_ADDRESS, Lab,
    checks::{OrPanic as _, wait_until},
    pace,
    process::Background,
    published::machine::{FIRST, Machine, PORT},
    tcp,
};

use crate::world::{HANG, World, ask, assert_container_over, assert_from_first, assert_from_proxy};

fn to() -> SocketAddr {
    (LAN_ADDRESS, PORT).into()
}

/// Whether the published port of the LAN address answers by TCP, in time.
fn answers(world: &World) -> bool {
    let connect = |socket: &Socket| socket.connect_timeout(&SockAddr::from(to()), HANG);
    let socket = world.clients.tcp().or_panic();
    if connect(&socket).is_err() {
        return false;
    }
    socket.set_read_timeout(Some(HANG)).or_panic();
    wsl_mirror_lab::published::who::who_over(&mut socket.into()).is_ok()
}

#[test]
fn the_lan_address_without_table_128_is_left_alone() {
    let world = World::new(Service::Proxy);
    assert!(answers(&world), "without wsl-mirror");
    world.load();
    let agent = agent(&world);
    assert_from_proxy(world.who_at((LAN_ADDRESS, PORT)), "run");
    let (who, from) = ask(&world.clients.udp().or_panic(), to()).or_panic();
    assert_from_proxy::<()>(Ok(who), "run");
    assert_eq!(from, to());
    drop(agent);
}

#[test]
fn the_lan_address_with_table_128_answers_under_run() {
    let world = World::in_lab(Lab::builder().host_address_loopback(true), Service::Holder);
    assert!(!answers(&world), "without wsl-mirror");
    world.load();
    assert!(!answers(&world), "load alone writes no addresses");
    let agent = agent(&world);
    wait_until("the agent to know the address", pace::limit(Duration::from_secs(5)), || answers(&world));
    let mut stream = world.clients.connect((LAN_ADDRESS, PORT)).or_panic();
    assert_container_over(&mut stream, to());
    let (who, from) = ask(&world.clients.udp().or_panic(), to()).or_panic();
    assert_from_first::<()>(Ok(who));
    assert_eq!(from, to());
    assert!(Machine::is_from(FIRST, &who));
    drop(agent);
}

/// `wsl-mirror run`, which keeps the tests' targets: they are of listeners that it does not know.
#[track_caller]
fn agent(world: &World) -> Background {
    let agent = Background::spawn(&mut world.lab().wsl_mirror_command(&["run"]).or_panic()).or_panic();
    wait_until("the agent to steer", tcp::limit() * 5, || agent.output().contains("steering loopback0"));
    world.machine.aim(FIRST);
    agent
}
