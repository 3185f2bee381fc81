//! Worlds for the verdict. A world is one combination of the answers that conntrack, the maps, the routes and the sockets
//! can give, failures included.

use wsl_mirror_core::{
    abi::{
        DEFAULT_ALIAS, DirectFlow, EngineWay, Path, Policy, PortPackets, PortPolicy, Reason, Service, Target,
    },
    packet::{LOCALHOST, Packet},
    verdict::{Conntrack, End, Entry, Kernel, Listener, TupleKind, status, tcp_state},
};

/// The address of the container behind the listener, where a world has one.
pub const CONTAINER: [u8; 4] = [172, 17, 0, 2];
/// The address of a container that had the port before.
pub const FORMER: [u8; 4] = [172, 17, 0, 3];
/// The time in every world, in ns.
pub const NOW: u64 = 1_000_000_000_000;

/// A call of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The port's past was read.
    Carried,
    /// The entry of a tuple was looked up.
    Conntrack(TupleKind),
    /// The port's policy was read.
    PortPolicy,
    /// The default policy was read.
    DefaultPolicy,
    /// The global path was read.
    GlobalPath,
    /// The listener was looked up.
    Listener,
    /// The connection was looked up.
    HasConnection,
    /// A sender of this machine was looked up.
    HasSender,
    /// The ways to the container and back were looked up.
    IsReachable,
    /// The clock was read.
    Now,
    /// The note that the container does not answer was written.
    NoteUnanswered,
    /// The translation of a direct flow was read.
    Recall,
    /// The entry of a tuple was expired.
    Expire(TupleKind),
    /// An entry of a tuple was made.
    Create(TupleKind),
}

/// The calls of one verdict, in order. Small, because there are millions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    made: [Option<Call>; 24],
    /// How many there are.
    pub count: usize,
    /// The target for which an entry was last expired, by [`TupleKind`].
    pub expired_for: [Option<End>; 3],
    /// The translation with which a direct entry was made.
    pub flow: Option<DirectFlow>,
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

    /// How often this call was made.
    pub fn times(&self, call: Call) -> usize {
        self.iter().filter(|made| *made == call).count()
    }

    /// How many lookups of entries were made.
    pub fn lookups(&self) -> usize {
        self.iter().filter(|call| matches!(call, Call::Conntrack(_))).count()
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
        self.iter().any(|call| matches!(call, Call::Expire(_) | Call::Create(_) | Call::NoteUnanswered))
    }
}

/// The answers of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Packets of carried flows to the port.
    pub carried: PortPackets,
    /// Conntrack's answers about the packet's tuples, by [`TupleKind`].
    pub entries: [Conntrack; 3],
    /// Conntrack's answers after the insertion of an entry of that tuple.
    pub after_insertion: [Conntrack; 3],
    /// What the user wrote about the port.
    pub written: PortPolicy,
    /// The global path.
    pub path: Path,
    /// The default policy.
    pub default: Policy,
    /// The listener.
    pub listener: Option<Listener>,
    /// Whether the kernel forwards to the container and back.
    pub reachable: bool,
    /// Whether the packet's connection exists.
    pub connection: bool,
    /// Whether a socket of this machine sends the packet.
    pub sender: bool,
    /// The translation of the direct flow that has lost its entry.
    pub recalled: Option<DirectFlow>,
    /// Whether an entry can be expired, by [`TupleKind`].
    pub expire: [Result<(), ()>; 3],
    /// Whether an entry can be made, by [`TupleKind`].
    pub create: [Result<(), Reason>; 3],
}

/// How many worlds there are for each three answers of conntrack.
pub const COMBINATIONS: u64 = 4
    * (AFTER_INSERTION.len() as u64).pow(2)
    * (BYTES.len() as u64).pow(3)
    * (PATHS.len() * POLICIES.len()) as u64
    * (1 + OWNERS.len() * (1 + TARGETS)) as u64
    * 2_u64.pow(4)
    * 2_u64.pow(3)
    * (CREATIONS.len() as u64).pow(3);

