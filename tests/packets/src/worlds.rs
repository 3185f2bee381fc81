//! Worlds for the verdict. A world is one combination of the answers that conntrack, the maps and the sockets can give,
//! failures included.

use wsl_mirror_core::{
    abi::{Policy, Reason},
    packet::Packet,
    verdict::{Conntrack, Destination, Entry, Kernel, Listener, status, tcp_state},
};

/// A call of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The port's past was read.
    WasCarried,
    /// The entry of a tuple was looked up.
    Conntrack(Destination),
    /// The port's policy was read.
    PortPolicy,
    /// The default policy was read.
    DefaultPolicy,
    /// The listener was looked up.
    Listener,
    /// The connection was looked up.
    HasConnection,
    /// The entry of a tuple was expired.
    Expire(Destination),
    /// An entry of a tuple was made.
    Create(Destination),
}

/// The calls of one verdict, in order. Small, because there are millions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    made: [Option<Call>; 12],
    /// How many there are.
    pub count: usize,
}

impl Calls {
    fn push(&mut self, call: Call) {
        self.made[self.count] = Some(call);
        self.count += 1;
    }

    /// The calls, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Call> + Clone {
        self.made.into_iter().flatten()
    }

    /// Whether this call was made.
    pub fn has(&self, call: Call) -> bool {
        self.made.contains(&Some(call))
    }

    /// The last call.
    pub fn last(&self) -> Option<Call> {
        self.iter().next_back()
    }

    /// Whether `first` was called, and before `second`.
    pub fn in_order(&self, first: Call, second: Call) -> bool {
        let at = |call| self.iter().position(|made| made == call);
        at(first).zip(at(second)).is_some_and(|(first, second)| first < second)
    }

    /// Whether something in the kernel was changed.
    pub fn changed_anything(&self) -> bool {
        self.iter().any(|call| matches!(call, Call::Expire(_) | Call::Create(_)))
    }
}

/// The answers of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Whether a flow to the port was ever carried.
    pub was_carried: bool,
    /// Conntrack's answer about the packet's tuple on the alias.
    pub on_alias: Conntrack,
    /// Conntrack's answer about the packet's own tuple.
    pub own: Conntrack,
    /// Conntrack's answer about the alias after the insertion of an entry there.
    pub after_insertion: Conntrack,
    /// The port's policy.
    pub port_policy: Policy,
    /// The default policy.
    pub default: Policy,
    /// The listener.
    pub listener: Option<Listener>,
    /// Whether the packet's connection exists.
    pub connection: bool,
    /// Whether an entry can be expired: on the alias, of the own tuple.
    pub expire: [Result<(), ()>; 2],
    /// Whether an entry can be made: on the alias, of the own tuple.
    pub create: [Result<(), Reason>; 2],
}

/// How many worlds there are for each pair of conntrack's answers.
pub const COMBINATIONS: usize =
    2 * AFTER_INSERTION.len() * 3 * 3 * LISTENERS.len() * 2 * 2 * 2 * CREATIONS.len() * CREATIONS.len();

/// What a lookup may find after an insertion that failed: nothing, or what was in the way.
const AFTER_INSERTION: [Conntrack; 6] = {
    const fn found(is_reply: bool, status: u32, tcp_state: u8) -> Conntrack {
        Conntrack::Found(Entry { is_reply, status, tcp_state })
    }
    [
        Conntrack::Missing,
        Conntrack::Failed,
        found(false, status::DST_NAT, 0),
        found(false, status::DST_NAT, tcp_state::TIME_WAIT),
        found(true, status::DST_NAT, 0),
        found(false, status::SEEN_REPLY, 0),
    ]
};

const LISTENERS: [Option<Listener>; 4] = [
    None,
    Some(Listener { owner: Policy::Unset }),
    Some(Listener { owner: Policy::Pass }),
    Some(Listener { owner: Policy::Steer }),
];

const CREATIONS: [Result<(), Reason>; 4] =
    [Ok(()), Err(Reason::AllocFailed), Err(Reason::NatFailed), Err(Reason::InsertFailed)];

impl World {
    /// The world of that number, below [`COMBINATIONS`].
    pub fn of(on_alias: Conntrack, own: Conntrack, mut number: usize) -> Self {
        let mut choose = |of: usize| {
            let chosen = number % of;
            number /= of;
            chosen
        };
        Self {
            was_carried: choose(2) == 1,
            on_alias,
            own,
            after_insertion: AFTER_INSERTION[choose(AFTER_INSERTION.len())],
            port_policy: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
            default: [Policy::Unset, Policy::Pass, Policy::Steer][choose(3)],
            listener: LISTENERS[choose(LISTENERS.len())],
            connection: choose(2) == 1,
            expire: [(); 2].map(|()| [Ok(()), Err(())][choose(2)]),
            create: [(); 2].map(|()| CREATIONS[choose(CREATIONS.len())]),
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

    /// Whether an entry of this tuple can be expired.
    #[expect(clippy::result_unit_err, reason = "as `Kernel` has it")]
    pub const fn expire(&self, destination: Destination) -> Result<(), ()> {
        self.expire[place(destination)]
    }

    /// Whether an entry of this tuple can be made.
    pub const fn create(&self, destination: Destination) -> Result<(), Reason> {
        self.create[place(destination)]
    }
}

const fn place(destination: Destination) -> usize {
    match destination {
        Destination::Alias => 0,
        Destination::Own => 1,
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
    fn was_carried(&mut self, _: &Packet) -> bool {
        self.calls.push(Call::WasCarried);
        self.world.was_carried
    }

    fn conntrack(&mut self, _: &Packet, destination: Destination) -> Conntrack {
        self.calls.push(Call::Conntrack(destination));
        match destination {
            Destination::Own => self.world.own,
            Destination::Alias if self.calls.has(Call::Create(Destination::Alias)) => {
                self.world.after_insertion
            }
            Destination::Alias => self.world.on_alias,
        }
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

    fn expire(&mut self, _: &Packet, destination: Destination) -> Result<(), ()> {
        self.calls.push(Call::Expire(destination));
        self.world.expire(destination)
    }

    fn create(&mut self, _: &Packet, destination: Destination) -> Result<(), Reason> {
        self.calls.push(Call::Create(destination));
        self.world.create(destination)
    }
}
