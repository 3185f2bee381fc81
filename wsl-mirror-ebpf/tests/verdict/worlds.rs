//! Worlds for the verdict: one combination of answers that conntrack, the maps and the sockets can give, failures
//! included.

use wsl_mirror_ebpf::{
    abi::{Carrier, Policy, Reason},
    packet::Packet,
    verdict::{Conntrack, Entry, Kernel},
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
    Remember,
    RememberEngine,
    Forget,
}

/// What was called, in order. Small, because there are millions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub made: [Option<Call>; 12],
    pub count: usize,
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
    pub remembered: Option<Carrier>,
    pub written: Policy,
    pub default: Policy,
    /// What is written about the owner of the listener, if there is one.
    pub listener: Option<Policy>,
    pub connection: bool,
    pub expire: Result<(), ()>,
    pub create: Result<(), Reason>,
    pub remember: Result<(), ()>,
}

/// How many worlds there are for each answer of conntrack.
pub const COMBINATIONS: usize = 3 * 3 * 3 * 4 * 2 * 2 * 4 * 2;

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
            remembered: [None, Some(Carrier::Listener), Some(Carrier::Engine)][choose(3)],
            written: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
            default: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
            listener: [None, Some(Policy::Unset), Some(Policy::Pass), Some(Policy::Steer)][choose(4)],
            connection: choose(2) == 1,
            expire: [Ok(()), Err(())][choose(2)],
            create: [Ok(()), Err(Reason::AllocFailed), Err(Reason::NatFailed), Err(Reason::InsertFailed)]
                [choose(4)],
            remember: [Ok(()), Err(())][choose(2)],
        }
    }

    /// Whether the user wants such a flow steered, or has no word of it and whoever would receive it is to be
    /// steered; and somebody would receive it.
    pub fn admits(&self) -> bool {
        let said = [Some(self.written), self.listener, Some(self.default)];
        let first = said.into_iter().flatten().find(|policy| *policy != Policy::Unset);
        self.listener.is_some() && first == Some(Policy::Steer)
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

    fn remembered(&mut self, _: &Packet) -> Option<Carrier> {
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

    fn listener(&mut self, _: &Packet) -> Option<Policy> {
        self.calls.push(Call::Listener);
        self.world.listener
    }

    fn has_connection(&mut self, _: &Packet) -> bool {
        self.calls.push(Call::HasConnection);
        self.world.connection
    }

    fn expire(&mut self, _: &Packet) -> Result<(), ()> {
        self.calls.push(Call::Expire);
        self.world.expire
    }

    fn create(&mut self, _: &Packet) -> Result<(), Reason> {
        self.calls.push(Call::Create);
        self.world.create
    }

    fn remember(&mut self, _: &Packet, carrier: Carrier) -> Result<(), ()> {
        self.calls.push(match carrier {
            Carrier::Listener => Call::Remember,
            Carrier::Engine => Call::RememberEngine,
        });
        self.world.remember
    }

    fn forget(&mut self, _: &Packet) {
        self.calls.push(Call::Forget);
    }
}
