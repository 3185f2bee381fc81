//! Ten million generated frames, each in a world of its own, through parser and verdict on ingress, and through the
//! border on egress. The properties read the frame's bytes without the parser.
//!
//! `tests/scenarios/packets` sends some of these frames through the programs in the kernel.

use std::{collections::HashMap, thread};

use wsl_mirror_core::{
    abi::{DEFAULT_ALIAS, FragmentKey, Policy, Protocol, Reason, Verdict},
    egress::{self, Outgoing, Standing},
    fragments::{self, Datagrams},
    packet,
    verdict::{Conntrack, Destination, Entry, decide},
};
use wsl_mirror_packets::{
    BY_FORM, Sample, TO_US, anything, parse_as_the_program_does, parse_outgoing_as_the_program_does,
    samples_of,
    worlds::{COMBINATIONS, Call, Calls, Visit, World},
};

const FRAMES: usize = 10_000_000;
/// Each with a seed of its own, so that the frames are the same on however many cores.
const PARTS: usize = 16;
/// So many frames at least have to come out for each reason: a property that no frame comes near proves nothing.
const ENOUGH: u64 = 500;

/// How long ago the first fragment of the frame's datagram was carried, in ns.
const AGES: [Option<u64>; 5] =
    [None, Some(0), Some(29_999_999_999), Some(30_000_000_000), Some(60_000_000_000)];

/// Status bit `IPS_DST_NAT`.
const DST_NAT: u32 = 0x20;
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

/// What is remembered of the frame's datagram: how long ago its first fragment was carried, in ns.
struct Datagram(Option<u64>);

impl Datagram {
    /// Later than any age here, and earlier than all of them: a clock that has come round would be noticed.
    const NOW: u64 = 20_000_000_000;

    fn is_remembered(&self) -> bool {
        self.0.is_some_and(|ago| ago < 30_000_000_000)
    }
}

impl Datagrams for Datagram {
    fn now(&mut self) -> u64 {
        Self::NOW
    }

    fn first_carried_at(&mut self, _: FragmentKey) -> Option<u64> {
        self.0.map(|ago| Self::NOW.wrapping_sub(ago))
    }

