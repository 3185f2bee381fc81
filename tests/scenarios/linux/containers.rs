//! Real engines: `load` and `run` find the container behind a port, and Linux' clients of it reach it.

use std::{env, net::SocketAddr, path::PathBuf, time::Duration};

use socket2::SockAddr;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, NetworkBackend, Podman, PodmanOptions, Service,
    checks::{OrPanic as _, load, unload, wait_until},
    clients::Clients,
    loopback, pace,
    process::Background,
    published::who::{Who, who_over},
    tcp,
};

use crate::world::{HANG, ask, who_at};

/// The number of the container's services.
const NUMBER: u64 = 5;
/// On every address, and on 127.0.0.1.
const PORTS: [u16; 2] = [8080, 8081];
/// A TCP echo service.
const ECHO: u16 = 8082;

fn container() -> Container {
    Container::new("named")
        .serve(Service::TcpNamed { port: 7, number: NUMBER })
        .serve(Service::UdpNamed { port: 7, number: NUMBER })
        .serve(Service::TcpEcho { port: 9 })
        .publish("8080:7")
        .publish("8080:7/udp")
        .publish("127.0.0.1:8081:7")
        .publish("127.0.0.1:8081:7/udp")
        .publish("8082:9")
}

/// Whether each port answers by TCP and UDP, in time.
fn answers(clients: &Clients) -> Vec<(u16, bool, bool)> {
    let by_tcp = |port| {
        let socket = clients.tcp().ok()?;
        socket.connect_timeout(&SockAddr::from(loopback(port)), HANG).ok()?;
        socket.set_read_timeout(Some(HANG)).ok()?;
        who_over(&mut socket.into()).ok()
    };
    let by_udp = |port| {
        let socket = clients.udp().ok()?;
        socket.set_read_timeout(Some(HANG)).ok()?;
        let to = SocketAddr::from(loopback(port));
        ask(&socket, to).ok().filter(|(_, from)| *from == to)
    };
    let is_ours = |who: &Who| who.number == NUMBER;
    PORTS
        .map(|port| {
            (
                port,
                by_tcp(port).is_some_and(|who| is_ours(&who)),
                by_udp(port).is_some_and(|(who, _)| is_ours(&who)),
            )
        })
        .to_vec()
}

const ALL: [(u16, bool, bool); 2] = [(PORTS[0], true, true), (PORTS[1], true, true)];
const NONE: [(u16, bool, bool); 2] = [(PORTS[0], false, false), (PORTS[1], false, false)];

/// A Docker without its proxy, and its container.
#[track_caller]
fn docker() -> (Lab, Docker, wsl_mirror_lab::Running) {
    let lab = Lab::builder().build().or_panic();
    let options = DockerOptions { userland_proxy: false, ..DockerOptions::default() };
    let docker = Docker::start(&lab, &options).or_panic();
    let running = docker.run(container()).or_panic();
    (lab, docker, running)
}

/// moby#53553: without docker-proxy no Linux client is answered in mirrored mode.
#[test]
fn dockers_ports_without_proxy_answer_with_us_alone() {
    let (lab, docker, running) = docker();
    let clients = Clients::new(&lab).or_panic();
    assert_eq!(answers(&clients), NONE, "without wsl-mirror");
    load(&lab);
    assert_eq!(answers(&clients), ALL, "with it");

    // A paused container's kernel accepts, and its program answers once it goes on.
    docker.cli(&["pause", running.name()]).or_panic().success().or_panic();
    let mut stream = clients.connect(loopback(8080)).or_panic();
    stream.set_read_timeout(Some(Duration::from_millis(100))).or_panic();
    assert!(who_over(&mut stream).is_err(), "paused");
    docker.cli(&["unpause", running.name()]).or_panic().success().or_panic();
    stream.set_read_timeout(Some(tcp::limit())).or_panic();
    assert_eq!(who_over(&mut stream).map(|who| who.number), Ok(NUMBER), "unpaused");

    unload(&lab);
    assert_eq!(answers(&clients), NONE, "after unload");
}

/// A container that is started again gets another listener, and maybe another address: `run` sees both.
#[test]
fn a_container_that_is_started_again_answers_its_next_client() {
    let (lab, docker, running) = docker();
    let clients = Clients::new(&lab).or_panic();
    let agent = Background::spawn(&mut lab.wsl_mirror_command(&["run"]).or_panic()).or_panic();
    wait_until("the agent to know the container", pace::limit(Duration::from_secs(10)), || {
        answers(&clients) == ALL
    });
    // Another container takes the old address meanwhile.
    docker.stop(&running).or_panic();
    let other = docker.run(Container::new("other").serve(Service::TcpEcho { port: 7 })).or_panic();
    assert_eq!(other.address, running.address);
    let again = docker.start_again(&running).or_panic();
    assert_ne!(again.address, running.address);
    wait_until("the container's new address", pace::limit(Duration::from_secs(5)), || {
        answers(&clients) == ALL
    });
    drop(agent);
}

/// A client in `--network host` is a client of the guest's; one in a container of its own network is not.
#[test]
fn a_client_in_the_hosts_network_is_connected_to_the_container() {
    let (lab, docker, _running) = docker();
    let ask = |network: &str, address: &str| {
        let name = format!("--network={network}");
        let finished = docker.cli(&[
            "run",
            "--rm",
            &name,
            "wsl-mirror-lab",
            "lab-helper",
            "ask",
            "tcp-echo",
            address,
            "700",
        ]);
        finished.is_ok_and(|finished| finished.status.success())
    };
    let published = loopback(ECHO).to_string();
    assert!(!ask("host", &published), "without wsl-mirror");
    load(&lab);
    assert!(ask("host", &published), "with it");
    assert!(!ask("bridge", &published), "127.0.0.1 is the other container's own");
    assert_eq!(who_at(&Clients::new(&lab).or_panic(), loopback(8080)).map(|who| who.number), Ok(NUMBER));
}

/// WSL#13868: Linux clients of Podman's ports.
#[test]
fn podmans_ports_hang_without_us_and_answer_with_us() {
    let Some(root) = podman_root() else { return println!("skipped: Podman cannot be had") };
    let lab = Lab::builder().build().or_panic();
    let podman = Podman::start(&lab, &PodmanOptions { root, network: NetworkBackend::Netavark }).or_panic();
    podman.run(container()).or_panic();
    let clients = Clients::new(&lab).or_panic();
    assert_eq!(answers(&clients), NONE, "without wsl-mirror");
    load(&lab);
    assert_eq!(answers(&clients), ALL, "with it");
}

/// The folder that `cargo xtask test` makes for Debian's Podman.
fn podman_root() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let folder = set("WSL_MIRROR_ENGINES").or_else(|| Some(cache?.join("wsl-mirror/engines")))?;
    ["trixie", "sid"]
        .into_iter()
        .map(|suite| folder.join(suite).join("root"))
        .find(|root| root.join("usr/bin/podman").exists())
}
