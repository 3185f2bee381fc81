//! Mirrored mode: the guest, its Windows, and the two NICs between them.

mod addresses;
mod bridge;
mod guest;
mod half_made;
mod neighbour;
mod network;
mod plain;
mod windows;

use std::{
    fs, net::Ipv4Addr, ops::RangeInclusive, os::fd::AsRawFd as _, path::PathBuf, sync::Arc, time::Duration,
};

use anyhow::{Context as _, Result};

pub(crate) use addresses::Network as MirroredNetwork;
pub use addresses::{
    ETH0_MAC, GUEST_EPHEMERAL, GUEST_MAC, LAN_ADDRESS, NEIGHBOUR_MAC, REFLECTION_MAC, WINDOWS_MAC, loopback,
};
use addresses::{Network, mac_text};
pub use bridge::{BRIDGE, BRIDGE_MAC};
pub use half_made::HalfMade;
pub use neighbour::{NEIGHBOUR_ADDRESS, NEIGHBOUR_NIC};

use crate::{
    cgroups::LabCgroup,
    namespace::{Mounts, Namespace},
    windows::{Garbled, Garbling, Windows, WindowsOptions},
};

/// Where `load` looks for its configuration.
const CONFIGURATION: &str = "/etc/wsl-mirror.toml";

/// The gateway of table 127, by WSL release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateway {
    /// Up to 2.8.x.
    Wsl28,
    /// From 2.9.0 on.
    Wsl29,
}

impl Gateway {
    /// The address.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Wsl28 => Ipv4Addr::new(169, 254, 73, 152),
            Self::Wsl29 => Ipv4Addr::new(169, 254, 73, 249),
        }
    }
}

/// What a lab can be asked for; [`Lab::builder`] gives the usual one.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    gateway: Gateway,
    windows: WindowsOptions,
    mounts: Mounts,
    loopback0: bool,
    host_address_loopback: bool,
    half_made: Option<HalfMade>,
    configuration: Option<String>,
    leased: RangeInclusive<u16>,
}

impl LabBuilder {
    /// Which WSL; 2.9 unless told.
    #[must_use]
    pub fn gateway(mut self, gateway: Gateway) -> Self {
        self.gateway = gateway;
        self
    }

    /// Ports, TCP and UDP, that Windows sends to the guest although nobody has bound them: for tests of packets to
    /// ports where nobody listens. WSL keeps a port for up to 60 s too.
    #[must_use]
    pub fn sends_always(mut self, ports: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        self.windows.always_sent.extend(ports);
        self
    }

