//! Ten million generated frames, each in a world of its own, through parser and verdict on ingress, and through the
//! border on egress. The properties read the frame's bytes without the parser.
//!
//! `tests/scenarios/packets` sends some of these frames through the programs in the kernel.

use std::{collections::HashMap, thread};

use wsl_mirror_core::{
    abi::{
        CarriedDatagram, DEFAULT_ALIAS, DEFAULT_SOURCE_ALIAS, FragmentKey, Path, Policy, PortPackets,
        Protocol, Reason, Service, Verdict,
    },
    egress::{self, Outgoing, Standing},
    fragments::{self, Datagrams},
    packet,
    verdict::{Conntrack, Entry, TupleKind, decide},
};
use wsl_mirror_packets::{
    BY_FORM, Sample, TO_US, anything, parse_as_the_program_does, parse_outgoing_as_the_program_does,
    samples_of,
    worlds::{COMBINATIONS, CONTAINER, Call, Calls, FORMER, Visit, World},
};

const FRAMES: usize = 10_000_000;
/// Each with a seed of its own, so that the frames are the same on however many cores.
const PARTS: usize = 16;
/// So many frames at least have to come out for each reason: a property that no frame comes near proves nothing.
const ENOUGH: u64 = 500;

/// How long ago the first fragment of the frame's datagram was carried, in ns.
const AGES: [Option<u64>; 5] =
    [None, Some(0), Some(29_999_999_999), Some(30_000_000_000), Some(60_000_000_000)];

/// Status bits `IPS_SRC_NAT`, `IPS_DST_NAT`, and both.
const SRC_NAT: u32 = 0x10;
const DST_NAT: u32 = 0x20;
const NAT: u32 = SRC_NAT | DST_NAT;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What came of a frame.
struct Case {
    sample: Sample,
    world: World,
    datagram: Datagram,
    reason: Reason,
    calls: Calls,
}

/// What is remembered of the frame's datagram: how long ago its first fragment was carried, in ns, and whether direct.
struct Datagram(Option<(u64, bool)>);

impl Datagram {
    /// Later than any age here, and earlier than all of them: a clock that has come round would be noticed.
    const NOW: u64 = 20_000_000_000;

    /// The verdict of the first fragment, as long as it counts.
    fn carried(&self) -> Option<Verdict> {
        let (_, is_direct) = self.0.filter(|(ago, _)| *ago < 30_000_000_000)?;
        Some(if is_direct { Verdict::Direct } else { Verdict::Steer })
    }
}

impl Datagrams for Datagram {
    fn now(&mut self) -> u64 {
        Self::NOW
    }

    fn record(&mut self, _: FragmentKey) -> Option<CarriedDatagram> {
        let (ago, is_direct) = self.0?;
        Some(CarriedDatagram { at: Self::NOW.wrapping_sub(ago), direct: u64::from(is_direct) })
    }

    fn remember(&mut self, _: FragmentKey, carried: CarriedDatagram) {
        self.0 = Some((Self::NOW.wrapping_sub(carried.at), carried.direct != 0));
    }

    fn forget(&mut self, _: FragmentKey) {
        self.0 = None;
    }
}

/// The n-th byte of a frame, and zero where there is none: no parser.
fn byte(sample: &Sample, at: usize) -> u8 {
    sample.head.get(at).copied().unwrap_or(0)
}

/// The frame's headers as the standards lay them out, as far as they are there.
impl Case {
    fn byte(&self, at: usize) -> u8 {
        byte(&self.sample, at)
    }

    fn is_ipv4_for_us(&self) -> bool {
        !self.sample.vlan_tag
            && self.sample.head.get(..6) == Some(&TO_US[..])
            && self.sample.head.get(12..14) == Some(&[0x08, 0x00][..])
            && self.byte(14) >> 4 == 4
            && self.byte(14) & 0xf >= 5
    }

    fn is_tcp_or_udp(&self) -> bool {
        matches!(self.byte(14 + 9), 6 | 17)
    }

    fn is_from_loopback_to_localhost(&self) -> bool {
        self.byte(14 + 12) == 127 && self.sample.head.get(14 + 16..14 + 20) == Some(&[127, 0, 0, 1][..])
    }

    fn is_later_fragment(&self) -> bool {
        self.byte(14 + 6) & 0x1f != 0 || self.byte(14 + 7) != 0
    }