/// What a lookup may find after an insertion that failed: nothing, or what was in the way.
const AFTER_INSERTION: [Conntrack; 8] = {
    const fn found(is_reply: bool, status: u32, tcp_state: u8, reply_source: [u8; 4]) -> Conntrack {
        Conntrack::Found(Entry { is_reply, status, tcp_state, reply_source, reply_port: FLOW.port })
    }
    const BOTH: u32 = status::DST_NAT | status::SRC_NAT;
    [
        Conntrack::Missing,
        Conntrack::Failed,
        found(false, status::DST_NAT, 0, LOCALHOST),
        found(false, status::DST_NAT, tcp_state::TIME_WAIT, LOCALHOST),
        found(true, BOTH, 0, CONTAINER),
        found(false, BOTH, 0, CONTAINER),
        found(false, BOTH | status::SEEN_REPLY, 0, FORMER),
        found(false, status::SEEN_REPLY, 0, DEFAULT_ALIAS),
    ]
};

/// Every policy and path, as bytes; the last one stands for none.
const BYTES: [u8; 5] = [0, 1, 2, 3, 0xff];
const POLICIES: [Policy; 4] = [Policy::Unset, Policy::Pass, Policy::Steer, Policy::Direct];
const PATHS: [Path; 4] = [Path::Unset, Path::Auto, Path::Direct, Path::Proxy];
/// An owner has no other policy ([`wsl_mirror_core::abi::OwnerPolicy`]).
const OWNERS: [Policy; 3] = [Policy::Unset, Policy::Pass, Policy::Steer];
/// Each service and each way of the engine, at each of these times.
const TARGETS: usize = 2 * 2 * UNANSWERED.len();
/// When a direct flow was last unanswered: never, now, at the end of the minute, after it.
const UNANSWERED: [u64; 4] = [0, NOW, NOW - Target::AVOIDED_NS + 1, NOW - Target::AVOIDED_NS];
const CREATIONS: [Result<(), Reason>; 4] =
    [Ok(()), Err(Reason::AllocFailed), Err(Reason::NatFailed), Err(Reason::InsertFailed)];

/// The translation of the container's flow: the port on its side is the kernel's choice.
pub const FLOW: DirectFlow =
    DirectFlow { address: CONTAINER, source: [172, 17, 0, 1], port: 80, source_port: 0 };
/// The same of a flow that was begun before.
const RECALLED: DirectFlow = DirectFlow { source_port: 41_000, ..FLOW };

/// A target of this kind.
pub const fn target(service: Service, engine_way: EngineWay, unanswered_at: u64) -> Target {
    Target {
        unanswered_at,
        address: FLOW.address,
        source: FLOW.source,
        ifindex: 7,
        port: FLOW.port,
        service: service as u8,
        flags: engine_way as u8,
    }
}

fn listener(number: usize) -> Option<Listener> {
    let number = number.checked_sub(1)?;
    let (owner, kind) = (OWNERS[number % OWNERS.len()], number / OWNERS.len());
    let target = kind.checked_sub(1).map(|kind| {
        let service = if kind & 1 == 0 { Service::Holder } else { Service::Proxy };
        let engine_way = if kind & 2 == 0 { EngineWay::Open } else { EngineWay::Dropped };
        target(service, engine_way, UNANSWERED[kind >> 2])
    });
    Some(Listener::new(owner, target))
}

impl World {
    /// The world of that number, below [`COMBINATIONS`], with these entries by [`TupleKind`].
    pub fn of(entries: [Conntrack; 3], mut number: u64) -> Self {
        let mut choose = |of: usize| {
            let of = of as u64;
            let chosen = number % of;
            number /= of;
            usize::try_from(chosen).unwrap_or(0)
        };
        let mut inserted = || AFTER_INSERTION[choose(AFTER_INSERTION.len())];
        let after_insertion = [Conntrack::Missing, inserted(), inserted()];
        Self {
            carried: PortPackets { steered: 7 * choose(2) as u64, direct: 9 * choose(2) as u64 },
            entries,
            after_insertion,
            written: PortPolicy {
                cli: BYTES[choose(BYTES.len())],
                config: BYTES[choose(BYTES.len())],
                path: BYTES[choose(BYTES.len())],
                flags: 0,
            },
            path: PATHS[choose(PATHS.len())],
            default: POLICIES[choose(POLICIES.len())],
            listener: listener(choose(1 + OWNERS.len() * (1 + TARGETS))),
            reachable: choose(2) == 1,
            connection: choose(2) == 1,
            sender: choose(2) == 1,
            recalled: [None, Some(RECALLED)][choose(2)],
            expire: [(); 3].map(|()| [Ok(()), Err(())][choose(2)]),
            create: [(); 3].map(|()| CREATIONS[choose(CREATIONS.len())]),
        }
    }

