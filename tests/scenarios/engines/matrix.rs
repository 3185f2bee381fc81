//! One test for each row of the matrix. What the default run leaves out runs with `cargo xtask test engines --all`.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::Context as _;
use serde_json::Value;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab,
    NetworkBackend::{Cni, Netavark},
    Podman, PodmanOptions, Running as Published, Service,
    checks::{HELLO, OrPanic as _, load, load_with, unload, wait_until},
    pace,
    process::{Background, COMMAND_LIMIT},
};

use super::{
    cells::{Bound, Client, Columns, Phase, Server},
    configuration::{
        Configuration, DOCKER_20_10, DOCKER_26_1, DOCKER_28_5, Engine,
        Loopback0::{AfterDockerd, BeforeDockerd},
        PODMAN_4_3, PODMAN_5_4, PODMAN_5_8,
        Proxy::{Off, On},
        Wslinfo::{Absent, Present},
    },
    installed::{self, Installed},
    measure::{self, Services},
    promises::{self, Leniency},
    results,
    world::HANG,
};

/// Declares a test for each row, with the attribute in front of the rows. The test names its file of results.
macro_rules! rows {
    ($($name:ident: $engine:ident($($option:expr),*);)*) => {
        $(
            #[test]
            fn $name() {
                check_row(stringify!($name), &Configuration::$engine($($option),*));
            }
        )*
    };
    (#$attribute:tt $($name:ident: $engine:ident($($option:expr),*);)*) => {
        $(
            #[test]
            #$attribute
            fn $name() {
                check_row(stringify!($name), &Configuration::$engine($($option),*));
            }
        )*
    };
}

rows! {
    docker_20_10_proxy_on_wslinfo_present_loopback0_first: docker(DOCKER_20_10, On, Present, BeforeDockerd);
    docker_20_10_proxy_on_wslinfo_present_loopback0_late: docker(DOCKER_20_10, On, Present, AfterDockerd);
    docker_20_10_proxy_on_wslinfo_absent_loopback0_first: docker(DOCKER_20_10, On, Absent, BeforeDockerd);
    docker_20_10_proxy_on_wslinfo_absent_loopback0_late: docker(DOCKER_20_10, On, Absent, AfterDockerd);
    docker_20_10_proxy_off_wslinfo_present_loopback0_first: docker(DOCKER_20_10, Off, Present, BeforeDockerd);
    docker_20_10_proxy_off_wslinfo_present_loopback0_late: docker(DOCKER_20_10, Off, Present, AfterDockerd);
    docker_20_10_proxy_off_wslinfo_absent_loopback0_first: docker(DOCKER_20_10, Off, Absent, BeforeDockerd);
    docker_20_10_proxy_off_wslinfo_absent_loopback0_late: docker(DOCKER_20_10, Off, Absent, AfterDockerd);
    docker_28_5_proxy_on_wslinfo_present_loopback0_first: docker(DOCKER_28_5, On, Present, BeforeDockerd);
    docker_28_5_proxy_on_wslinfo_present_loopback0_late: docker(DOCKER_28_5, On, Present, AfterDockerd);
    docker_28_5_proxy_on_wslinfo_absent_loopback0_first: docker(DOCKER_28_5, On, Absent, BeforeDockerd);
    docker_28_5_proxy_on_wslinfo_absent_loopback0_late: docker(DOCKER_28_5, On, Absent, AfterDockerd);
    docker_28_5_proxy_off_wslinfo_present_loopback0_first: docker(DOCKER_28_5, Off, Present, BeforeDockerd);
    docker_28_5_proxy_off_wslinfo_present_loopback0_late: docker(DOCKER_28_5, Off, Present, AfterDockerd);
    docker_28_5_proxy_off_wslinfo_absent_loopback0_first: docker(DOCKER_28_5, Off, Absent, BeforeDockerd);
    docker_28_5_proxy_off_wslinfo_absent_loopback0_late: docker(DOCKER_28_5, Off, Absent, AfterDockerd);
    podman_5_8_netavark: podman(PODMAN_5_8, Netavark);
}