    fn has_more_fragments(&self) -> bool {
        self.byte(14 + 6) & 0x20 != 0
    }

    fn ports(&self) -> [u16; 2] {
        let at = self.transport();
        [at, at + 2].map(|at| u16::from_be_bytes([self.byte(at), self.byte(at + 1)]))
    }

    fn transport(&self) -> usize {
        14 + usize::from(self.byte(14) & 0xf) * 4
    }

    /// FIN, SYN, RST and ACK of a segment; nothing of a datagram.
    fn flags(&self) -> Option<u8> {
        (self.byte(14 + 9) == 6).then(|| self.byte(self.transport() + 13) & 0x17)
    }

    fn is_bare_syn(&self) -> bool {
        self.flags() == Some(SYN)
    }

    /// It may begin a flow.
    fn is_start(&self) -> bool {
        self.is_bare_syn() || self.byte(14 + 9) == 17
    }

    fn is_carried(&self) -> bool {
        self.reason.verdict().is_carried()
    }

    fn is_direct(&self) -> bool {
        self.reason.verdict() == Verdict::Direct
    }

    /// Carried by the verdict about its flow, and not since its first fragment was.
    fn is_carried_by_its_flow(&self) -> bool {
        self.is_carried() && !matches!(self.reason, Reason::Fragment | Reason::DirectFragment)
    }

    /// A flow began with it, to the listener.
    fn began_steered(&self) -> bool {
        matches!(self.reason, Reason::New | Reason::Reused | Reason::Instead)
    }

    /// A flow began with it, to the container.
    fn began_direct(&self) -> bool {
        matches!(self.reason, Reason::DirectNew | Reason::DirectReused)
    }

    fn began(&self) -> bool {
        self.began_steered() || self.began_direct()
    }

    fn policy(&self) -> Policy {
        self.world.written.effective()
    }

    fn owner(&self) -> Option<Policy> {
        self.world.listener.map(|listener| listener.owner)
    }

    fn service(&self) -> Option<Service> {
        self.world.target().map(|target| target.service())
    }

    /// The path of the port, else the global one.
    fn path(&self) -> Path {
        let own = self.world.written.path();
        if own == Path::Unset { self.world.path } else { own }
    }

    /// The client is at exactly 127.0.0.1.
    fn is_from_localhost(&self) -> bool {
        self.sample.head.get(14 + 12..14 + 16) == Some(&[127, 0, 0, 1][..])
    }

    fn has(&self, call: Call) -> bool {
        self.calls.has(call)
    }

    fn was_carried(&self) -> bool {
        let PortPackets { steered, direct } = self.world.carried;
        steered != 0 || direct != 0 && self.is_from_localhost()
    }

    /// The entries that the lookups of this tuple have found.
    fn met(&self, kind: TupleKind) -> impl Iterator<Item = Entry> {
        let mut created = false;
        self.calls
            .iter()
            .filter_map(move |call| match call {
                Call::Create(made) if made == kind => {
                    created = true;
                    None
                }
                Call::Conntrack(asked) if asked == kind => Some(created),
                _ => None,
            })
            .map(
                move |created| {
                    if created { self.world.after_insertion(kind) } else { self.world.entry(kind) }
                },
            )
            .filter_map(|answer| match answer {
                Conntrack::Found(entry) => Some(entry),
                Conntrack::Missing | Conntrack::Failed => None,
            })
    }

    /// Whether the frame may expire this entry of its tuple.
    fn may_expire(&self, entry: Entry, kind: TupleKind) -> bool {
        let is_finished = self.is_bare_syn() && matches!(entry.tcp_state, 7 | 8);
        let translates = match kind {
            TupleKind::Own => true,
            TupleKind::Steered => entry.status & DST_NAT != 0 && entry.reply_source == [127, 0, 0, 1],
            TupleKind::Direct => entry.status & NAT == NAT && entry.reply_source[0] != 127,
        };
        let is_stray = kind != TupleKind::Own && self.is_start() && !translates;
        let target = self.world.target();
        let is_to_another = kind == TupleKind::Direct
            && self.is_start()
            && target
                .is_none_or(|target| (target.address, target.port) != (entry.reply_source, entry.reply_port));
        let is_unanswered = kind == TupleKind::Direct && self.is_bare_syn() && entry.status & 2 == 0;
        let is_left_by_proxy = kind == TupleKind::Steered
            && !self.is_bare_syn()
            && self.is_start()
            && self.service() == Some(Service::Holder);
        is_finished || is_stray || is_to_another || is_unanswered || is_left_by_proxy
    }
}

