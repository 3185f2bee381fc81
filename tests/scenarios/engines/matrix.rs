//! One test for each row of the matrix. What the default run leaves out runs with `cargo xtask test engines --all`.

mod ways_out;

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, NetworkBackend, Podman, PodmanOptions, Service, pace,
};

use super::{
    cells::{Bound, Columns, Server},
    configuration::{
        Configuration, DOCKER_20_10, DOCKER_26_1, DOCKER_28_5, Engine,
        Loopback0::{self, AfterDockerd, BeforeDockerd},
        PODMAN_4_3, PODMAN_5_4, PODMAN_5_8,
        Proxy::{self, Off, On},
        Release,
        Wslinfo::{self, Absent, Present},
    },
    installed::{self, Installed},
    measure::{self, Services},
    promises::{self, Leniency},
    results,
};

#[test]
fn docker_20_10_proxy_on_wslinfo_present_loopback0_first() -> Result<()> {
    docker("docker_20_10_proxy_on_wslinfo_present_loopback0_first", DOCKER_20_10, On, Present, BeforeDockerd)
}

#[test]
fn docker_20_10_proxy_on_wslinfo_present_loopback0_late() -> Result<()> {
    docker("docker_20_10_proxy_on_wslinfo_present_loopback0_late", DOCKER_20_10, On, Present, AfterDockerd)
}

#[test]
fn docker_20_10_proxy_on_wslinfo_absent_loopback0_first() -> Result<()> {
    docker("docker_20_10_proxy_on_wslinfo_absent_loopback0_first", DOCKER_20_10, On, Absent, BeforeDockerd)
}

#[test]
fn docker_20_10_proxy_on_wslinfo_absent_loopback0_late() -> Result<()> {
    docker("docker_20_10_proxy_on_wslinfo_absent_loopback0_late", DOCKER_20_10, On, Absent, AfterDockerd)
}

#[test]
fn docker_20_10_proxy_off_wslinfo_present_loopback0_first() -> Result<()> {
    docker(
        "docker_20_10_proxy_off_wslinfo_present_loopback0_first",
        DOCKER_20_10,
        Off,
        Present,
        BeforeDockerd,
    )
}

#[test]
fn docker_20_10_proxy_off_wslinfo_present_loopback0_late() -> Result<()> {
    docker("docker_20_10_proxy_off_wslinfo_present_loopback0_late", DOCKER_20_10, Off, Present, AfterDockerd)
}

#[test]
fn docker_20_10_proxy_off_wslinfo_absent_loopback0_first() -> Result<()> {
    docker("docker_20_10_proxy_off_wslinfo_absent_loopback0_first", DOCKER_20_10, Off, Absent, BeforeDockerd)
}

