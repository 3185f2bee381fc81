//! The sysctls on which delivery by `lo` depends: two that are switched on, and a few that must not be.

use std::fs;
use std::io::Write as _;

use anyhow::Result;

use crate::exit::{Exit, OrExit as _};

/// What is switched on for `lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Packets from and to 127/8 may come in there with a route.
    RouteLocalnet = 0,
    /// So may packets from an address of this machine.
    AcceptLocal = 1,
}

/// All of them, in the order of their numbers.
pub const SWITCHES: [Switch; 2] = [Switch::RouteLocalnet, Switch::AcceptLocal];

impl Switch {
    /// Its name below `net.ipv4.conf.lo`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RouteLocalnet => "route_localnet",
            Self::AcceptLocal => "accept_local",
        }
    }

    fn path(self) -> String {
        path(&of_interface("lo", self.name()))
    }

    /// Sets it for `lo`.
    pub fn set(self, value: i32) -> Result<()> {
        let path = self.path();
        // `fs::write` would make a file where there is no such sysctl.
        let written = fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(value.to_string().as_bytes()));
        written.or_exit(Exit::Kernel, || format!("cannot write {value} to {path}"))
    }
}

/// The namespace is the reader's own, whoever mounted this.
const DIRECTORY: &str = "/proc/sys/net/ipv4";
const RP_FILTER: &str = "rp_filter";
const TCP_FWMARK_ACCEPT: &str = "tcp_fwmark_accept";
const FWMARK_REFLECT: &str = "fwmark_reflect";

/// The files that [`Sysctls::read`] reads.
pub fn files() -> impl Iterator<Item = String> {
    let each = SWITCHES.map(Switch::name).into_iter().chain([RP_FILTER]);
    let of_interfaces = each.flat_map(|name| ["all", "lo"].map(|interface| of_interface(interface, name)));
    of_interfaces.chain([TCP_FWMARK_ACCEPT, FWMARK_REFLECT].map(str::to_owned)).map(|name| path(&name))
}

fn of_interface(interface: &str, name: &str) -> String {
    format!("conf/{interface}/{name}")
}

fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// A sysctl that interfaces have each for themselves, and all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerInterface {
    /// `conf.all`
    pub all: i32,
    /// `conf.lo`
    pub lo: i32,
}

/// What they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// The switches, each at its number. Either `all` or `lo` will do (`IN_DEV_ORCONF`).
    pub switches: [PerInterface; SWITCHES.len()],
    /// Whether those of `lo` cannot be set: in many a container they cannot.
    pub read_only: [bool; SWITCHES.len()],
    /// The larger one counts (`IN_DEV_MAXCONF`).
    pub rp_filter: PerInterface,
    /// Whether what accepts a connection takes over the mark of its first packet.
    pub tcp_fwmark_accept: i32,
    /// Whether what the kernel itself answers, resets and ICMP, carries the mark of the packet that it answers.
    pub fwmark_reflect: i32,
}

impl Sysctls {
    /// Reads them all.
    pub fn read() -> Result<Self> {
        Ok(Self {
            switches: [
                PerInterface::read(Switch::RouteLocalnet.name())?,
                PerInterface::read(Switch::AcceptLocal.name())?,
            ],
            read_only: SWITCHES.map(|switch| fs::File::options().write(true).open(switch.path()).is_err()),
            rp_filter: PerInterface::read(RP_FILTER)?,
            tcp_fwmark_accept: read(TCP_FWMARK_ACCEPT)?,
            fwmark_reflect: read(FWMARK_REFLECT)?,
        })
    }

    /// A switch.
    pub fn switch(&self, switch: Switch) -> PerInterface {
        self.switches[switch as usize]
    }

    /// Whether it is off for `lo`, and what `all` is does not help.
    pub fn is_off(&self, switch: Switch) -> bool {
        let value = self.switch(switch);
        value.all == 0 && value.lo == 0
    }

    /// Whether it cannot be set.
    pub fn is_read_only(&self, switch: Switch) -> bool {
        self.read_only[switch as usize]
    }
}

impl PerInterface {
    fn read(name: &str) -> Result<Self> {
        Ok(Self { all: read(&of_interface("all", name))?, lo: read(&of_interface("lo", name))? })
    }
}

fn read(name: &str) -> Result<i32> {
    let path = path(name);
    let text = fs::read_to_string(&path).or_exit(Exit::Kernel, || format!("cannot read {path}"))?;
    text.trim()
        .parse()
        .or_exit(Exit::Kernel, || format!("{path} holds {:?}, which is no number", text.trim()))
}
