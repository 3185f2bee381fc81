//! Containers, and what is served in them.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result};

use super::Docker;
use crate::{
    Namespace,
    engine::{
        Service,
        image::{IMAGE, PAGE},
    },
    process::{Finished, wait_for},
};

/// A container to be run.
#[derive(Debug, Clone)]
pub struct Container {
    name: String,
    publish: Vec<String>,
    services: Vec<Service>,
    arguments: Vec<String>,
}

impl Container {
    /// A container by that name, which so far serves nothing.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), publish: Vec::new(), services: Vec::new(), arguments: Vec::new() }
    }

    /// Publishes a port, in the words of `docker run -p`: `8080:80`, `127.0.0.1:8081:80`, `5300:53/udp`.
    #[must_use]
    pub fn publish(mut self, port: &str) -> Self {
        self.publish.push(port.to_owned());
        self
    }

    /// Adds a service; a container may have several.
    #[must_use]
    pub fn serve(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// One more argument for `docker run`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The arguments by which an engine runs it: Docker and Podman have the same. `more` go before the image.
    pub(crate) fn command_line(&self, more: &[&str]) -> Vec<String> {
        let mut line = ["run", "--detach", "--name", &self.name].map(str::to_owned).to_vec();
        for port in &self.publish {
            line.extend(["--publish".to_owned(), port.clone()]);
        }
        line.extend(more.iter().map(|argument| (*argument).to_owned()));
        line.extend(self.arguments.iter().cloned());
        line.extend([IMAGE, "lab-helper", "serve"].map(str::to_owned));
        line.extend(self.services.iter().map(|service| service.argument()));
        line
    }

    /// Its name, and what is to answer in it.
    pub(crate) fn into_parts(self) -> (String, Vec<Service>) {
        (self.name, self.services)
    }
}

/// A container that was started. It goes with its engine; dropping this does nothing.
#[derive(Debug, Clone)]
pub struct Running {
    name: String,
    services: Vec<Service>,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
}

impl Running {
    /// The body of `/` of [`Service::Http`].
    pub const PAGE: &'static str = PAGE;

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is served in it.
    pub(crate) fn services(&self) -> &[Service] {
        &self.services
    }

    /// Waits until all services answer on the container's own address.
    pub(crate) fn wait(
        guest: &Namespace,
        name: String,
        services: Vec<Service>,
        address: Ipv4Addr,
    ) -> Result<Self> {
        for service in &services {
            let what = format!("{service:?} of container {name} on {address}");
            wait_for(&what, SERVICE_LIMIT, || Ok(service.answers(guest, address).then_some(())))?;
        }
        Ok(Self { name, services, address })
    }
}

/// From `docker run`'s return to the first answer of the service.
const SERVICE_LIMIT: Duration = Duration::from_secs(10);

impl Docker {
    /// Runs a container; back when all its services answer on its own address.
    pub fn run(&self, container: Container) -> Result<Running> {
        crate::process::run(self.client().args(container.command_line(&[])), crate::process::COMMAND_LIMIT)?
            .success()
            .map_err(|error| self.with_log(&error))?;
        let (name, services) = container.into_parts();
        self.wait_for_services(&name, services)
    }

    /// `docker stop` (without its patience: there is nothing to be saved).
    pub fn stop(&self, container: &Running) -> Result<Finished> {
        self.cli(&["stop", "--time", "0", &container.name])
    }

    /// `docker start`, and waits for the services; the address may be another one.
    pub fn start_again(&self, container: &Running) -> Result<Running> {
        self.cli(&["start", &container.name])?;
        self.wait_for_services(&container.name, container.services.clone())
    }

    /// `docker restart`, and waits for the services.
    pub fn restart(&self, container: &Running) -> Result<Running> {
        self.cli(&["restart", "--time", "0", &container.name])?;
        self.wait_for_services(&container.name, container.services.clone())
    }

    /// `docker rm --force`.
    pub fn remove(&self, container: &Running) -> Result<Finished> {
        self.cli(&["rm", "--force", &container.name])
    }

    fn wait_for_services(&self, name: &str, services: Vec<Service>) -> Result<Running> {
        let template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = self.cli(&["inspect", "--format", template, name])?.stdout;
        let address = addresses.split_whitespace().next().and_then(|address| address.parse().ok());
        let Some(address) = address else {
            return Err(self.died(name))
                .with_context(|| format!("container {name} has no address: '{addresses}'"));
        };
        Running::wait(self.guest(), name.to_owned(), services, address)
            .map_err(|error| error.context(self.died(name)))
    }

    /// What the container printed.
    fn died(&self, name: &str) -> anyhow::Error {
        let logs =
            self.cli(&["logs", name]).map_or_else(|error| format!("{error:#}"), |logs| logs.to_string());
        anyhow::anyhow!("its output: {logs}")
    }
}
