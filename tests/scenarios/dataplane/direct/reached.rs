//! Real engines' ports: who answers, and which client the container sees.

use std::{env, fs, net::Ipv4Addr, path::PathBuf};

use wsl_mirror_core::abi::Service as Holds;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, LabBuilder, Service, SharedLab,
    checks::{OrPanic as _, load_with, ok, unload, windows, windows_udp},
};

use super::{
    machine::DIRECT,
    who::{Who, who, who_udp},
};
use crate::world::{assert_hangs, assert_hangs_udp, raw_drop, services_in};

/// Published on any address and on 127.0.0.1, TCP and UDP.
const PORTS: [u16; 2] = [8080, 8081];
const NUMBER: u64 = 7;

/// Docker with a container that says who it is.
#[track_caller]
fn named(holds: Holds) -> SharedLab {
    let options = DockerOptions { userland_proxy: holds == Holds::Proxy, ..DockerOptions::default() };
    named_by(Lab::builder(), &options)
}

#[track_caller]
fn named_by(lab: LabBuilder, options: &DockerOptions) -> SharedLab {
    let container = Container::new("named")
        .serve(Service::TcpNamed { port: 80, number: NUMBER })
        .serve(Service::UdpNamed { port: 80, number: NUMBER })
        .publish("8080:80")
        .publish("127.0.0.1:8081:80")
        .publish("8080:80/udp")
        .publish("127.0.0.1:8081:80/udp");
    SharedLab::take(lab, options, container).or_panic()
}

/// The clients that the container sees, TCP and UDP on each port.
#[track_caller]
fn clients(lab: &Lab, when: &str) -> Vec<Ipv4Addr> {
    let mut clients = Vec::new();
    for port in PORTS {
        let tcp = who(&windows(lab, port).reset_on_close());
        let udp = who_udp(&windows_udp(lab, port));
        for answer in [tcp.map_err(|failure| failure.to_string()), udp.map_err(|failure| failure.to_string())]
        {
            match answer {
                Ok(Who { number: NUMBER, client }) => clients.push(*client.ip()),
                answer => panic!("{when}, port {port}: {answer:?}"),
            }
        }
    }
    clients
}

#[test]
fn a_container_sees_the_client_that_docker_proxy_is() {
    let lab = named(Holds::Proxy);
    for port in PORTS {
        assert_hangs(&lab, port);
        assert_hangs_udp(&lab, port);
    }
    load_with(&lab, "path = \"proxy\"\n");
    let by_proxy = clients(&lab, "through docker-proxy");
    assert_eq!((lab.packets("steer_new").or_panic(), lab.packets("direct_new").or_panic()), (4, 0));
    load_with(&lab, DIRECT);
    assert_eq!(clients(&lab, "directly"), by_proxy);
    assert_eq!((lab.packets("steer_new").or_panic(), lab.packets("direct_new").or_panic()), (4, 4));
    assert!(lab.packets("direct_reply").or_panic() >= 4);
    // By the command line, for single ports.
    load_with(&lab, "");
    ok(&lab, &["policy", "set", "8080", "8081/udp", "direct"]);
    assert_eq!(clients(&lab, "by policies"), by_proxy);
    assert_eq!((lab.packets("steer_new").or_panic(), lab.packets("direct_new").or_panic()), (5, 7));
    unload(&lab);
    assert_hangs(&lab, 8080);
}

/// Docker without its proxy: the engine's own way works, and Docker 28's raw rules would close it on 127.0.0.1.
#[test]
fn a_holders_container_sees_the_same_client_under_a_raw_drop() {
    let lab = named(Holds::Holder);
    let by_engine = clients(&lab, "without us");
    load_with(&lab, "");
    assert_eq!(clients(&lab, "path auto"), by_engine);
    assert_eq!((lab.packets("pass_holder").or_panic(), lab.packets("direct_new").or_panic()), (4, 0));
    load_with(&lab, DIRECT);
    assert_eq!(clients(&lab, "path direct"), by_engine);
    assert_eq!(lab.packets("direct_new").or_panic(), 4);
    for protocol in ["tcp", "udp"] {
        raw_drop(&lab, protocol, 8081);
    }
    unload(&lab);
    assert_hangs(&lab, 8081);
    assert_hangs_udp(&lab, 8081);
    load_with(&lab, "");
    assert_eq!(clients(&lab, "path auto under the drop"), by_engine);
    assert_eq!((lab.packets("pass_holder").or_panic(), lab.packets("direct_new").or_panic()), (2, 2));
}

/// Docker 28's own rules, where a folder with that release is.
#[test]
fn docker_28_without_its_proxy_is_direct_where_it_drops() {
    let Some(root) = docker_28() else {
        println!("skipped: no folder with Docker 28 (`cargo xtask test engines --all` makes it)");
        return;
    };
    let options = DockerOptions { userland_proxy: false, root: Some(root), ..DockerOptions::default() };
    // With WSL's own program in sight this release leaves WSL's ports alone.
    let lab = named_by(Lab::builder().wslinfo(false), &options);
    assert_hangs(&lab, 8081);
    assert_hangs_udp(&lab, 8081);
    load_with(&lab, "");
    let by_engine = clients(&lab, "path auto");
    assert_eq!((lab.packets("pass_holder").or_panic(), lab.packets("direct_new").or_panic()), (2, 2));
    load_with(&lab, DIRECT);
    assert_eq!(clients(&lab, "path direct"), by_engine);
    assert_eq!(lab.packets("direct_new").or_panic(), 6);
}

/// As `xtask/src/engines/cache.rs` has it.
fn docker_28() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("WSL_MIRROR_ENGINES").or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
        Some(cache.join("wsl-mirror/engines"))
    })?;
    let manifest = fs::read_to_string(folder.join("sid/manifest")).ok()?;
    let is_28 = manifest.lines().any(|line| line.starts_with("docker.io 28."));
    is_28.then(|| folder.join("sid/root")).filter(|root| root.is_dir())
}

/// Docker gives its containers the bridge's MTU: TCP agrees on segments that fit. Of a datagram that does not, nobody tells
/// the client: the source alias gets the ICMP error.
#[test]
fn over_a_bridge_with_a_smaller_mtu_only_tcp_is_direct() {
    const BYTES: u64 = 8 << 20;
    let options = DockerOptions {
        extra_args: ["--mtu", "1400"].map(str::to_owned).to_vec(),
        ..DockerOptions::default()
    };
    let lab = services_in(Lab::builder(), &options);
    load_with(&lab, DIRECT);
    windows(&lab, 8080).echo_stream(BYTES).or_panic();
    assert_eq!(lab.packets("direct_new").or_panic(), 1);
    for length in [1, 1373, 1472, 9000] {
        let payload = vec![7; length];
        assert_eq!(windows_udp(&lab, 8080).request(&payload), Ok(payload));
    }
    assert_eq!((lab.packets("direct_new").or_panic(), lab.packets("steer_instead").or_panic()), (1, 4));
}
