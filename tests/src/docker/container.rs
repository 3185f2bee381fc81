//! Containers, and what is served in them.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Docker,
    image::{IMAGE, PAGE},
};
use crate::{
    process::{Finished, wait_for},
    tcp, udp,
};

/// Something that listens in a container, on a port of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// busybox' httpd, a process per connection, no keep-alive; `/` is [`Running::PAGE`].
    Http {
        /// Where.
        port: u16,
    },
    /// The same with `/pattern`: this many bytes of [`crate::services::Pattern`].
    HttpWithFile {
        /// Where.
        port: u16,
        /// How long the file is.
        bytes: u64,
    },
    /// [`crate::services::TcpService::Echo`].
    TcpEcho {
        /// Where.
        port: u16,
    },
    /// [`crate::services::TcpService::Sink`].
    TcpSink {
        /// Where.
        port: u16,
    },
    /// [`crate::services::TcpService::Source`].
    TcpSource {
        /// Where.
        port: u16,
        /// How much every client is sent.
        bytes: u64,
    },
    /// Every datagram goes back to its sender.
    UdpEcho {
        /// Where.
        port: u16,
    },
}

impl Service {
    fn argument(self) -> String {
        match self {
            Self::Http { port } => format!("http:{port}"),
            Self::HttpWithFile { port, bytes } => format!("http:{port}:{bytes}"),
            Self::TcpEcho { port } => format!("tcp-echo:{port}"),
            Self::TcpSink { port } => format!("tcp-sink:{port}"),
            Self::TcpSource { port, bytes } => format!("tcp-source:{port}:{bytes}"),
            Self::UdpEcho { port } => format!("udp-echo:{port}"),
        }
    }
}

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

    /// Publishes a port, in the words of `docker run -p`: `8080:80`, `127.0.0.1:8081:80`, `5353:53/udp`.
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
}

/// A container that was started. It goes with its daemon; dropping this does nothing.
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
}

/// From `docker run`'s return to the first answer of the service.
const SERVICE_LIMIT: Duration = Duration::from_secs(10);

impl Docker {
    /// Runs a container; back when all its services answer on its own address.
    pub fn run(&self, container: Container) -> Result<Running> {
        let Container { name, publish, services, arguments } = container;
        let mut command = self.client();
        command.args(["run", "--detach", "--name", &name]);
        for port in &publish {
            command.args(["--publish", port]);
        }
        command.args(arguments).args([IMAGE, "lab-helper", "serve"]);
        command.args(services.iter().map(|service| service.argument()));
        crate::process::run(&mut command, crate::process::COMMAND_LIMIT)?
            .success()
            .map_err(|error| self.with_log(&error))?;
        self.wait_for_services(name, services)
    }

    /// `docker stop` (without its patience: there is nothing to be saved).
    pub fn stop(&self, container: &Running) -> Result<Finished> {
        self.cli(&["stop", "--time", "0", &container.name])
    }

    /// `docker start`, and waits for the services; the address may be another one.
    pub fn start_again(&self, container: &Running) -> Result<Running> {
        self.cli(&["start", &container.name])?;
        self.wait_for_services(container.name.clone(), container.services.clone())
    }

    /// `docker restart`, and waits for the services.
    pub fn restart(&self, container: &Running) -> Result<Running> {
        self.cli(&["restart", "--time", "0", &container.name])?;
        self.wait_for_services(container.name.clone(), container.services.clone())
    }

    /// `docker rm --force`.
    pub fn remove(&self, container: &Running) -> Result<Finished> {
        self.cli(&["rm", "--force", &container.name])
    }

    fn wait_for_services(&self, name: String, services: Vec<Service>) -> Result<Running> {
        let template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = self.cli(&["inspect", "--format", template, &name])?.stdout;
        let address = addresses.split_whitespace().next().and_then(|address| address.parse().ok());
        let Some(address) = address else {
            return Err(self.died(&name))
                .with_context(|| format!("container {name} has no address: '{addresses}'"));
        };
        for service in &services {
            let what = format!("{service:?} of container {name} on {address}");
            wait_for(&what, SERVICE_LIMIT, || Ok(self.answers(*service, address)))
                .map_err(|error| error.context(self.died(&name)))?;
        }
        Ok(Running { name, services, address })
    }

    fn answers(&self, service: Service, address: Ipv4Addr) -> Option<()> {
        let limit = Duration::from_millis(500);
        match service {
            Service::UdpEcho { port } => {
                udp::Client::new(self.guest(), (address, port)).limit(limit).request(b"ready?").ok().map(drop)
            }
            Service::Http { port }
            | Service::HttpWithFile { port, .. }
            | Service::TcpEcho { port }
            | Service::TcpSink { port }
            | Service::TcpSource { port, .. } => {
                tcp::Client::new(self.guest(), (address, port)).limit(limit).connect().ok().map(drop)
            }
        }
    }

    /// What the container printed.
    fn died(&self, name: &str) -> anyhow::Error {
        let logs =
            self.cli(&["logs", name]).map_or_else(|error| format!("{error:#}"), |logs| logs.to_string());
        anyhow::anyhow!("its output: {logs}")
    }
}
