//! Worlds for the verdict. A world is one combination of the answers that conntrack, the maps and the sockets can give,
//! failures included.

use wsl_mirror_core::{
    abi::{Carrier, FlowState, Policy, Reason},
    packet::Packet,
    verdict::{Conntrack, Entry, Kernel, KnownFlow, Listener, Way},
};

/// A call of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// The entry was looked up.
    Conntrack,
    /// The record of the flow was read.
    KnownFlow,
    /// The port's policy was read.
    PortPolicy,
    /// The default policy was read.
    DefaultPolicy,
    /// The listener was looked up.
    Listener,
    /// The connection was looked up.
    HasConnection,
    /// The entry was removed.
    Expire,
    /// An entry was made.
    Create,
    /// The ways to the port were read.
    Way,
    /// The flow was recorded as steered.
    Remember,
    /// The flow was recorded as an engine's.
    RememberEngine,
    /// The flow was recorded as one within Linux.
    RememberLinux,
    /// The listener learned of delivery by `lo`.
    Learn,
    /// The record of the flow was dropped.
    Forget,
}

/// The calls of one verdict, in order. Small, because there are millions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// The calls themselves.
    pub made: [Option<Call>; 14],
    /// How many there are.
    pub count: usize,
    /// The last record of the flow.
    pub flow: Option<FlowState>,
}

impl Calls {
    fn push(&mut self, call: Call) {
        self.made[self.count] = Some(call);
        self.count += 1;
    }

    /// Whether this call was made.
    pub fn has(&self, call: Call) -> bool {
        self.made.contains(&Some(call))
    }

    /// The last call.
    pub fn last(&self) -> Option<Call> {
        self.made[self.count - 1]
    }

    /// Whether `first` was called, and before `second`.
    pub fn in_order(&self, first: Call, second: Call) -> bool {
        let at = |call| self.made.iter().position(|made| *made == Some(call));
        at(first).zip(at(second)).is_some_and(|(first, second)| first < second)
    }

    /// Whether something in the kernel was changed.
    pub fn changed_anything(&self) -> bool {
        self.has(Call::Expire) || self.has(Call::Create) || self.has(Call::Remember)
    }
}

/// The answers of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Conntrack's answer.
    pub conntrack: Conntrack,
    /// The record of the flow.
    pub known_flow: KnownFlow,
    /// The port's policy.
    pub port_policy: Policy,
    /// The default policy.
    pub default: Policy,
    /// The listener.
    pub listener: Option<Listener>,
    /// Whether the packet's connection exists.
    pub connection: bool,
    /// The ways to the port.
    pub way: Way,
    /// Whether an entry can be removed.
    pub expire: Result<(), ()>,
    /// Whether an entry can be made.
    pub create: Result<(), Reason>,
    /// Whether there is room for a record.
    pub remember: Result<(), ()>,
}

/// How many worlds there are for each answer of conntrack.
pub const COMBINATIONS: usize = KNOWN_FLOWS.len() * 3 * 3 * LISTENERS.len() * 2 * 4 * 2 * 4 * 2;

/// The sequence number of every packet in these tests.
pub const SEQUENCE: u32 = 0x1234_5678;

const KNOWN_FLOWS: [KnownFlow; 8] = {
    const fn flow(carrier: Carrier, by_lo: bool, sequence: u32) -> KnownFlow {
        KnownFlow { carrier: Some(carrier), by_lo, sequence }
    }
    [
        KnownFlow::NONE,
        flow(Carrier::Listener, false, 0),
        flow(Carrier::Listener, true, 0),
        flow(Carrier::Engine, false, 0),
        flow(Carrier::Linux, false, SEQUENCE),
        flow(Carrier::Linux, false, SEQUENCE + 1),
        flow(Carrier::Linux, true, SEQUENCE),
        flow(Carrier::Linux, true, SEQUENCE + 1),
    ]
};

const LISTENERS: [Option<Listener>; 7] = {
    const fn of(owner: Policy, by_lo: bool) -> Listener {
        Listener { owner, by_lo }
    }
    [
        None,
        Some(of(Policy::Unset, false)),
        Some(of(Policy::Unset, true)),
        Some(of(Policy::Pass, false)),
        Some(of(Policy::Pass, true)),
        Some(of(Policy::Steer, false)),
        Some(of(Policy::Steer, true)),
    ]
};