rows! {
    #[ignore = "runs with `cargo xtask test engines --all`"]
    docker_26_1_proxy_on_wslinfo_present_loopback0_first: docker(DOCKER_26_1, On, Present, BeforeDockerd);
    docker_26_1_proxy_on_wslinfo_present_loopback0_late: docker(DOCKER_26_1, On, Present, AfterDockerd);
    docker_26_1_proxy_on_wslinfo_absent_loopback0_first: docker(DOCKER_26_1, On, Absent, BeforeDockerd);
    docker_26_1_proxy_on_wslinfo_absent_loopback0_late: docker(DOCKER_26_1, On, Absent, AfterDockerd);
    docker_26_1_proxy_off_wslinfo_present_loopback0_first: docker(DOCKER_26_1, Off, Present, BeforeDockerd);
    docker_26_1_proxy_off_wslinfo_present_loopback0_late: docker(DOCKER_26_1, Off, Present, AfterDockerd);
    docker_26_1_proxy_off_wslinfo_absent_loopback0_first: docker(DOCKER_26_1, Off, Absent, BeforeDockerd);
    docker_26_1_proxy_off_wslinfo_absent_loopback0_late: docker(DOCKER_26_1, Off, Absent, AfterDockerd);
    podman_4_3_netavark: podman(PODMAN_4_3, Netavark);
    podman_4_3_cni_portmap: podman(PODMAN_4_3, Cni);
    podman_5_4_netavark: podman(PODMAN_5_4, Netavark);
}

/// No row, but what all of Podman's need: it has no daemon that could be killed, and yet nothing of it is left.
#[test]
fn podman_takes_its_containers_with_it() {
    let configuration = Configuration::podman(PODMAN_5_8, Netavark);
    let installed = match installed::find(&configuration.release) {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {configuration} cannot be had: {reason}");
            return;
        }
    };
    let (lab, running) = Running::start(&configuration, &installed);
    let names = processes(&lab);
    assert!(names.iter().any(|name| name == "conmon"), "there is a container: {names:?}");
    drop(running);
    let left = processes(&lab);
    assert!(left.is_empty(), "left: {left:?}");
}