#[test]
fn docker_20_10_proxy_off_wslinfo_absent_loopback0_late() -> Result<()> {
    docker("docker_20_10_proxy_off_wslinfo_absent_loopback0_late", DOCKER_20_10, Off, Absent, AfterDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_on_wslinfo_present_loopback0_first() -> Result<()> {
    docker("docker_26_1_proxy_on_wslinfo_present_loopback0_first", DOCKER_26_1, On, Present, BeforeDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_on_wslinfo_present_loopback0_late() -> Result<()> {
    docker("docker_26_1_proxy_on_wslinfo_present_loopback0_late", DOCKER_26_1, On, Present, AfterDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_on_wslinfo_absent_loopback0_first() -> Result<()> {
    docker("docker_26_1_proxy_on_wslinfo_absent_loopback0_first", DOCKER_26_1, On, Absent, BeforeDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_on_wslinfo_absent_loopback0_late() -> Result<()> {
    docker("docker_26_1_proxy_on_wslinfo_absent_loopback0_late", DOCKER_26_1, On, Absent, AfterDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_off_wslinfo_present_loopback0_first() -> Result<()> {
    docker("docker_26_1_proxy_off_wslinfo_present_loopback0_first", DOCKER_26_1, Off, Present, BeforeDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_off_wslinfo_present_loopback0_late() -> Result<()> {
    docker("docker_26_1_proxy_off_wslinfo_present_loopback0_late", DOCKER_26_1, Off, Present, AfterDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_off_wslinfo_absent_loopback0_first() -> Result<()> {
    docker("docker_26_1_proxy_off_wslinfo_absent_loopback0_first", DOCKER_26_1, Off, Absent, BeforeDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn docker_26_1_proxy_off_wslinfo_absent_loopback0_late() -> Result<()> {
    docker("docker_26_1_proxy_off_wslinfo_absent_loopback0_late", DOCKER_26_1, Off, Absent, AfterDockerd)
}

#[test]
fn docker_28_5_proxy_on_wslinfo_present_loopback0_first() -> Result<()> {
    docker("docker_28_5_proxy_on_wslinfo_present_loopback0_first", DOCKER_28_5, On, Present, BeforeDockerd)
}

#[test]
fn docker_28_5_proxy_on_wslinfo_present_loopback0_late() -> Result<()> {
    docker("docker_28_5_proxy_on_wslinfo_present_loopback0_late", DOCKER_28_5, On, Present, AfterDockerd)
}

#[test]
fn docker_28_5_proxy_on_wslinfo_absent_loopback0_first() -> Result<()> {
    docker("docker_28_5_proxy_on_wslinfo_absent_loopback0_first", DOCKER_28_5, On, Absent, BeforeDockerd)
}

#[test]
fn docker_28_5_proxy_on_wslinfo_absent_loopback0_late() -> Result<()> {
    docker("docker_28_5_proxy_on_wslinfo_absent_loopback0_late", DOCKER_28_5, On, Absent, AfterDockerd)
}

#[test]
fn docker_28_5_proxy_off_wslinfo_present_loopback0_first() -> Result<()> {
    docker("docker_28_5_proxy_off_wslinfo_present_loopback0_first", DOCKER_28_5, Off, Present, BeforeDockerd)
}

#[test]
fn docker_28_5_proxy_off_wslinfo_present_loopback0_late() -> Result<()> {
    docker("docker_28_5_proxy_off_wslinfo_present_loopback0_late", DOCKER_28_5, Off, Present, AfterDockerd)
}

#[test]
fn docker_28_5_proxy_off_wslinfo_absent_loopback0_first() -> Result<()> {
    docker("docker_28_5_proxy_off_wslinfo_absent_loopback0_first", DOCKER_28_5, Off, Absent, BeforeDockerd)
}

#[test]
fn docker_28_5_proxy_off_wslinfo_absent_loopback0_late() -> Result<()> {
    docker("docker_28_5_proxy_off_wslinfo_absent_loopback0_late", DOCKER_28_5, Off, Absent, AfterDockerd)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn podman_4_3_netavark() -> Result<()> {
    run("podman_4_3_netavark", &Configuration::podman(PODMAN_4_3, NetworkBackend::Netavark))
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn podman_4_3_cni_portmap() -> Result<()> {
    run("podman_4_3_cni_portmap", &Configuration::podman(PODMAN_4_3, NetworkBackend::Cni))
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn podman_5_4_netavark() -> Result<()> {
    run("podman_5_4_netavark", &Configuration::podman(PODMAN_5_4, NetworkBackend::Netavark))
}

#[test]
fn podman_5_8_netavark() -> Result<()> {
    run("podman_5_8_netavark", &Configuration::podman(PODMAN_5_8, NetworkBackend::Netavark))
}

/// No row, but what all of Podman's need: it has no daemon that could be killed, and yet nothing of it is left.
#[test]
fn podman_takes_its_containers_with_it() -> Result<()> {
    let configuration = Configuration::podman(PODMAN_5_8, NetworkBackend::Netavark);
    let installed = match installed::find(&configuration.release)? {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {configuration} cannot be had: {reason}");
            return Ok(());
        }
    };
    let (lab, running) = Running::start(&configuration, &installed)?;
    let names = processes(&lab)?;
    ensure!(names.iter().any(|name| name == "conmon"), "there is a container: {names:?}");
    drop(running);
    let left = processes(&lab)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

/// The names of the processes in the guest's network.
fn processes(lab: &Lab) -> Result<Vec<String>> {
    let guest = rustix::fs::fstat(lab.guest().netns_fd())?;
    let in_guest = |process: &Path| {
        let net = fs::metadata(process.join("ns/net"));
        net.is_ok_and(|net| (net.dev(), net.ino()) == (guest.st_dev, guest.st_ino))
    };
    let all = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    Ok(all
        .filter(|process| in_guest(process))
        .filter_map(|process| fs::read_to_string(process.join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect())
}

fn docker(test: &str, release: Release, proxy: Proxy, wslinfo: Wslinfo, loopback0: Loopback0) -> Result<()> {
    run(test, &Configuration::docker(release, proxy, wslinfo, loopback0))
}

/// How often a cell that seems to be slower with us is measured again: others use the machine too.
const PATIENCE: usize = 4;

/// Measures a row, notes it down, and judges it.
fn run(test: &str, configuration: &Configuration) -> Result<()> {
    let installed = match installed::find(&configuration.release)? {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {configuration} cannot be had: {reason}");
            return results::write(test, configuration, &Err(reason));
        }
    };
    let (lab, _running) = Running::start(configuration, &installed)?;
    let _services = Services::start(&lab)?;
    let without = measure::column(&lab)?;
    lab.wsl_mirror(&["load"])?.success()?;
    let with = measure::column(&lab)?;
    lab.wsl_mirror(&["unload"])?.success()?;
    let after = measure::column(&lab)?;

    let mut columns = Columns { without, with, after };
    for _ in 0..PATIENCE {
        let slower = promises::slower(&columns);
        if slower.is_empty() || pace::is_emulated() {
            break;
        }
        measure::again(&lab, &mut columns.without, &slower);
        lab.wsl_mirror(&["load"])?.success()?;
        measure::again(&lab, &mut columns.with, &slower);
        lab.wsl_mirror(&["unload"])?.success()?;
    }
    let leniency = Leniency { times: pace::is_emulated(), old_kernel: !lab.is_at_least((6, 7))? };
    let violations = promises::violations(configuration, &columns, leniency);
    let failures: Vec<String> = violations.iter().map(ToString::to_string).collect();
    results::write(test, configuration, &Ok((installed.version, &columns, failures.clone())))?;
    if !failures.is_empty() {
        bail!("{configuration} {:?}:\n  {}", configuration.details(), failures.join("\n  "));
    }
    Ok(())
}

/// An engine with a container whose ports are published in all four ways; it goes when this does.
enum Running {
    Docker { _docker: Docker },
    Podman { _podman: Podman },
}

impl Running {
    fn start(configuration: &Configuration, installed: &Installed) -> Result<(Lab, Self)> {
        match configuration.engine {
            Engine::Docker { proxy, wslinfo, loopback0 } => {
                let lab = Lab::builder()
                    .wslinfo(wslinfo == Present)
                    .loopback0(loopback0 == BeforeDockerd)
                    .build()?;
                let options = DockerOptions {
                    userland_proxy: proxy == On,
                    root: installed.root.clone(),
                    ..DockerOptions::default()
                };
                let docker = Docker::start(&lab, &options)?;
                if loopback0 == AfterDockerd {
                    lab.add_loopback0()?;
                }
                docker.run(published_in_all_ways())?;
                Ok((lab, Self::Docker { _docker: docker }))
            }
            Engine::Podman { network } => {
                let lab = Lab::builder().build()?;
                let root = installed.root.clone().context("Podman runs from a folder only")?;
                let podman = Podman::start(&lab, &PodmanOptions { root, network })?;
                podman.run(published_in_all_ways())?;
                Ok((lab, Self::Podman { _podman: podman }))
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
