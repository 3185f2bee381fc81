//! Engines that carry Windows' flows themselves, by DNAT and masquerade: what works without us goes on.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service, loopback, nat, pace,
    process::wait_for,
    raw::{RawSocket, frame_from_windows},
    servers, tcp, udp,
};

use crate::world::{
    HELLO, assert_answers, assert_answers_udp, counted, load, load_for_all, nft, services_in, syn, unload,
    windows, windows_udp,
};

const PAUSE: Duration = Duration::from_millis(5);
/// Until delayed acknowledgements are through too. A flush breaks an engine's TCP flow, with us or without,
/// if the next packet is the container's: its entry then has no translation.
const SILENCE: Duration = Duration::from_millis(100);

/// CNI's portmap: no host socket, a DNAT, and a masquerade for what comes from 127.0.0.1.
#[test]
fn an_engine_without_a_host_socket_keeps_its_own_path() -> Result<()> {
    let lab = Lab::builder().build()?;
    let docker = Docker::start(&lab, &DockerOptions::default())?;
    let container = docker
        .run(Container::new("pod").serve(Service::TcpEcho { port: 7 }).serve(Service::UdpEcho { port: 7 }))?;
    let address = container.address;
    lab.guest().set_sysctls([("net/ipv4/conf/docker0/route_localnet", "1")])?;
    lab.guest().run("iptables", ["-w", "5", "-I", "FORWARD", "-d", &address.to_string(), "-j", "ACCEPT"])?;
    nft(
        &lab,
        &format!(
            "add table ip portmap; \
             add chain ip portmap pre {{ type nat hook prerouting priority dstnat; }}; \
             add chain ip portmap post {{ type nat hook postrouting priority srcnat; }}; \
             add rule ip portmap pre fib daddr type local tcp dport 8300 dnat to {address}:7; \
             add rule ip portmap pre fib daddr type local udp dport 8300 dnat to {address}:7; \
             add rule ip portmap post ip saddr 127.0.0.1 ip daddr {address} masquerade"
        ),
    )?;
    let new_flows_work = || {
        assert_answers(&lab, 8300);
        assert_answers_udp(&lab, 8300);
    };
    new_flows_work();
    let busy = windows(&lab, 8300).keep_alive(PAUSE)?;
    let mut calm = windows(&lab, 8300).connect()?;
    let datagrams = windows_udp(&lab, 8300).connect()?;
    let mut go_on = |when: &str| {
        assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        assert_eq!(tcp::exchange(&mut calm, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
        thread::sleep(SILENCE);
    };
    go_on("before the load");
    load(&lab)?;
    new_flows_work();
    go_on("after the load");
    load(&lab)?;
    go_on("after another load");
    assert_eq!(busy.stop().failure, None);
    nat::conntrack_flush(lab.guest())?;
    go_on("after a flush");
    new_flows_work();
    assert!(lab.packets("pass_no_listener")? > 0 && lab.packets("pass_engine_nat")? > 0);
    unload(&lab)?;
    new_flows_work();
    go_on("after the unload");
    Ok(())
}

/// Datagrams that the container receives and, because of a firewall, cannot answer.
struct OneWay<'a> {
    lab: &'a Lab,
    socket: UdpSocket,
}

impl<'a> OneWay<'a> {
    fn start(lab: &'a Lab, port: u16) -> Result<Self> {
        nft(
            lab,
            "add table ip one_way; add counter ip one_way arrived; \
             add chain ip one_way pre { type filter hook prerouting priority raw; }; \
             add chain ip one_way forward { type filter hook forward priority 10; }; \
             add rule ip one_way pre iifname docker0 udp sport 17 drop; \
             add rule ip one_way forward oifname docker0 udp dport 17 counter name arrived",
        )?;
        Ok(Self { lab, socket: windows_udp(lab, port).connect()? })
    }

    /// That the next datagrams arrive where the flow's first one did.
    fn goes_on(&self, when: &str) -> Result<()> {
        let arrived = || counted(&nft(self.lab, "list counter ip one_way arrived")?);
        for _ in 0..3 {
            let before = arrived()?;
            self.socket.send(HELLO)?;
            wait_for(&format!("a datagram to reach the container {when}"), Duration::from_secs(1), || {
                Ok((arrived()? == before + 1).then_some(()))
            })?;
        }
        Ok(())
    }
}

#[test]
fn established_flows_of_docker_without_its_proxy_survive_load_reload_flush_and_a_stray_syn() -> Result<()> {
    let lab = services_in(Lab::builder(), false)?;
    let busy = windows(&lab, 8080).keep_alive(PAUSE)?;
    let mut calm = windows(&lab, 8080).from_port(40_000).connect()?;
    let datagrams = windows_udp(&lab, 8081).connect()?;
    udp::exchange(&datagrams, HELLO)?;
    let one_way = OneWay::start(&lab, 8017)?;
    let windows_nic = RawSocket::open(lab.windows(), "winlo0")?;
    let mut go_on = |when: &str| -> Result<()> {
        assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        one_way.goes_on(when)?;
        assert_eq!(tcp::exchange(&mut calm, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
        windows_nic.send(&frame_from_windows(&syn(40_000, 8080, 0x1234_5678)))?;
        thread::sleep(SILENCE);
        assert_eq!(tcp::exchange(&mut calm, HELLO), Ok(HELLO.to_vec()), "TCP after a stray SYN {when}");
        thread::sleep(SILENCE);
        Ok(())
    };
    go_on("before the load")?;
    load_for_all(&lab)?;
    go_on("after the load")?;
    load_for_all(&lab)?;
    go_on("after another load")?;
    assert_eq!(busy.stop().failure, None);
    nat::conntrack_flush(lab.guest())?;
    go_on("after a flush")?;
    unload(&lab)?;
    go_on("after the unload")?;
    lab.keep();
    Ok(())
}

/// The first SYN went the engine's way, the container is slow to answer, and meanwhile we are loaded.
#[test]
fn a_handshake_that_an_engine_is_about_to_complete_is_left_to_it() -> Result<()> {
    let lab = services_in(Lab::builder(), false)?;
    nft(
        &lab,
        "add table ip slow; add chain ip slow pre { type filter hook prerouting priority raw; }; \
         add rule ip slow pre iifname docker0 tcp sport 7 drop",
    )?;
    let client = windows(&lab, 8080).limit(pace::limit(Duration::from_secs(10)));
    thread::scope(|scope| {
        let connecting = scope.spawn(|| client.echo(HELLO));
        wait_for("the SYN to be translated", Duration::from_secs(1), || {
            Ok((!nat::conntrack_with(lab.guest(), &["tcp", "dport=8080"])?.is_empty()).then_some(()))
        })?;
        load_for_all(&lab)?;
        // The retransmission, a second after the first SYN, meets the program before the answer can come.
        wait_for("the SYN's retransmission", Duration::from_secs(8), || {
            Ok((lab.packets("pass_engine_nat")? > 0).then_some(()))
        })?;
        nft(&lab, "delete table ip slow")?;
        let answer = connecting.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        assert_eq!(answer, Ok(HELLO.to_vec()));
        lab.keep();
        Ok(())
    })
}

/// A redirection to another local port needs no masquerade to work: an answer tells that it does.
#[test]
fn established_flows_that_a_rule_redirects_to_another_port_stay_there() -> Result<()> {
    let lab = Lab::builder().build()?;
    nft(
        &lab,
        "add table ip mine; add chain ip mine pre { type nat hook prerouting priority dstnat; }; \
         add rule ip mine pre meta l4proto { tcp, udp } th dport 8100 dnat to 127.0.0.1:8200",
    )?;
    // Somebody holds the port that was asked for, and never says a word.
    let _tcp_holder = servers::tcp_holder(lab.guest(), loopback(8100))?;
    let _udp_holder = lab.guest().enter(|| UdpSocket::bind(loopback(8100)))?;
    let _servers = [
        servers::tcp_echo(lab.guest(), (Ipv4Addr::LOCALHOST, 8200))?,
        servers::udp_echo(lab.guest(), (Ipv4Addr::LOCALHOST, 8200))?,
    ];
    let mut connection = windows(&lab, 8100).from_port(40_000).connect()?;
    let datagrams = windows_udp(&lab, 8100).connect()?;
    let mut go_on = |when: &str| {
        assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
    };
    go_on("before the load");
    load_for_all(&lab)?;
    go_on("after the load");
    RawSocket::open(lab.windows(), "winlo0")?.send(&frame_from_windows(&syn(40_000, 8100, 0x1234_5678)))?;
    thread::sleep(Duration::from_millis(50));
    go_on("after a stray SYN");
    assert!(lab.packets("pass_engine_nat")? >= 3);
    Ok(())
}

/// Such as a log that is sent and never answered: that no answer came does not mean that it cannot work.
#[test]
fn one_way_flows_that_a_rule_redirects_to_another_port_stay_there() -> Result<()> {
    let lab = Lab::builder().build()?;
    nft(
        &lab,
        "add table ip mine; add chain ip mine pre { type nat hook prerouting priority dstnat; }; \
         add rule ip mine pre udp dport 8100 dnat to 127.0.0.1:8200",
    )?;
    let _holder = lab.guest().enter(|| UdpSocket::bind(loopback(8100)))?;
    let sink = lab.guest().enter(|| UdpSocket::bind(loopback(8200)))?;
    sink.set_read_timeout(Some(pace::limit(Duration::from_secs(1))))?;
    let log = windows_udp(&lab, 8100).connect()?;
    let arrives = |when: &str| -> Result<()> {
        log.send(HELLO)?;
        let mut buffer = [0; 64];
        let length = sink.recv(&mut buffer).with_context(|| format!("receiving {when}"))?;
        assert_eq!(&buffer[..length], HELLO, "{when}");
        Ok(())
    };
    arrives("before the load")?;
    load_for_all(&lab)?;
    for _ in 0..3 {
        arrives("after the load")?;
    }
    assert_eq!(lab.packets("steer_healed")?, 0);
    Ok(())
}
