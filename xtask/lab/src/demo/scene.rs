//! What is called: two machines, each with a Docker, one of them without docker-proxy.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service, loopback,
    servers::{self, Server},
};

use super::promise::{Machine, Target};

/// Everything that is called.
pub(super) struct Scene {
    with_proxy: Place,
    without_proxy: Place,
    /// Name and version of the engine.
    pub(super) engine: String,
    _services: [Server; 2],
}

/// A machine with Docker and a container in it.
struct Place {
    lab: Lab,
    docker: Docker,
}

impl Scene {
    pub(super) fn set() -> Result<Self> {
        let with_proxy = Place::set(Machine::WithProxy)?;
        let without_proxy = Place::set(Machine::WithoutProxy)?;
        let version = with_proxy.docker.cli(&["version", "--format", "{{.Server.Version}}"])?.stdout;
        let lab = &with_proxy.lab;
        let services = [
            servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, Target::LinuxService.port()))?,
            servers::tcp_echo(lab.windows(), loopback(Target::WindowsService.port()))?,
        ];
        let engine = format!("Docker {}", version.trim());
        Ok(Self { with_proxy, without_proxy, engine, _services: services })
    }

    pub(super) const fn lab(&self, machine: Machine) -> &Lab {
        match machine {
            Machine::WithProxy => &self.with_proxy.lab,
            Machine::WithoutProxy => &self.without_proxy.lab,
        }
    }

    /// Runs `wsl-mirror` on both machines.
    pub(super) fn wsl_mirror(&self, arguments: &[&str]) -> Result<()> {
        self.labs().into_iter().try_for_each(|lab| lab.wsl_mirror(arguments)?.success().map(drop))
    }

    /// Writes the configuration of both machines.
    pub(super) fn configure(&self, text: &str) -> Result<()> {
        self.labs().into_iter().try_for_each(|lab| configure(lab, text))
    }

    const fn labs(&self) -> [&Lab; 2] {
        [&self.with_proxy.lab, &self.without_proxy.lab]
    }
}

impl Place {
    fn set(machine: Machine) -> Result<Self> {
        // Docker 27.3 and later asks wslinfo, once, at its start, and then may help itself. The case to be
        // shown is the one in which it does not: an older Docker, or a loopback0 that came later.
        let lab = Lab::builder().wslinfo(false).build()?;
        // The machine's own configuration shines through the guest's /etc, and is not meant for this.
        configure(&lab, "")?;
        let options = DockerOptions {
            userland_proxy: matches!(machine, Machine::WithProxy),
            ..DockerOptions::default()
        };
        let docker = Docker::start(&lab, &options)?;
        let published = Target::ALL.into_iter().filter(|target| target.machine() == machine);
        let container = published.filter_map(Target::publish).fold(
            Container::new("demo")
                .serve(Service::Http { port: Target::WEB })
                .serve(Service::UdpEcho { port: Target::ECHO }),
            Container::publish,
        );
        docker.run(container)?;
        Ok(Self { lab, docker })
    }
}

fn configure(lab: &Lab, text: &str) -> Result<()> {
    lab.guest().enter(|| std::fs::write("/etc/wsl-mirror.toml", text)).context("writing the configuration")
}