impl World {
    /// The world of that number, below [`COMBINATIONS`].
    pub fn of(conntrack: Conntrack, mut number: usize) -> Self {
        let mut choose = |of: usize| {
            let chosen = number % of;
            number /= of;
            chosen
        };
        Self {
            conntrack,
            known_flow: KNOWN_FLOWS[choose(KNOWN_FLOWS.len())],
            port_policy: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
            default: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
            listener: LISTENERS[choose(LISTENERS.len())],
            connection: choose(2) == 1,
            way: [Way::Plain, Way::Open, Way::Seen, Way::ByLo][choose(4)],
            expire: [Ok(()), Err(())][choose(2)],
            create: [Ok(()), Err(Reason::AllocFailed), Err(Reason::NatFailed), Err(Reason::InsertFailed)]
                [choose(4)],
            remember: [Ok(()), Err(())][choose(2)],
        }
    }

    /// Whether a flow that begins is to be steered: it has a listener, and the first policy of the port, its owner and
    /// the default says so.
    pub fn admits(&self) -> bool {
        let owner = self.listener.map(|listener| listener.owner);
        let policies = [Some(self.port_policy), owner, Some(self.default)];
        let first = policies.into_iter().flatten().find(|policy| *policy != Policy::Unset);
        self.listener.is_some() && first == Some(Policy::Steer)
    }

    /// The flow's carrier, as far as it is recorded.
    pub fn carrier(&self) -> Option<Carrier> {
        self.known_flow.carrier
    }

    /// Whether a flow that begins is delivered by `lo`.
    pub fn begins_by_lo(&self) -> bool {
        match self.way {
            Way::Plain => false,
            Way::Open | Way::Seen => self.listener.is_some_and(|listener| listener.by_lo),
            Way::ByLo => true,
        }
    }

    /// The flow's entry.
    pub fn entry(&self) -> Option<Entry> {
        match self.conntrack {
            Conntrack::Found(entry) => Some(entry),
            Conntrack::Missing | Conntrack::Failed => None,
        }
    }

    /// Whether the flow has no entry.
    pub fn is_missing(&self) -> bool {
        self.conntrack == Conntrack::Missing
    }
}

/// A world during one verdict.
#[derive(Debug)]
pub struct Visit<'a> {
    world: &'a World,
    /// The calls so far.
    pub calls: Calls,
}

impl<'a> Visit<'a> {
    /// A visit of this world.
    pub fn of(world: &'a World) -> Self {
        Self { world, calls: Calls::default() }
    }
}

impl Kernel for Visit<'_> {
    fn conntrack(&mut self, _: &Packet) -> Conntrack {
        self.calls.push(Call::Conntrack);
        self.world.conntrack
    }

    fn known_flow(&mut self, _: &Packet) -> KnownFlow {
        self.calls.push(Call::KnownFlow);
        self.world.known_flow
    }

    fn port_policy(&mut self, _: &Packet) -> Policy {
        self.calls.push(Call::PortPolicy);
        self.world.port_policy
    }

    fn default_policy(&mut self) -> Policy {
        self.calls.push(Call::DefaultPolicy);
        self.world.default
    }

    fn listener(&mut self, _: &Packet) -> Option<Listener> {
        self.calls.push(Call::Listener);
        self.world.listener
    }

    fn has_connection(&mut self, _: &Packet) -> bool {
        self.calls.push(Call::HasConnection);
        self.world.connection
    }

    fn way(&mut self, _: &Packet) -> Way {
        self.calls.push(Call::Way);
        self.world.way
    }

    fn expire(&mut self, _: &Packet) -> Result<(), ()> {
        self.calls.push(Call::Expire);
        self.world.expire
    }

    fn create(&mut self, _: &Packet) -> Result<(), Reason> {
        self.calls.push(Call::Create);
        self.world.create
    }

    fn remember(&mut self, _: &Packet, flow: FlowState) -> Result<(), ()> {
        self.calls.flow = Some(flow);
        self.calls.push(match Carrier::from_number(flow.carrier) {
            Some(Carrier::Listener) => Call::Remember,
            Some(Carrier::Engine) => Call::RememberEngine,
            Some(Carrier::Linux) => Call::RememberLinux,
            None => panic!("nobody: {flow:?}"),
        });
        self.world.remember
    }

    fn learn(&mut self, _: &Packet) {
        self.calls.push(Call::Learn);
    }

    fn forget(&mut self, _: &Packet) {
        self.calls.push(Call::Forget);
    }
}
