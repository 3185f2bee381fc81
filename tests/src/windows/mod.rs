//! Windows' side of mirrored mode: which ports it sends to the guest, and what it refuses, drops and forgets.
//!
//! The programs of `tests/windows` decide about every packet and every bind; one [`Tracker`] a lab releases ports. The
//! links and maps are held by this process, so they go with it.

mod garbling;
mod ghosts;
mod object;
mod options;
mod sockets;
mod switches;
mod tracker;
mod transport;

use std::{
    net::{Ipv4Addr, UdpSocket},
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
pub use wsl_mirror_windows::Dropped;
use wsl_mirror_windows::{REFUSED, Settings, Wire, rule};

pub use garbling::Garbled;
pub(crate) use garbling::Garbling;
pub(crate) use options::WindowsOptions;
pub use transport::Transport;

use crate::{
    Namespace,
    mirrored::MirroredNetwork,
    windows::{object::Object, tracker::Tracker},
};

/// TCP ports that Windows never sends to Linux (WSL 2.7.1 to 2.9.4, read).
const NEVER_SENT_TCP: [u16; 7] = [135, 1900, 2869, 3702, 5004, 5357, 5358];
/// UDP ports that Windows never sends to Linux (same source).
const NEVER_SENT_UDP: [u16; 1] = [68];
/// UDP ports that Windows and Linux share (same source).
const SHARED_UDP: [u16; 2] = [5353, 5355];
/// The port of whose binds Windows never hears (same source).
const DNS: u16 = 53;

/// A lab's Windows.
#[derive(Debug)]
pub(crate) struct Windows {
    options: WindowsOptions,
    namespace: Namespace,
    cookie: u64,
    object: Arc<Object>,
    tracker: Tracker,
    /// What Windows gives the guest of its own network now.
    network: Mutex<MirroredNetwork>,
}

impl Windows {
    /// Starts it: it hears of binds in `guest` from now on. Its NICs are attached later ([`Self::attach`]).
    pub(crate) fn start(
        options: &WindowsOptions,
        network: MirroredNetwork,
        guest: &Namespace,
        namespace: &Namespace,
    ) -> Result<Self> {
        let object = Arc::new(Object::load().context("loading the programs of Windows")?);
        let tracker = Tracker::start(Arc::clone(&object), guest, namespace, options)?;
        object.hear_binds().context("attaching the programs of Windows to bind(2)")?;
        let cookie = cookie(&object, guest).context("asking for the cookie of the guest's namespace")?;
        let windows = Self {
            options: options.clone(),
            namespace: namespace.clone(),
            cookie,
            object,
            tracker,
            network: Mutex::new(network),
        };
        windows.write_options()?;
        Ok(windows)
    }

    /// Has the programs decide about what leaves and enters by this NIC.
    pub(crate) fn attach(&self, nic: &str) -> Result<()> {
        self.namespace
            .enter(|| self.object.attach(nic))
            .with_context(|| format!("attaching the programs of Windows to {nic}"))
    }

    /// The network that Windows mirrors now.
    pub(crate) fn network(&self) -> MirroredNetwork {
        self.network.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Mirrors another network from now on. What Windows refuses stays as it is.
    pub(crate) fn set_network(&self, network: MirroredNetwork) -> Result<()> {
        self.update_settings(|settings| {
            settings.lan = network.lan.to_bits();
            settings.leased = [*network.leased.start(), *network.leased.end()];
        })?;
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = network;
        Ok(())
    }

    /// Has the programs decide about what Windows sends to `::1`, by its `lo`.
    pub(crate) fn attach_ipv6(&self, lo: &str) -> Result<()> {
        if !self.options.silent_ipv6 {
            return Ok(());
        }
        self.namespace
            .enter(|| self.object.attach_ipv6(lo))
            .with_context(|| format!("attaching the programs of Windows to {lo}"))
    }

    /// Has the programs decide about what a neighbour sends, by the NIC at the wire.
    pub(crate) fn attach_wire(&self, nic: &str, wire: Wire) -> Result<()> {
        self.object.set_wire(wire)?;
        self.namespace
            .enter(|| self.object.attach_wire(nic))
            .with_context(|| format!("attaching the programs of Windows to {nic}"))
    }

    /// Makes Windows as it was at its start: no switch is on, no flow is known, no released port is routed.
    pub(crate) fn reset(&self) -> Result<()> {
        self.object.clear_rules()?;
        self.write_options()?;
        self.object.forget_flows()?;
        self.tracker.settle()
    }

    fn write_options(&self) -> Result<()> {
        let network = self.network();
        self.object.set_settings(Settings {
            guest: self.cookie,
            lan: network.lan.to_bits(),
            leased: [*network.leased.start(), *network.leased.end()],
            watches_handshakes: self.options.watches_handshakes.into(),
            ..Settings::default()
        })?;
        self.refuse_binds(&self.options.refused)?;
        self.object.set_garble(self.options.garbling.value()?)?;
        let mut rules = Vec::new();
        rules.extend(NEVER_SENT_TCP.map(|port| (Transport::Tcp.key(port), rule::NEVER_SENT)));
        rules.extend(NEVER_SENT_UDP.map(|port| (Transport::Udp.key(port), rule::NEVER_SENT)));
        rules.extend(SHARED_UDP.map(|port| (Transport::Udp.key(port), rule::SHARED)));
        for protocol in Transport::BOTH {
            let unreported = self.options.ignored_ports.iter().chain([&DNS]);
            rules.extend(unreported.map(|port| (protocol.key(*port), rule::NOT_REPORTED)));
            let sent = self.options.always_sent.iter().cloned().flatten();
            rules.extend(sent.map(|port| (protocol.key(port), rule::ALWAYS_SENT)));
        }
        rules.into_iter().try_for_each(|(key, bit)| self.object.add_rule(key, bit))
    }

    /// Changes what holds for all ports.
    fn update_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        let mut settings = self.object.settings()?;
        change(&mut settings);
        self.object.set_settings(settings)
    }

    /// Refuses binds in these ranges, and in no others.
    fn refuse_binds(&self, ranges: &[RangeInclusive<u16>]) -> Result<()> {
        if !ranges.is_empty() {
            object::ensure_can_refuse()?;
        }
        ensure!(ranges.len() <= REFUSED, "Windows refuses at most {REFUSED} ranges");
        self.update_settings(|settings| {
            settings.refused = Default::default();
            for (place, range) in settings.refused.iter_mut().zip(ranges) {
                *place = [*range.start(), *range.end()];
            }
        })
    }
}

/// The cookie of the guest's network namespace, by which the programs know it.
fn cookie(object: &Object, guest: &Namespace) -> Result<u64> {
    /// Any port: nobody binds one in a guest that is being made.
    const PROBE: u16 = 9;
    if let Some(cookie) = guest.cookie()? {
        return Ok(cookie);
    }
    object.set_settings(Settings { probe: PROBE.into(), ..Settings::default() })?;
    guest.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PROBE)))?;
    Ok(object.settings()?.guest)
}