    /// WSL's `[experimental] ignoredPorts`: Windows does not hear of binds of these ports.
    #[must_use]
    pub fn ignored_ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.windows.ignored_ports.extend(ports);
        self
    }

    /// Windows refuses binds in this range from the start; see [`Lab::refuse_binds`].
    #[must_use]
    pub fn refuse_binds(mut self, range: RangeInclusive<u16>) -> Self {
        self.windows.refused.push(range);
        self
    }

    /// When Windows gives up a port that `sock_diag` has never shown; 60 s unless told, as on WSL.
    #[must_use]
    pub fn gives_up_after(mut self, time: Duration) -> Self {
        self.windows.give_up = time;
        self
    }

    /// Whether Windows accepts connections to a released port for some tens of milliseconds; yes unless told.
    #[must_use]
    pub fn ghosts(mut self, on: bool) -> Self {
        self.windows.ghosts = on;
        self
    }

    /// Windows garbles destination ports from the start; see [`Lab::garble`].
    #[must_use]
    pub fn garbles(mut self, kinds: &[Garbled], per_mille: u32) -> Self {
        self.windows.garbling = Garbling { kinds: kinds.to_vec(), per_mille };
        self
    }

    /// Whether what Windows' programs send to `::1` on a port of the guest's is lost; yes unless told, as on WSL. Else
    /// Windows refuses it.
    #[must_use]
    pub fn silent_ipv6(mut self, on: bool) -> Self {
        self.windows.silent_ipv6 = on;
        self
    }

    /// Whether Windows drops segments of a TCP flow of whose handshake it has seen only the SYN or only the SYN+ACK; no unless
    /// told. That Windows does so is a guess.
    #[must_use]
    pub fn watches_handshakes(mut self, on: bool) -> Self {
        self.windows.watches_handshakes = on;
        self
    }

    /// Whether the guest has a bpffs on /sys/fs/bpf; yes unless told.
    #[must_use]
    pub fn bpffs(mut self, mounted: bool) -> Self {
        self.mounts.bpffs = mounted;
        self
    }

    /// Whether there is a `/usr/bin/wslinfo`, which prints `mirrored`; yes unless told.
    #[must_use]
    pub fn wslinfo(mut self, present: bool) -> Self {
        self.mounts.wslinfo = present;
        self
    }

    /// Whether `loopback0` is there from the start; yes unless told. See [`Lab::add_loopback0`].
    #[must_use]
    pub fn loopback0(mut self, present: bool) -> Self {
        self.loopback0 = present;
        self
    }

    /// WSL's `[experimental] hostAddressLoopback=true`: the address that guest and Windows share reaches the
    /// guest, from Windows and from itself; no unless told, as on WSL.
    #[must_use]
    pub fn host_address_loopback(mut self, on: bool) -> Self {
        self.host_address_loopback = on;
        self
    }

    /// A part of the network is missing from the start; see [`Lab::half_make_network`].
    #[must_use]
    pub fn half_made(mut self, missing: HalfMade) -> Self {
        self.half_made = Some(missing);
        self
    }

    /// The block of ports that Windows leases to the guest at first; [`GUEST_EPHEMERAL`] unless told. For benchmarks, which
    /// open more connections a second than 4096 ports allow.
    #[must_use]
    pub fn leases(mut self, block: RangeInclusive<u16>) -> Self {
        self.leased = block;
        self
    }

    /// What is in the guest's /etc/wsl-mirror.toml; no such file unless told.
    #[must_use]
    pub fn configuration(mut self, text: &str) -> Self {
        self.configuration = Some(text.to_owned());
        self
    }

    /// Makes it; takes some tens of milliseconds.
    pub fn build(self) -> Result<Lab> {
        let cgroup = Arc::new(LabCgroup::new());
        let windows = Namespace::new("windows", None)?;
        let guest = Namespace::new("guest", Some(self.mounts))?;
        let network = Network::first(self.gateway.address(), self.leased.clone());
        let windows_side =
            Windows::start(&self.windows, network, &guest, &windows).context("starting Windows")?;
        let lab = Lab { options: self, guest, windows, windows_side, cgroup };
        lab.add_nics().context("making the NICs between guest and Windows")?;
        lab.set_up_guest().context("setting up the guest as WSL does")?;
        if let Some(text) = &lab.options.configuration {
            lab.guest.enter(|| fs::write(CONFIGURATION, text)).context("writing the configuration")?;
        }
        lab.set_up_windows().context("setting up the Windows stand-in")?;
        if let Some(missing) = lab.options.half_made {
            lab.half_make_network(missing)?;
        }
        Ok(lab)
    }
}

/// A guest in mirrored mode and its Windows.
#[derive(Debug)]
pub struct Lab {
    options: LabBuilder,
    guest: Namespace,
    windows: Namespace,
    windows_side: Windows,
    cgroup: Arc<LabCgroup>,
}