/// The names of the processes in the guest's network.
#[track_caller]
fn processes(lab: &Lab) -> Vec<String> {
    let guest = rustix::fs::fstat(lab.guest().netns_fd()).or_panic();
    let in_guest = |process: &Path| {
        let net = fs::metadata(process.join("ns/net"));
        net.is_ok_and(|net| (net.dev(), net.ino()) == (guest.st_dev, guest.st_ino))
    };
    let all = fs::read_dir("/proc").or_panic().flatten().map(|entry| entry.path());
    all.filter(|process| in_guest(process))
        .filter_map(|process| fs::read_to_string(process.join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// How often the test measures a cell again that seems slower with us: others use the machine too.
const REMEASUREMENTS: usize = 4;

/// Measures a row, notes it down, and judges it.
#[track_caller]
fn check_row(test: &str, configuration: &Configuration) {
    let installed = match installed::find(&configuration.release) {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {configuration} cannot be had: {reason}");
            return results::write(test, configuration, &Err(reason));
        }
    };
    let (lab, mut running) = Running::start(configuration, &installed);
    let _services = Services::start(&lab);
    let without = measure::column(&lab);
    let loaded = during(&lab, Phase::Load, || {
        let column = measure::column(&lab);
        assert_clients_were_translated(&lab);
        column
    });
    let run = during(&lab, Phase::Run, || {
        running.start_container_again();
        wait_for_answer(&lab);
        let column = measure::column(&lab);
        assert_clients_were_translated(&lab);
        column
    });
    let direct = during(&lab, Phase::Direct, || {
        let column = measure::column(&lab);
        assert_flows_went_direct(&lab);
        assert_clients_were_translated(&lab);
        column
    });
    let after = measure::column(&lab);

    let mut columns = Columns { without, load: loaded, run, direct, after };
    for _ in 0..REMEASUREMENTS {
        let slower = columns.with_us().map(|(_, column)| promises::slower(&columns.without, column));
        if slower.concat().is_empty() || pace::is_emulated() {
            break;
        }
        measure::again(&lab, &mut columns.without, &slower.concat());
        for ((phase, column), slower) in columns.with_us_mut().into_iter().zip(&slower) {
            during(&lab, phase, || measure::again(&lab, column, slower));
        }
    }
    let leniency = Leniency { times: pace::is_emulated(), old_kernel: !lab.is_at_least((6, 7)).or_panic() };
    let violations = promises::violations(configuration, &columns, leniency);
    let failures: Vec<String> = violations.iter().map(ToString::to_string).collect();
    results::write(test, configuration, &Ok((installed.version, &columns, failures.clone())));
    assert!(
        failures.is_empty(),
        "{configuration} {:?}:\n  {}",
        configuration.details(),
        failures.join("\n  ")
    );
}

/// Does work in a phase; wsl-mirror is loaded for it alone.
#[track_caller]
fn during<T>(lab: &Lab, phase: Phase, work: impl FnOnce() -> T) -> T {
    let agent = match phase {
        Phase::Without | Phase::AfterUnload => return work(),
        Phase::Load => {
            load(lab);
            None
        }
        Phase::Direct => {
            load_with(lab, "path = \"direct\"\n");
            None
        }
        Phase::Run => {
            let agent = Background::spawn(&mut lab.wsl_mirror_command(&["run"]).or_panic()).or_panic();
            wait_until("the agent to steer", COMMAND_LIMIT, || agent.output().contains("steering loopback0"));
            Some(agent)
        }
    };
    let done = work();
    drop(agent);
    unload(lab);
    done
}

/// Waits for what the agent learns of a container that has just started. Other tests say how long that may take.
///
/// Each attempt opens new sockets: the hooks decide when a socket connects or sends.
#[track_caller]
fn wait_for_answer(lab: &Lab) {
    let limit = pace::limit(HANG);
    for port in Bound::ALL.map(|bound| Server::Container(bound).port()) {
        for client in Client::ALL {
            wait_until(&format!("port {port} to answer {client}"), COMMAND_LIMIT, || {
                client.tcp(lab, port).limit(limit).echo(HELLO).is_ok()
            });
            wait_until(&format!("UDP port {port} to answer {client}"), COMMAND_LIMIT, || {
                client.udp(lab, port).limit(limit).request(HELLO).is_ok()
            });
        }
    }
}

/// That Windows' flows to each published port went straight to the container: holders' ports answer either way.
#[track_caller]
fn assert_flows_went_direct(lab: &Lab) {
    let status = lab.status().or_panic();
    for port in Bound::ALL.map(|bound| Server::Container(bound).port()) {
        for protocol in ["tcp", "udp"] {
            let is_port = |line: &&Value| line["port"] == port && line["protocol"] == protocol;
            let line = status["ports"].as_array().into_iter().flatten().find(is_port);
            let flows = line.and_then(|line| line["direct_flows"].as_u64()).unwrap_or(0);
            assert!(flows > 0, "no direct flow to {port}/{protocol}: {status:#}");
        }
    }
}

/// That Linux' clients of published ports went straight to the container: through docker-proxy most would be answered too.
#[track_caller]
fn assert_clients_were_translated(lab: &Lab) {
    let status = lab.status().or_panic();
    let outcomes = status["linux_clients"]["outcomes"].as_array().into_iter().flatten();
    let translated = outcomes.filter(|outcome| outcome["outcome"] == "translated");
    let count: u64 = translated.filter_map(|outcome| outcome["count"].as_u64()).sum();
    assert!(count >= measure::LINUX_REQUESTS, "{count} translated: {:#}", status["linux_clients"]);
}

/// An engine with a container whose ports are published in all four ways; it goes when this does.
enum Running {
    Docker { docker: Docker, container: Published },
    Podman { podman: Podman, container: Published },
}

impl Running {
    #[track_caller]
    fn start(configuration: &Configuration, installed: &Installed) -> (Lab, Self) {
        match configuration.engine {
            Engine::Docker { proxy, wslinfo, loopback0 } => {
                let lab = Lab::builder()
                    .wslinfo(wslinfo == Present)
                    .loopback0(loopback0 == BeforeDockerd)
                    .build()
                    .or_panic();
                let options = DockerOptions {
                    userland_proxy: proxy == On,
                    root: installed.root.clone(),
                    ..DockerOptions::default()
                };
                let docker = Docker::start(&lab, &options).or_panic();
                if loopback0 == AfterDockerd {
                    lab.add_loopback0().or_panic();
                }
                let container = docker.run(published_in_all_ways()).or_panic();
                (lab, Self::Docker { docker, container })
            }
            Engine::Podman { network } => {
                let lab = Lab::builder().build().or_panic();
                let root = installed.root.clone().context("Podman runs from a folder only").or_panic();
                let podman = Podman::start(&lab, &PodmanOptions { root, network }).or_panic();
                let container = podman.run(published_in_all_ways()).or_panic();
                (lab, Self::Podman { podman, container })
            }
        }
    }

    /// Its listeners are new then, and its address may be.
    #[track_caller]
    fn start_container_again(&mut self) {
        match self {
            Self::Docker { docker, container } => {
                docker.stop(container).or_panic();
                *container = docker.start_again(container).or_panic();
            }
            Self::Podman { podman, container } => {
                podman.stop(container).or_panic();
                *container = podman.start_again(container).or_panic();
            }
        }
    }
}

fn published_in_all_ways() -> Container {
    let [any, loopback] = Bound::ALL.map(|bound| Server::Container(bound).port());
    Container::new("echo")
        .serve(Service::TcpEcho { port: 7 })
        .serve(Service::UdpEcho { port: 7 })
        .publish(&format!("{any}:7"))
        .publish(&format!("127.0.0.1:{loopback}:7"))
        .publish(&format!("{any}:7/udp"))
        .publish(&format!("127.0.0.1:{loopback}:7/udp"))
}
