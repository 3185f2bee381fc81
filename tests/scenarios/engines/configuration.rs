//! An engine, and in which way it meets mirrored mode.

use std::fmt;

use wsl_mirror_lab::NetworkBackend;

/// A release of an engine, and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Debian's suite.
    pub suite: &'static str,
    /// Debian's package.
    pub package: &'static str,
    /// Major and minor number: what its version starts with.
    pub version: (u32, u32),
}

impl Release {
    /// Whether a version of the package is of this release.
    pub fn is(&self, installed: &str) -> bool {
        let (major, minor) = self.version;
        installed.starts_with(&format!("{major}.{minor}."))
    }
}

pub const DOCKER_20_10: Release = Release { suite: "bookworm", package: "docker.io", version: (20, 10) };
pub const DOCKER_26_1: Release = Release { suite: "trixie", package: "docker.io", version: (26, 1) };
pub const DOCKER_28_5: Release = Release { suite: "sid", package: "docker.io", version: (28, 5) };
pub const PODMAN_4_3: Release = Release { suite: "bookworm", package: "podman", version: (4, 3) };
pub const PODMAN_5_4: Release = Release { suite: "trixie", package: "podman", version: (5, 4) };
pub const PODMAN_5_8: Release = Release { suite: "sid", package: "podman", version: (5, 8) };

/// Docker's userland-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    On,
    Off,
}

/// What Docker detects WSL by, from 27.3 on, besides `loopback0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wslinfo {
    Present,
    Absent,
}

/// When `loopback0` appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loopback0 {
    BeforeDockerd,
    AfterDockerd,
}

/// One row of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    pub release: Release,
    pub engine: Engine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Docker { proxy: Proxy, wslinfo: Wslinfo, loopback0: Loopback0 },
    Podman { network: NetworkBackend },
}

impl Configuration {
    pub fn docker(release: Release, proxy: Proxy, wslinfo: Wslinfo, loopback0: Loopback0) -> Self {
        Self { release, engine: Engine::Docker { proxy, wslinfo, loopback0 } }
    }

    pub fn podman(release: Release, network: NetworkBackend) -> Self {
        Self { release, engine: Engine::Podman { network } }
    }

    /// Whether docker-proxy accepts on published ports. Else somebody holds them who never does.
    pub fn is_served_by_docker_proxy(&self) -> bool {
        matches!(self.engine, Engine::Docker { proxy: Proxy::On, .. })
    }

    /// Whether this Docker knows, at its start, that it is in mirrored mode.
    pub fn detects_wsl(&self) -> bool {
        matches!(
            self.engine,
            Engine::Docker { wslinfo: Wslinfo::Present, loopback0: Loopback0::BeforeDockerd, .. }
        ) && self.release.version >= (27, 3)
    }

    /// Whether what comes in elsewhere than on `lo` for a port published on 127.0.0.1 is dropped (table raw).
    pub fn has_raw_drop(&self) -> bool {
        matches!(self.engine, Engine::Docker { .. }) && self.release.version >= (28, 0) && !self.detects_wsl()
    }

    /// What the columns of the table are made of, by name.
    pub fn details(&self) -> [&'static str; 3] {
        match self.engine {
            Engine::Docker { proxy, wslinfo, loopback0 } => [
                match proxy {
                    Proxy::On => "proxy on",
                    Proxy::Off => "proxy off",
                },
                match wslinfo {
                    Wslinfo::Present => "wslinfo",
                    Wslinfo::Absent => "no wslinfo",
                },
                match loopback0 {
                    Loopback0::BeforeDockerd => "before dockerd",
                    Loopback0::AfterDockerd => "after dockerd",
                },
            ],
            Engine::Podman { network: NetworkBackend::Netavark } => ["netavark", "-", "-"],
            Engine::Podman { network: NetworkBackend::Cni } => ["CNI portmap", "-", "-"],
        }
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.release.version;
        let name = match self.engine {
            Engine::Docker { .. } => "Docker",
            Engine::Podman { .. } => "Podman",
        };
        write!(f, "{name} {major}.{minor}")
    }
}