impl Lab {
    /// Starts from the usual lab: WSL 2.9, a bpffs, `loopback0` present.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            gateway: Gateway::Wsl29,
            windows: WindowsOptions::default(),
            mounts: Mounts { bpffs: true, wslinfo: true },
            loopback0: true,
            host_address_loopback: false,
            half_made: None,
            configuration: None,
            leased: GUEST_EPHEMERAL,
        }
    }

    /// The Linux guest.
    pub fn guest(&self) -> &Namespace {
        &self.guest
    }

    /// The Windows stand-in.
    pub fn windows(&self) -> &Namespace {
        &self.windows
    }

    /// The kernel's release: major and minor number.
    pub fn kernel(&self) -> Result<(u32, u32)> {
        let release = self.guest.sysctl("kernel/osrelease")?;
        major_and_minor(&release).with_context(|| format!("Linux {release}: no release that one can compare"))
    }

    /// Whether the kernel is of this release or later.
    pub fn is_at_least(&self, wanted: (u32, u32)) -> Result<bool> {
        Ok(self.kernel()? >= wanted)
    }

    /// A second distribution: the guest's network, but mounts (so a bpffs, /run, /etc and /var) of its own.
    pub fn another_distribution(&self) -> Result<Namespace> {
        self.guest.with_other_mounts("other distribution", self.options.mounts)
    }

    /// A cgroup (v2) for processes that shall be seen by a `load` in this lab. It is removed with the lab.
    pub fn group(&self, name: &str) -> Result<PathBuf> {
        self.cgroup.directory(name)
    }

    /// Whether there is a `/usr/bin/wslinfo`.
    pub(crate) fn has_wslinfo(&self) -> bool {
        self.options.mounts.wslinfo
    }

    /// What Windows knows and does.
    pub(crate) fn windows_side(&self) -> &Windows {
        &self.windows_side
    }

    pub(crate) fn cgroup(&self) -> Arc<LabCgroup> {
        Arc::clone(&self.cgroup)
    }

    /// Deletes `loopback0` and makes it again under the same name and MAC, as a restart of Windows' Host
    /// Network Service does: another ifindex, everything on it lost, then WSL's and Windows' part again.
    pub fn recreate_loopback0(&self) -> Result<()> {
        self.remove_loopback0()?;
        self.add_loopback0()
    }

    /// Deletes `loopback0`, and with it Windows' end.
    pub fn remove_loopback0(&self) -> Result<()> {
        self.guest.ip_batch("link del loopback0\n").context("removing loopback0")
    }

    /// Makes `loopback0` as WSL does when it appears while the guest runs.
    pub fn add_loopback0(&self) -> Result<()> {
        let add = || {
            self.guest.ip_batch(&self.nic("loopback0", GUEST_MAC, "winlo0"))?;
            self.set_up_guest_loopback0()?;
            self.set_up_windows_loopback0()
        };
        add().context("adding loopback0")
    }

    /// Makes `eth0` again, with both sides of it.
    fn add_eth0(&self) -> Result<()> {
        let add = || {
            self.guest.ip_batch(&self.nic("eth0", ETH0_MAC, "winlan0"))?;
            self.set_up_guest_eth0()?;
            self.set_up_windows_winlan0()
        };
        add().context("adding eth0")
    }

    fn add_nics(&self) -> Result<()> {
        let loopback0 = self.options.loopback0.then_some(("loopback0", GUEST_MAC, "winlo0"));
        let nics = loopback0.into_iter().chain([("eth0", ETH0_MAC, "winlan0")]);
        self.guest.ip_batch(&nics.map(|(name, mac, peer)| self.nic(name, mac, peer)).collect::<String>())
    }

    /// The line that makes a NIC of the guest whose other end is with Windows.
    fn nic(&self, name: &str, mac: [u8; 6], peer: &str) -> String {
        // iproute2 takes a path for a namespace; ours has no other one.
        let windows = format!("/proc/{}/fd/{}", std::process::id(), self.windows.netns_fd().as_raw_fd());
        format!(
            "link add {name} address {mac} mtu 1500 type veth peer name {peer} netns {windows} address {peer_mac}\n",
            mac = mac_text(mac),
            peer_mac = mac_text(WINDOWS_MAC),
        )
    }
}

/// 6 and 12 of `6.12.117-microsoft-standard-WSL2`, 7 and 2 of `7.2-rc1`.
fn major_and_minor(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::major_and_minor;

    #[test]
    fn a_release_is_its_first_two_numbers() {
        assert_eq!(major_and_minor("6.12.117-microsoft-standard-WSL2"), Some((6, 12)));
        assert_eq!(major_and_minor("7.2-rc1"), Some((7, 2)));
        assert_eq!(major_and_minor("unheard of"), None);
    }
}