    fn remember(&mut self, _: FragmentKey, _: u64) {
        self.0 = Some(0);
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

    fn is_steered(&self) -> bool {
        self.reason.verdict() == Verdict::Steer
    }

    /// The same by the verdict about its flow, and not since its first fragment was.
    fn is_steered_by_its_flow(&self) -> bool {
        self.is_steered() && self.reason != Reason::Fragment
    }

    /// A flow began with it.
    fn began(&self) -> bool {
        matches!(self.reason, Reason::New | Reason::Reused)
    }

    fn owner(&self) -> Option<Policy> {
        self.world.listener.map(|listener| listener.owner)
    }

    /// What the lookups on the alias have found.
    fn met_on_alias(&self) -> impl Iterator<Item = Entry> {
        let mut created = false;
        self.calls
            .iter()
            .filter_map(move |call| match call {
                Call::Create(Destination::Alias) => {
                    created = true;
                    None
                }
                Call::Conntrack(Destination::Alias) => Some(created),
                _ => None,
            })
            .map(|created| if created { self.world.after_insertion } else { self.world.on_alias })
            .filter_map(|answer| match answer {
                Conntrack::Found(entry) => Some(entry),
                Conntrack::Missing | Conntrack::Failed => None,
            })
    }

    /// Whether the frame may expire this entry of its tuple.
    fn may_expire(&self, entry: Entry, destination: Destination) -> bool {
        let is_finished = self.is_bare_syn() && matches!(entry.tcp_state, 7 | 8);
        let is_stray = destination == Destination::Alias && self.is_start() && entry.status & DST_NAT == 0;
        is_finished || is_stray
    }
}

/// What must hold, in words and as a check.
type Property = (&'static str, fn(&Case) -> bool);

const PROPERTIES: [Property; 19] = [
    ("only IPv4 for us, without a VLAN tag, is steered", |case| !case.is_steered() || case.is_ipv4_for_us()),
    ("only TCP and UDP are steered", |case| !case.is_steered() || case.is_tcp_or_udp()),
    ("only packets from 127/8 to 127.0.0.1 are steered", |case| {
        !case.is_steered() || case.is_from_loopback_to_localhost()
    }),
    ("a later fragment is steered if its first one was not too long ago, and else is not", |case| {
        let goes_with_first = case.datagram.is_remembered();
        match case.reason {
            Reason::LaterFragment => !goes_with_first,
            Reason::Fragment => goes_with_first && case.is_later_fragment(),
            _ => !case.is_later_fragment() || !case.is_steered(),
        }
    }),
    ("a first fragment that is steered is remembered, and one that is not is forgotten", |case| {
        // Of those that the parser lets through.
        let is_first = case.calls.count != 0 && case.has_more_fragments();
        !is_first || case.datagram.is_remembered() == case.is_steered()
    }),
    ("no packet from or to port 0 is steered", |case| {
        !case.is_steered_by_its_flow() || !case.ports().contains(&0)
    }),
    ("no flow to an exempt port begins to be steered", |case| {
        !case.began() || case.world.port_policy != Policy::Pass
    }),
    ("no flow begins to be steered against its owner's policy, but by the port's policy", |case| {
        !case.began() || case.world.port_policy == Policy::Steer || case.owner() != Some(Policy::Pass)
    }),
    ("no flow begins to be steered without a policy to steer it", |case| {
        let World { port_policy, default, .. } = case.world;
        !case.began() || [Some(port_policy), case.owner(), Some(default)].contains(&Some(Policy::Steer))
    }),
    ("no flow begins to be steered without a listener", |case| {
        !case.began() || case.world.listener.is_some()
    }),
    ("a flow begins with a bare SYN or a datagram, and with an entry that was made", |case| {
        !case.began() || case.is_start() && case.world.create(Destination::Alias).is_ok()
    }),
    ("a flow goes on only by an entry of direction 0 on the alias that translates", |case| {
        case.reason != Reason::Established
            || case.met_on_alias().any(|entry| !entry.is_reply && entry.status & DST_NAT != 0)
    }),
    ("a frame that does not parse passes without a call to the kernel", |case| {
        (BY_FORM.contains(&case.reason) || case.reason == Reason::Fragment) == (case.calls.count == 0)
    }),
    ("no packet is steered after a failed lookup", |case| {
        let failed =
            |destination, answer| case.calls.has(Call::Conntrack(destination)) && answer == Conntrack::Failed;
        let any = failed(Destination::Own, case.world.own)
            || case.calls.iter().next() == Some(Call::Conntrack(Destination::Alias))
                && case.world.on_alias == Conntrack::Failed;
        !case.is_steered_by_its_flow() || !any
    }),
    ("a packet that passes changes no entry, but an ACK that makes one for its socket", |case| {
        match case.reason {
            Reason::PickedUp => {
                case.flags() == Some(ACK)
                    && case.world.connection
                    && case.world.own == Conntrack::Missing
                    && !case.calls.has(Call::Create(Destination::Alias))
            }
            _ => case.reason.verdict() != Verdict::Pass || !case.calls.changed_anything(),
        }
    }),
    ("only a packet that may begin a flow changes anything on the alias", |case| {
        case.is_start()
            || ![Call::Create(Destination::Alias), Call::Expire(Destination::Alias)]
                .into_iter()
                .any(|call| case.calls.has(call))
    }),
    ("on the alias only what is finished or strays is expired", |case| {
        !case.calls.has(Call::Expire(Destination::Alias))
            || case.met_on_alias().any(|entry| case.may_expire(entry, Destination::Alias))
    }),
    ("of its own tuple a bare SYN expires what is finished, and nothing else does", |case| {
        let may =
            matches!(case.world.own, Conntrack::Found(entry) if case.may_expire(entry, Destination::Own));
        may || !case.calls.has(Call::Expire(Destination::Own))
    }),
    ("a segment to a port that was never carried costs no lookup", |case| {
        case.world.was_carried
            || case.is_start()
            || !case.calls.iter().any(|call| matches!(call, Call::Conntrack(_)))
    }),
];

/// A frame from this machine, as the border on egress sees it: what the bytes say, without the parser.
fn at_the_border(sample: &Sample) -> Option<Outgoing> {
    let is_from_alias = sample.head.len() >= 14 + 20
        && sample.head[12..14] == [0x08, 0x00]
        && sample.head[14 + 12..14 + 16] == DEFAULT_ALIAS;
    let protocol = match byte(sample, 14 + 9) {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    is_from_alias.then(|| Outgoing {
        protocol,
        transport: 14 + u16::from(byte(sample, 14) & 0xf) * 4,
        is_later_fragment: byte(sample, 14 + 6) & 0x1f != 0 || byte(sample, 14 + 7) != 0,
    })
}

/// Makes a frame one that leaves: three of four come from the alias.
fn leaving(sample: &mut Sample, numbers: &mut Numbers) {
    if numbers.below(4) != 0
        && let Some(source) = sample.head.get_mut(14 + 12..14 + 16)
    {
        source.copy_from_slice(&DEFAULT_ALIAS);
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

    fn conntrack(&mut self) -> Conntrack {
        match self.below(8) {
            0 => Conntrack::Failed,
            1..=3 => Conntrack::Missing,
            _ => Conntrack::Found(Entry {
                is_reply: self.below(4) == 0,
                status: u32::try_from(self.next() >> 32).unwrap_or(0),
                tcp_state: u8::try_from(self.below(11)).unwrap_or(0),
            }),
        }
    }

    fn world(&mut self) -> World {
        let (on_alias, own) = (self.conntrack(), self.conntrack());
        let number = self.below(u64::try_from(COMBINATIONS).unwrap_or(1));
        World::of(on_alias, own, usize::try_from(number).unwrap_or(0))
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
        let mut datagram = Datagram(AGES[usize::try_from(numbers.below(AGES.len() as u64)).unwrap_or(0)]);
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
    let outgoing = parse_outgoing_as_the_program_does(sample, linear, DEFAULT_ALIAS);
    let expected = at_the_border(sample);
    if outgoing != expected {
        return Err(format!("on egress {outgoing:?}, and not {expected:?}: {sample:?}"));
    }
    let standing = if numbers.below(2) == 0 { Standing::Reply } else { Standing::Other };
    let reason = outgoing.map(|_| egress::decide(standing));
    let verdict = reason.map(Reason::verdict);
    let passes = match standing {
        Standing::Reply => verdict == Some(Verdict::Steer),
        Standing::Other => verdict == Some(Verdict::Drop),
    };
    if expected.is_some() != passes {
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
    let on_egress = [Reason::Returned, Reason::NoReply].map(count).iter().sum::<u64>();
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
