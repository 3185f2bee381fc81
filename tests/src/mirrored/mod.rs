//! Mirrored mode: the guest, its Windows, and the two NICs between them.

mod guest;
mod windows;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result};

use crate::{
    cgroups::LabCgroup,
    namespace::{Mounts, Namespace},
};

/// The link-layer address of the guest's `loopback0`, with Hyper-V's prefix.
pub const GUEST_MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0x17, 0x96, 0x5a];
/// What Windows answers to: the link-layer address of [`Gateway`].
pub const WINDOWS_MAC: [u8; 6] = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55];
/// The source of frames that Windows reflects to the guest; arbitrary in this model.
pub const REFLECTION_MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0x23, 0x23, 0x30];
/// The address that guest and Windows share on the LAN.
pub const LAN_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 10);
/// The guest's local ports: a block leased from Windows, which sends them to the guest.
pub const GUEST_EPHEMERAL: RangeInclusive<u16> = 44_620..=48_715;

const ETH0_MAC: [u8; 6] = [0x7c, 0x8a, 0xe1, 0xc3, 0xe8, 0x64];

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

/// 127.0.0.1 with that port.
pub fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// What a lab can be asked for; [`Lab::builder`] gives the usual one.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    gateway: Gateway,
    guest_ports: Vec<RangeInclusive<u16>>,
    mounts: Mounts,
    loopback0: bool,
    host_address_loopback: bool,
    configuration: Option<String>,
}

impl LabBuilder {
    /// Which WSL; 2.9 unless told.
    #[must_use]
    pub fn gateway(mut self, gateway: Gateway) -> Self {
        self.gateway = gateway;
        self
    }

    /// The ports, TCP and UDP, that Windows sends to the guest (on WSL: those that somebody has bound there).
    /// 5353 and 8000 to 8999 unless told; servers on Windows belong on others.
    #[must_use]
    pub fn guest_ports(mut self, ports: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        self.guest_ports = ports.into_iter().collect();
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
        let lab = Lab { options: self, guest, windows, cgroup };
        lab.add_nics().context("making the NICs between guest and Windows")?;
        lab.set_up_guest().context("setting up the guest as WSL does")?;
        if let Some(text) = &lab.options.configuration {
            lab.guest.enter(|| fs::write(CONFIGURATION, text)).context("writing the configuration")?;
        }
        lab.set_up_windows().context("setting up the Windows stand-in")?;
        Ok(lab)
    }
}

/// A guest in mirrored mode and its Windows.
#[derive(Debug)]
pub struct Lab {
    options: LabBuilder,
    guest: Namespace,
    windows: Namespace,
    cgroup: Arc<LabCgroup>,
}

impl Lab {
    /// Starts from the usual lab: WSL 2.9, a bpffs, `loopback0` present.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            gateway: Gateway::Wsl29,
            guest_ports: vec![5353..=5353, 8000..=8999],
            mounts: Mounts { bpffs: true, wslinfo: true },
            loopback0: true,
            host_address_loopback: false,
            configuration: None,
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

    /// The gateway of table 127.
    pub fn gateway(&self) -> Ipv4Addr {
        self.options.gateway.address()
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

    /// Every port that Windows sends to the guest.
    fn routed_ports(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.options.guest_ports.iter().chain([&GUEST_EPHEMERAL])
    }
}

/// 6 and 12 of `6.12.117-microsoft-standard-WSL2`, 7 and 2 of `7.2-rc1`.
fn major_and_minor(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn range_text(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
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
