//! Linux' own clients: what happens to a connect or a datagram to a port of this machine.
//!
//! A published port's client is sent straight to the container behind the listener (translated). Any other connection to
//! 127.0.0.1 stays on `lo` where policy route rules of ours can keep it there. Everything else is left alone.

use crate::abi::{
    ClientOutcome, Endpoint, LinuxClients, Path, Policy, PortKey, PortPolicy, Protocol, Settings, Target,
};
use crate::packet::LOCALHOST;
use crate::verdict::Listener;

/// A connect(2), or a datagram of a socket that is not connected.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the program wants to go.
    pub destination: Endpoint,
    /// The address that the socket, or the datagram, comes from; 0.0.0.0: the kernel chooses one.
    pub source: [u8; 4],
    /// Whether the socket is bound to a device.
    pub is_bound_to_device: bool,
    /// The socket's `SO_MARK`.
    pub mark: u32,
}

/// What the decision asks of the machine.
pub trait Machine {
    /// Whether an address outside of 127.0.0.0/8 is one of this machine whose clients are translated.
    fn is_own_address(&mut self, address: [u8; 4]) -> bool;
    /// The socket in the client's network namespace that would receive what goes to this address and port.
    fn listener(&mut self, protocol: Protocol, destination: Endpoint) -> Listener;
    /// What the user wrote about a port.
    fn port_policy(&mut self, port: PortKey) -> PortPolicy;
    /// The cookie of the client's network namespace.
    fn netns_cookie(&mut self) -> u64;
    /// The same number, hidden from the kernel's verifier: else the verifier follows all later code once for each
    /// value that it knows the number can have.
    fn opaque(&self, number: u64) -> u64 {
        number
    }
}

/// What happens.
///
/// Plain fields, as in [`Listener`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the destination is this machine. If not, nothing else counts.
    pub is_local: bool,
    /// [`ClientOutcome::Translated`]: the client goes to `container`. Else why it does not.
    pub outcome: ClientOutcome,
    /// The container, if the client goes there.
    pub container: Endpoint,
    /// The connection stays on `lo` if it is not translated.
    pub stays_on_lo: bool,
}

impl Decision {
    const ELSEWHERE: Self = Self::left(ClientOutcome::NoListener, false, false);

    const fn left(outcome: ClientOutcome, is_local: bool, stays_on_lo: bool) -> Self {
        Self { is_local, outcome, container: Endpoint::NONE, stays_on_lo }
    }
}

impl Attempt {
    /// The destination as the kernel reads it: 0.0.0.0 is the socket's own address, and 127.0.0.1 if it has none
    /// (`ip_route_output_key_hash_rcu`).
    #[inline(always)]
    pub const fn resolved(&self) -> Endpoint {
        let Endpoint { address, port, .. } = self.destination;
        if u32::from_ne_bytes(address) != 0 {
            return self.destination;
        }
        if u32::from_ne_bytes(self.source) != 0 {
            return Endpoint::new(self.source, port);
        }
        Endpoint::new(LOCALHOST, port)
    }
}

/// Decides about an attempt.
#[inline(always)]
pub fn decide<M: Machine>(attempt: &Attempt, settings: &Settings, machine: &mut M) -> Decision {
    let destination = attempt.resolved();
    // A wildcard listener is found for any address, that of another machine included.
    if !is_loopback(destination.address) && !machine.is_own_address(destination.address) {
        return Decision::ELSEWHERE;
    }
    let listener = machine.listener(attempt.protocol, destination);
    if !listener.exists {
        return Decision::left(ClientOutcome::NoListener, true, false);
    }
    let written = machine.port_policy(PortKey::new(attempt.protocol, destination.port));
    let policy = written.effective();
    if matches!(policy, Policy::Pass) {
        return Decision::left(ClientOutcome::Exempt, true, false);
    }
    let stays_on_lo = settings.lo_mark != 0
        && can_stay_on_lo(attempt, destination, written)
        && machine.netns_cookie() == settings.netns_cookie;
    let stays_on_lo = machine.opaque(stays_on_lo.into()) != 0;
    match translate(attempt, settings, &listener, written) {
        ClientOutcome::Translated => Decision {
            is_local: true,
            outcome: ClientOutcome::Translated,
            container: container(&listener.target),
            stays_on_lo,
        },
        // A rule on the interface to Windows is met on the way over Windows alone.
        ClientOutcome::Closed => Decision::left(ClientOutcome::Closed, true, false),
        outcome => Decision::left(outcome, true, stays_on_lo),
    }
}

#[inline(always)]
const fn translate(
    attempt: &Attempt,
    settings: &Settings,
    listener: &Listener,
    written: PortPolicy,
) -> ClientOutcome {
    if !matches!(LinuxClients::from_number(settings.linux_clients), LinuxClients::Translated) {
        return ClientOutcome::SwitchedOff;
    }
    let Some(target) = listener.target() else { return ClientOutcome::NoTarget };
    match written.effective() {
        Policy::Steer => return ClientOutcome::PolicySteer,
        Policy::Direct => {}
        Policy::Unset | Policy::Pass => {
            let path = match written.path() {
                // The lowest byte.
                Path::Unset => Path::from_byte(settings.path.to_le_bytes()[0]),
                path => path,
            };
            if matches!(path, Path::Proxy) {
                return ClientOutcome::PathProxy;
            }
        }
    }
    if !target.is_open_to_linux() {
        return ClientOutcome::Closed;
    }
    // From 127.0.0.0/8 no container is reached; a device and a mark choose a route of their own.
    let has_foreign_mark = attempt.mark & !settings.lo_mark != 0;
    if is_loopback(attempt.source) || attempt.is_bound_to_device || has_foreign_mark {
        return ClientOutcome::ClientBound;
    }
    ClientOutcome::Translated
}

/// Whether policy route rules can keep a connection to a listener on `lo`. A datagram's way is chosen before the hooks run
/// (`udp_sendmsg`), so of UDP only ports count that Windows never sends to Linux anyway.
#[inline(always)]
const fn can_stay_on_lo(attempt: &Attempt, destination: Endpoint, written: PortPolicy) -> bool {
    let is_from_localhost = u32::from_ne_bytes(attempt.source) == 0 || is_localhost(attempt.source);
    let has_protocol = match attempt.protocol {
        Protocol::Tcp => true,
        Protocol::Udp => written.is_never_sent(),
    };
    has_protocol && is_localhost(destination.address) && is_from_localhost && !attempt.is_bound_to_device
}

#[inline(always)]
const fn container(target: &Target) -> Endpoint {
    Endpoint::new(target.address, target.port)
}

#[inline(always)]
const fn is_localhost(address: [u8; 4]) -> bool {
    u32::from_ne_bytes(address) == u32::from_ne_bytes(LOCALHOST)
}

#[inline(always)]
const fn is_loopback(address: [u8; 4]) -> bool {
    address[0] == LOCALHOST[0]
}