/// What must hold, in words and as a check.
type Property = (&'static str, fn(&Case) -> bool);

const PROPERTIES: [Property; 31] = [
    ("only IPv4 for us, without a VLAN tag, is carried", |case| !case.is_carried() || case.is_ipv4_for_us()),
    ("only TCP and UDP are carried", |case| !case.is_carried() || case.is_tcp_or_udp()),
    ("only packets from 127/8 to 127.0.0.1 are carried", |case| {
        !case.is_carried() || case.is_from_loopback_to_localhost()
    }),
    ("only packets from 127.0.0.1 go direct by their flow", |case| {
        !case.is_direct() || case.reason == Reason::DirectFragment || case.is_from_localhost()
    }),
    ("a packet from another client asks nothing about direct flows", |case| {
        let asked = [
            Call::Conntrack(TupleKind::Direct),
            Call::Create(TupleKind::Direct),
            Call::IsReachable,
            Call::Recall,
            Call::NoteUnanswered,
        ];
        case.is_from_localhost() || !asked.into_iter().any(|call| case.has(call))
    }),
    ("a later fragment is carried as its first one was, not too long ago, and else is not", |case| {
        let carried = case.datagram.carried();
        match case.reason {
            Reason::LaterFragment => carried.is_none(),
            Reason::Fragment | Reason::DirectFragment => {
                carried == Some(case.reason.verdict()) && case.is_later_fragment()
            }
            _ => !case.is_later_fragment() || !case.is_carried(),
        }
    }),
    ("a first fragment that is carried is remembered, and one that is not is forgotten", |case| {
        // Of those that the parser lets through.
        let is_first = case.calls.count != 0 && case.has_more_fragments();
        let expected = case.is_carried().then_some(case.reason.verdict());
        !is_first || case.datagram.carried() == expected
    }),
    ("no packet from or to port 0 is carried", |case| {
        !case.is_carried_by_its_flow() || !case.ports().contains(&0)
    }),
    ("no flow to an exempt port begins to be carried", |case| !case.began() || case.policy() != Policy::Pass),
    ("no flow begins to be steered against its owner's policy, but by the port's policy or path", |case| {
        let goes_to_container = case.path() == Path::Direct && case.service().is_some();
        !case.began_steered()
            || matches!(case.policy(), Policy::Steer | Policy::Direct)
            || goes_to_container
            || case.owner() != Some(Policy::Pass)
    }),
    (
        "no flow begins to be steered without a policy to steer it, or a container that it cannot reach",
        |case| {
            let policies = [Some(case.policy()), case.owner(), Some(case.world.default)];
            !case.began_steered() || case.reason == Reason::Instead || policies.contains(&Some(Policy::Steer))
        },
    ),
    ("no flow begins to be carried without a listener", |case| {
        !case.began() || case.world.listener.is_some()
    }),
    ("no flow begins to go direct without a container, a way there and a policy, path or drop", |case| {
        let Some(target) = case.world.target() else { return !case.began_direct() };
        let is_due = case.policy() == Policy::Direct
            || case.path() == Path::Direct
            || target.engine_way() == wsl_mirror_core::abi::EngineWay::Dropped;
        !case.began_direct() || case.world.reachable && case.policy() != Policy::Steer && is_due
    }),
    ("no flow begins to go direct where the path is the proxy's, but by the port's policy", |case| {
        !case.began_direct() || case.policy() == Policy::Direct || case.path() != Path::Proxy
    }),
    ("nothing is steered to a holder, but by the port's policy", |case| {
        !case.began_steered() || case.service() != Some(Service::Holder) || case.policy() == Policy::Steer
    }),
    ("a flow begins with a bare SYN or a datagram, and with an entry that was made", |case| {
        let kind = if case.is_direct() { TupleKind::Direct } else { TupleKind::Steered };
        !case.began() || case.is_start() && case.has(Call::Create(kind)) && case.world.create(kind).is_ok()
    }),
    ("no flow has a steered and a direct entry made", |case| {
        let made = |kind| case.has(Call::Create(kind)) && case.world.create(kind).is_ok();
        !(made(TupleKind::Steered) && made(TupleKind::Direct))
    }),
    ("a steered flow goes on only by an entry of direction 0 on the alias that leads to 127.0.0.1", |case| {
        case.reason != Reason::Established
            || case.met(TupleKind::Steered).any(|entry| {
                !entry.is_reply && entry.status & DST_NAT != 0 && entry.reply_source == [127, 0, 0, 1]
            })
    }),
    ("a direct flow goes on only by an entry of direction 0 that leads to another machine", |case| {
        case.reason != Reason::DirectEstablished
            || case
                .met(TupleKind::Direct)
                .any(|entry| !entry.is_reply && entry.status & NAT == NAT && entry.reply_source[0] != 127)
    }),
    ("a direct flow goes on with a SYN or a datagram only to the port's container", |case| {
        let leads = |entry: Entry| {
            let target = case.world.target();
            target
                .is_some_and(|target| (target.address, target.port) == (entry.reply_source, entry.reply_port))
        };
        case.reason != Reason::DirectEstablished || !case.is_start() || case.met(TupleKind::Direct).any(leads)
    }),
    (
        "a direct packet after the first costs one lookup of conntrack, and a start one of the listener",
        |case| {
            let is_new = case.calls.changed_anything();
            let listener = usize::from(case.is_start());
            case.reason != Reason::DirectEstablished
                || is_new
                || case.calls.lookups() == 1
                    && case.calls.times(Call::Listener) == listener
                    && case.calls.count == 2 + listener
        },
    ),
    ("a steered segment costs one lookup of conntrack if no flow to its port went direct", |case| {
        case.reason != Reason::Established
            || case.calls.changed_anything()
            || case.world.carried.direct != 0
            || case.flags().is_none()
            || case.calls.lookups() == 1 && case.calls.count == 2 + usize::from(case.is_start())
    }),
    ("a frame that does not parse passes without a call to the kernel", |case| {
        let by_form = BY_FORM.contains(&case.reason)
            || matches!(case.reason, Reason::Fragment | Reason::DirectFragment);
        by_form == (case.calls.count == 0)
    }),
    ("no packet is carried after a failed lookup", |case| {
        let mut created = [false; 3];
        let any = case.calls.iter().any(|call| match call {
            Call::Create(kind) => {
                created[kind as usize] = true;
                false
            }
            Call::Conntrack(kind) => !created[kind as usize] && case.world.entry(kind) == Conntrack::Failed,
            _ => false,
        });
        !case.is_carried_by_its_flow() || !any
    }),
    ("a packet that passes changes no entry, but an ACK that makes one for its socket", |case| {
        match case.reason {
            Reason::PickedUp => {
                case.flags() == Some(ACK)
                    && case.world.connection
                    && case.world.entry(TupleKind::Own) == Conntrack::Missing
                    && !case.has(Call::Create(TupleKind::Steered))
                    && !case.has(Call::Create(TupleKind::Direct))
            }
            // The entry of the flow that the container left unanswered goes, and nothing takes its place.
            Reason::Unanswered => !case.calls.iter().any(|call| matches!(call, Call::Create(_))),
            // The last resort may have been tried before its route went.
            Reason::Unreachable => {
                !case.calls.iter().any(|call| matches!(call, Call::Create(_) | Call::Expire(_)))
            }
            // A failed direct flow, beside an entry that leaves room for no other.
            Reason::NotOurs => !case.has(Call::Create(TupleKind::Steered)),
            _ => case.reason.verdict() != Verdict::Pass || !case.calls.changed_anything(),
        }
    }),
    ("an ACK goes direct without an entry only as its flow did before", |case| {
        case.reason != Reason::DirectPickedUp
            || case.flags() == Some(ACK) && !case.world.connection && case.calls.flow == case.world.recalled
    }),
    (
        "only a packet that may begin a flow changes anything on the alias, but an ACK of a direct flow",
        |case| {
            let is_picked_up = case.flags() == Some(ACK) && case.has(Call::Recall);
            case.is_start()
                || ![
                    Call::Create(TupleKind::Steered),
                    Call::Expire(TupleKind::Steered),
                    Call::Expire(TupleKind::Direct),
                ]
                .into_iter()
                .any(|call| case.has(call))
                    && (is_picked_up || !case.has(Call::Create(TupleKind::Direct)))
        },
    ),
    ("on the alias only what is finished, strays, or leads astray is expired", |case| {
        [TupleKind::Steered, TupleKind::Direct].into_iter().all(|kind| {
            !case.has(Call::Expire(kind)) || case.met(kind).any(|entry| case.may_expire(entry, kind))
        })
    }),
    ("of its own tuple a bare SYN expires what is finished, and nothing else does", |case| {
        let may =
            case.met(TupleKind::Own).any(|entry| case.is_bare_syn() && matches!(entry.tcp_state, 7 | 8));
        may || !case.has(Call::Expire(TupleKind::Own))
    }),
    ("only a bare SYN on an unanswered direct entry is noted", |case| {
        let unanswered = |entry: Entry| entry.status & 2 == 0 && entry.status & NAT == NAT;
        !case.has(Call::NoteUnanswered) || case.is_bare_syn() && case.met(TupleKind::Direct).any(unanswered)
    }),
    ("a segment to a port that was never carried costs no lookup", |case| {
        case.was_carried() || case.is_start() || case.calls.lookups() == 0
    }),
];

/// A frame from this machine, as the border on egress sees it: what the bytes say, without the parser.
fn at_the_border(sample: &Sample) -> Option<Outgoing> {
    if sample.head.len() < 14 + 20 || sample.head[12..14] != [0x08, 0x00] {
        return None;
    }
    let ends = [&sample.head[14 + 12..14 + 16], &sample.head[14 + 16..14 + 20]];
    let kind = match (ends[0] == DEFAULT_ALIAS, ends[1] == DEFAULT_SOURCE_ALIAS) {
        (true, true) => TupleKind::Direct,
        (true, false) => TupleKind::Steered,
        (false, true) => TupleKind::Own,
        (false, false) => return None,
    };
    let protocol = match byte(sample, 14 + 9) {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(Outgoing {
        protocol,
        transport: 14 + u16::from(byte(sample, 14) & 0xf) * 4,
        is_later_fragment: byte(sample, 14 + 6) & 0x1f != 0 || byte(sample, 14 + 7) != 0,
        kind,
    })
}

/// Makes a frame one that leaves: three of four come from the alias, and a third goes to the source alias.
fn leaving(sample: &mut Sample, numbers: &mut Numbers) {
    let changes =
        [(numbers.below(4) != 0, 12, DEFAULT_ALIAS), (numbers.below(3) == 0, 16, DEFAULT_SOURCE_ALIAS)];
    for (is_due, at, address) in changes {
        if is_due && let Some(bytes) = sample.head.get_mut(14 + at..14 + at + 4) {
            bytes.copy_from_slice(&address);
        }
    }
}

/// Numbers that are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[usize::try_from(self.below(N as u64)).unwrap_or(0)]
    }

    fn conntrack(&mut self, kind: TupleKind) -> Conntrack {
        match self.below(8) {
            0 => return Conntrack::Failed,
            1..=3 => return Conntrack::Missing,
            _ => {}
        }
        let noise = u32::try_from(self.next() >> 32).unwrap_or(0);
        let anywhere = self.one_of([[127, 0, 0, 1], CONTAINER, FORMER, DEFAULT_ALIAS]);
        // Half of them as ours are.
        let (status, reply_source) = match (self.below(2), kind) {
            (0, TupleKind::Steered) => (noise | DST_NAT, [127, 0, 0, 1]),
            (0, TupleKind::Direct) => (noise | NAT, self.one_of([CONTAINER, CONTAINER, FORMER])),
            _ => (noise, anywhere),
        };
        let is_reply = self.below(4) == 0;
        // A tuple in the direction of replies is itself where they come from.
        let itself = if kind == TupleKind::Direct { DEFAULT_SOURCE_ALIAS } else { [127, 0, 0, 1] };
        let reply_source = if is_reply { itself } else { reply_source };
        let tcp_state = u8::try_from(self.below(11)).unwrap_or(0);
        let reply_port = self.one_of([80, 80, 80, 81]);
        Conntrack::Found(Entry { is_reply, status, tcp_state, reply_source, reply_port })
    }

    fn world(&mut self) -> World {
        let entries =
            [TupleKind::Own, TupleKind::Steered, TupleKind::Direct].map(|kind| self.conntrack(kind));
        World::of(entries, self.below(COMBINATIONS))
    }
}

