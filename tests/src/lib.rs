//! The lab: WSL2's mirrored networking in network namespaces, Windows included, with real engines in it.
//!
//! ```no_run
//! use wsl_mirror_lab::{Container, Docker, DockerOptions, Lab, Service, tcp};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder().build()?;
//! let docker = Docker::start(&lab, &DockerOptions::default())?;
//! docker.run(Container::new("web").serve(Service::TcpEcho { port: 7 }).publish("8080:7"))?;
//! let reply = tcp::Client::new(lab.windows(), "127.0.0.1:8080").echo(b"hello");
//! assert_eq!(reply, Err(tcp::Failure::ConnectTimedOut), "what wsl-mirror is there to heal");
//! # Ok(())
//! # }
//! ```
//!
//! Everything lives in unnamed namespaces that only descriptors of this process hold, so nothing is left
//! behind, whatever ends the process, and any number of labs run side by side; `cgroups` has the one exception.
//! Root is needed, and of programs: `ip`, `nft`, `iptables`, `conntrack`, `sysctl`'s files, a static busybox,
//! dockerd. Other releases' engines, Podman among them, run from folders that have all of theirs.

mod cgroups;
pub mod checks;
pub mod clients;
mod docker;
mod engine;
mod mirrored;
mod namespace;
pub mod nat;
mod netfilter;
pub mod pace;
mod pid_namespace;
pub mod pins;
mod podman;
mod pool;
pub mod process;
pub mod published;
pub mod services;
mod snapshot;
pub mod sockets;
pub mod targets;
mod traffic;
mod windows;
mod wsl_mirror;

pub use docker::{Container, Docker, DockerOptions, Running};
pub use engine::Service;
pub use mirrored::{
    BRIDGE, BRIDGE_MAC, ETH0_MAC, GUEST_EPHEMERAL, GUEST_MAC, Gateway, HalfMade, LAN_ADDRESS, Lab,
    LabBuilder, NEIGHBOUR_ADDRESS, NEIGHBOUR_MAC, NEIGHBOUR_NIC, REFLECTION_MAC, WINDOWS_MAC, loopback,
};
pub use namespace::{Namespace, SCRATCH};
pub use pid_namespace::PidNamespace;
pub use podman::{NetworkBackend, Podman, PodmanOptions};
pub use pool::SharedLab;
pub use sockets::Sockets;
pub use traffic::{checksums, delivered::Delivered, maker::Maker, raw, servers, tcp, udp};
pub use windows::{Dropped, Garbled, Transport};

/// `lab-helper`, statically linked (`build.rs`).
pub(crate) static HELPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lab-helper"));
