//! Worlds for the verdict: one combination of answers that conntrack, the maps and the sockets can give, failures
//! included.

use wsl_mirror_core::{
    abi::{Carrier, FlowState, Policy, Reason},
    packet::Packet,
    verdict::{Conntrack, Entry, Kernel, Listener, Remembered, Way},
};

/// Something that the verdict asked or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    Conntrack,
    Remembered,
    WrittenPolicy,
    DefaultPolicy,
    Listener,
    HasConnection,
    Expire,
    Create,
    Way,
    Remember,
    RememberEngine,
    RememberLinux,
    Learn,
    Forget,
}

/// What was called, in order. Small, because there are millions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub made: [Option<Call>; 14],
    pub count: usize,
    /// What was remembered last.
    pub flow: Option<FlowState>,
}

impl Calls {
    fn push(&mut self, call: Call) {
        self.made[self.count] = Some(call);
        self.count += 1;
    }

    pub fn has(&self, call: Call) -> bool {
        self.made.contains(&Some(call))
    }

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

/// What the kernel would answer.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub conntrack: Conntrack,
    pub remembered: Remembered,
    pub written: Policy,
    pub default: Policy,
    pub listener: Option<Listener>,
    pub connection: bool,
    pub way: Way,
    pub expire: Result<(), ()>,
    pub create: Result<(), Reason>,
    pub remember: Result<(), ()>,
}

/// How many worlds there are for each answer of conntrack.
pub const COMBINATIONS: usize = REMEMBERED.len() * 3 * 3 * LISTENERS.len() * 2 * 4 * 2 * 4 * 2;

/// The sequence number of every packet in these tests.
pub const SEQUENCE: u32 = 0x1234_5678;

const REMEMBERED: [Remembered; 8] = {
    const fn flow(carrier: Carrier, by_lo: bool, sequence: u32) -> Remembered {
        Remembered { carrier: Some(carrier), by_lo, sequence }
    }
    [
        Remembered::NOTHING,
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
            remembered: REMEMBERED[choose(REMEMBERED.len())],
            written: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
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

    /// Whether the user wants such a flow steered, or has no word of it and whoever would receive it is to be
    /// steered; and somebody would receive it.
    pub fn admits(&self) -> bool {
        let owner = self.listener.map(|listener| listener.owner);
        let said = [Some(self.written), owner, Some(self.default)];
        let first = said.into_iter().flatten().find(|policy| *policy != Policy::Unset);
        self.listener.is_some() && first == Some(Policy::Steer)
    }

    /// Who carried the flow, as far as it is remembered.
    pub fn carrier(&self) -> Option<Carrier> {
        self.remembered.carrier
    }

    /// Whether a flow that begins is delivered by `lo`.
    pub fn begins_by_lo(&self) -> bool {
        match self.way {
            Way::Plain => false,
            Way::Open | Way::Seen => self.listener.is_some_and(|listener| listener.by_lo),
            Way::ByLo => true,
        }
    }

    pub fn entry(&self) -> Option<Entry> {
        match self.conntrack {
            Conntrack::Found(entry) => Some(entry),
            Conntrack::Missing | Conntrack::Failed => None,
        }
    }

    pub fn is_missing(&self) -> bool {
        self.conntrack == Conntrack::Missing
    }
}

/// A world, and what was asked of it.
pub struct Visit<'a> {
    world: &'a World,
    pub calls: Calls,
}

impl<'a> Visit<'a> {
    pub fn of(world: &'a World) -> Self {
        Self { world, calls: Calls::default() }
    }
}

impl Kernel for Visit<'_> {
    fn conntrack(&mut self, _: &Packet) -> Conntrack {
        self.calls.push(Call::Conntrack);
        self.world.conntrack
    }

    fn remembered(&mut self, _: &Packet) -> Remembered {
        self.calls.push(Call::Remembered);
        self.world.remembered
    }

    fn written_policy(&mut self, _: &Packet) -> Policy {
        self.calls.push(Call::WrittenPolicy);
        self.world.written
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