/// How often each reason came up.
type Reasons = HashMap<&'static str, u64>;

/// One part of the frames: its reasons, or the first case that breaks a property.
fn run(part: usize) -> Result<Reasons, String> {
    let seed = part as u64;
    let mut numbers = Numbers(seed);
    let mut reasons = HashMap::new();
    for sample in samples_of(anything(), seed, FRAMES / PARTS) {
        let world = numbers.world();
        let mut visit = Visit::of(&world);
        // However much of a frame lies in the linear part of the buffer.
        let linear = usize::try_from(numbers.below(160)).unwrap_or(0);
        let is_direct = numbers.one_of([false, true]);
        let mut datagram = Datagram(numbers.one_of(AGES).map(|age| (age, is_direct)));
        let reason = match parse_as_the_program_does(&sample, linear) {
            Ok(packet) => {
                let reason = decide(&packet, &mut visit);
                fragments::first(&packet, reason, &mut datagram);
                reason
            }
            Err(Reason::LaterFragment) => match packet::fragment(&sample.frame()) {
                Some(key) => fragments::later(key, &mut datagram),
                None => Reason::LaterFragment,
            },
            Err(reason) => reason,
        };
        let calls = visit.calls;
        *reasons.entry(reason.name()).or_insert(0) += 1;
        let case = Case { sample, world, datagram, reason, calls };
        for (says, holds) in PROPERTIES {
            if !holds(&case) {
                let Case { sample, world, reason, calls, .. } = case;
                return Err(format!("{says}: not so: {reason:?}\n{sample:?}\n{world:?}\n{calls:?}"));
            }
        }
        let mut sample = case.sample;
        leaving(&mut sample, &mut numbers);
        if let Some(reason) = leave(&sample, linear, &mut numbers)? {
            *reasons.entry(reason.name()).or_insert(0) += 1;
        }
    }
    Ok(reasons)
}