    /// Conntrack's answer about this tuple.
    pub const fn entry(&self, kind: TupleKind) -> Conntrack {
        self.entries[kind as usize]
    }

    /// Conntrack's answer about this tuple after the insertion of an entry.
    pub const fn after_insertion(&self, kind: TupleKind) -> Conntrack {
        self.after_insertion[kind as usize]
    }

    /// Whether an entry of this tuple can be expired.
    #[expect(clippy::result_unit_err, reason = "as `Kernel` has it")]
    pub const fn expire(&self, kind: TupleKind) -> Result<(), ()> {
        self.expire[kind as usize]
    }

    /// Whether an entry of this tuple can be made.
    pub const fn create(&self, kind: TupleKind) -> Result<(), Reason> {
        self.create[kind as usize]
    }

    /// The container behind the listener.
    pub fn target(&self) -> Option<Target> {
        self.listener.and_then(|listener| listener.target().copied())
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
    fn carried(&mut self, _: &Packet) -> PortPackets {
        self.calls.push(Call::Carried);
        self.world.carried
    }

    fn conntrack(&mut self, _: &Packet, kind: TupleKind) -> Conntrack {
        self.calls.push(Call::Conntrack(kind));
        if self.calls.has(Call::Create(kind)) {
            self.world.after_insertion(kind)
        } else {
            self.world.entry(kind)
        }
    }

    fn port_policy(&mut self, _: &Packet) -> PortPolicy {
        self.calls.push(Call::PortPolicy);
        self.world.written
    }

    fn default_policy(&mut self) -> Policy {
        self.calls.push(Call::DefaultPolicy);
        self.world.default
    }

    fn global_path(&mut self) -> Path {
        self.calls.push(Call::GlobalPath);
        self.world.path
    }

    fn listener(&mut self, _: &Packet) -> Listener {
        self.calls.push(Call::Listener);
        self.world.listener.unwrap_or(Listener::NONE)
    }

    fn has_connection(&mut self, _: &Packet) -> bool {
        self.calls.push(Call::HasConnection);
        self.world.connection
    }

    fn has_sender(&mut self, _: &Packet) -> bool {
        self.calls.push(Call::HasSender);
        self.world.sender
    }

    fn is_reachable(&mut self, _: &Packet, _: &Target) -> bool {
        self.calls.push(Call::IsReachable);
        self.world.reachable
    }

    fn now(&mut self) -> u64 {
        self.calls.push(Call::Now);
        NOW
    }

    fn note_unanswered(&mut self, _: &Packet) {
        self.calls.push(Call::NoteUnanswered);
    }

    fn expire(&mut self, _: &Packet, kind: TupleKind, target: End) -> Result<(), ()> {
        self.calls.push(Call::Expire(kind));
        self.calls.expired_for[kind as usize] = Some(target);
        self.world.expire(kind)
    }

    fn create(&mut self, _: &Packet, kind: TupleKind) -> Result<(), Reason> {
        self.calls.push(Call::Create(kind));
        self.world.create(kind)
    }

    fn create_direct(&mut self, _: &Packet, flow: DirectFlow) -> Result<(), Reason> {
        self.calls.push(Call::Create(TupleKind::Direct));
        self.calls.flow = Some(flow);
        self.world.create(TupleKind::Direct)
    }

    fn recall(&mut self, _: &Packet) -> Option<DirectFlow> {
        self.calls.push(Call::Recall);
        self.world.recalled
    }
}