/// The frame on egress: what the program counts, if it acts upon it.
fn leave(sample: &Sample, linear: usize, numbers: &mut Numbers) -> Result<Option<Reason>, String> {
    let outgoing = parse_outgoing_as_the_program_does(sample, linear, DEFAULT_ALIAS, DEFAULT_SOURCE_ALIAS);
    let expected = at_the_border(sample);
    if outgoing != expected {
        return Err(format!("on egress {outgoing:?}, and not {expected:?}: {sample:?}"));
    }
    let standing = if numbers.below(2) == 0 { Standing::Reply } else { Standing::Other };
    let reason = outgoing.map(|outgoing| egress::decide(standing, outgoing.kind));
    let verdict = reason.map(Reason::verdict);
    let right = expected.map(|expected| match (standing, expected.kind) {
        (Standing::Reply, TupleKind::Direct) => Verdict::Direct,
        (Standing::Reply, TupleKind::Steered) => Verdict::Steer,
        // From another address to the source alias: nobody's reply.
        (Standing::Reply, TupleKind::Own) | (Standing::Other, _) => Verdict::Drop,
    });
    if verdict != right {
        return Err(format!("{standing:?} gets {verdict:?} on egress: {sample:?}"));
    }
    Ok(reason)
}

#[test]
fn ten_million_generated_frames_break_no_property() {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut reasons = Reasons::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || (first..PARTS).step_by(threads).map(run).collect::<Result<Vec<_>, _>>())
            })
            .collect();
        for worker in workers {
            match worker.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)) {
                Ok(parts) => {
                    for (reason, count) in parts.into_iter().flatten() {
                        *reasons.entry(reason).or_insert(0) += count;
                    }
                }
                Err(broken) => panic!("{broken}"),
            }
        }
    });
    let count = |reason: Reason| reasons.get(reason.name()).copied().unwrap_or(0);
    let on_egress =
        [Reason::Returned, Reason::DirectReturned, Reason::NoReply].map(count).iter().sum::<u64>();
    assert_eq!(reasons.values().sum::<u64>() - on_egress, FRAMES as u64);
    for reason in Reason::ALL.iter().copied() {
        // Of the programs themselves, before or around the pure functions.
        let is_of_the_programs = matches!(
            reason,
            Reason::NoSettings
                | Reason::NotCarrying
                | Reason::PullFailed
                | Reason::RewriteFailed
                | Reason::ReplyFailed
        );
        let count = count(reason);
        assert!(
            is_of_the_programs || count >= ENOUGH,
            "only {count} frames came out as {reason:?}: {reasons:#?}"
        );
    }
}
