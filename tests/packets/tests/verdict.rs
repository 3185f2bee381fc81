//! Ten million generated frames, each in a world of its own, through parser and verdict. The properties read the frame's
//! bytes without the parser.
//!
//! `tests/scenarios/packets` sends some of these frames through the program in the kernel.

use std::{collections::HashMap, thread};

use wsl_mirror_core::{
    abi::{Carrier, FragmentKey, Policy, Reason, Verdict},
    fragments::{self, Datagrams},
    packet::{self, Packet},
    verdict::{Conntrack, Decision, Entry, Way, decide, status, tcp_state},
};
use wsl_mirror_packets::{
    BY_FORM, Sample, TO_US, anything, parse_as_the_program_does, samples_of,
    worlds::{COMBINATIONS, Call, Calls, SEQUENCE, Visit, World},
};

const FRAMES: usize = 10_000_000;
/// Each with a seed of its own, so that the frames are the same on however many cores.
const PARTS: usize = 16;

/// How long ago the first fragment of the frame's datagram was delivered by `lo`, in ns.
const AGES: [Option<u64>; 5] =
    [None, Some(0), Some(29_999_999_999), Some(30_000_000_000), Some(60_000_000_000)];

/// What came of a frame.
struct Case {
    sample: Sample,
    world: World,
    datagram: Datagram,
    reason: Reason,
    by_lo: bool,
    calls: Calls,
}

/// What is remembered of the frame's datagram: how long ago its first fragment was delivered by `lo`, in ns.
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

    fn first_delivered_at(&mut self, _: FragmentKey) -> Option<u64> {
        self.0.map(|ago| Self::NOW.wrapping_sub(ago))
    }

    fn remember(&mut self, _: FragmentKey, _: u64) {
        self.0 = Some(0);
    }

    fn forget(&mut self, _: FragmentKey) {
        self.0 = None;
    }
}

/// The frame's headers as the standards lay them out, as far as they are there. No parser: the n-th byte of a frame,
/// and zero where there is none.
impl Case {
    fn byte(&self, at: usize) -> u8 {
        self.sample.head.get(at).copied().unwrap_or(0)
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
        let at = 14 + usize::from(self.byte(14) & 0xf) * 4;
        [at, at + 2].map(|at| u16::from_be_bytes([self.byte(at), self.byte(at + 1)]))
    }

    fn is_steered(&self) -> bool {
        self.reason.verdict() == Verdict::Steer
    }

    /// The same by the verdict about its flow, and not since its first fragment was.
    fn is_steered_by_its_flow(&self) -> bool {
        self.is_steered() && self.reason != Reason::Fragment
    }

    /// The packet was steered, and not because its flow had been before.
    fn began(&self) -> bool {
        let was_ours = self.is_tcp_ack() && self.world.carrier() == Some(Carrier::Listener);
        let goes_on = matches!(self.reason, Reason::Established | Reason::Local);
        self.is_steered_by_its_flow() && !goes_on && !was_ours
    }

    fn is_tcp_ack(&self) -> bool {
        let tcp = 14 + usize::from(self.byte(14) & 0xf) * 4;
        // ACK, without SYN, RST and FIN.
        self.byte(14 + 9) == 6 && self.byte(tcp + 13) & 0x17 == 0x10
    }
}

fn owner(case: &Case) -> Option<Policy> {
    case.world.listener.map(|listener| listener.owner)
}

/// What must hold, in words and as a check.
type Property = (&'static str, fn(&Case) -> bool);

const PROPERTIES: [Property; 16] = [
    ("only IPv4 for us, without a VLAN tag, is steered", |case| !case.is_steered() || case.is_ipv4_for_us()),
    ("only TCP and UDP are steered", |case| !case.is_steered() || case.is_tcp_or_udp()),
    ("only packets from 127/8 to 127.0.0.1 are steered", |case| {
        !case.is_steered() || case.is_from_loopback_to_localhost()
    }),
    (
        "a later fragment goes by lo if its first one went so not too long ago, and else is not steered",
        |case| {
            let goes_with_first = case.datagram.is_remembered();
            match case.reason {
                Reason::LaterFragment => !goes_with_first,
                _ if !case.is_later_fragment() => true,
                _ => case.is_steered() == case.by_lo && (!case.by_lo || goes_with_first),
            }
        },
    ),
    ("a first fragment that goes by lo is remembered, and one that does not is forgotten", |case| {
        // Of those that the parser lets through.
        let is_first = case.calls.count != 0 && case.has_more_fragments();
        !is_first || case.datagram.is_remembered() == case.by_lo
    }),
    ("no packet from or to port 0 is steered", |case| {
        !case.is_steered_by_its_flow() || !case.ports().contains(&0)
    }),
    ("no flow to an exempt port begins to be steered", |case| {
        !case.began() || case.world.port_policy != Policy::Pass
    }),
    ("no flow begins to be steered against its owner's policy, but by the port's policy", |case| {
        !case.began() || case.world.port_policy == Policy::Steer || owner(case) != Some(Policy::Pass)
    }),
    ("no flow begins to be steered without a policy to steer it", |case| {
        let World { port_policy, default, .. } = case.world;
        !case.began() || [Some(port_policy), owner(case), Some(default)].contains(&Some(Policy::Steer))
    }),
    ("no flow begins to be steered without a listener", |case| {
        !case.began() || case.world.listener.is_some()
    }),
    ("a frame that does not parse passes without a call to the kernel", |case| {
        (BY_FORM.contains(&case.reason) || case.reason == Reason::Fragment) == (case.calls.count == 0)
    }),
    ("no packet is steered after a failed lookup, or without its new entry", |case| {
        !case.is_steered_by_its_flow()
            || case.world.conntrack != Conntrack::Failed
                && (case.world.create.is_ok()
                    || matches!(case.reason, Reason::Established | Reason::Local | Reason::Learned))
    }),
    ("a packet that passes neither loses its conntrack entry nor gets one", |case| {
        case.reason.verdict() != Verdict::Pass || !case.calls.changed_anything()
    }),
    ("only steered packets go by lo, and only where lo delivers", |case| {
        !case.by_lo || case.is_steered() && case.world.way != Way::Plain
    }),
    ("no packet that somebody else's DNAT carries goes by lo", |case| {
        let carried = case.world.entry().is_some_and(|entry| entry.status & status::DST_NAT != 0);
        !case.by_lo || !carried || case.reason == Reason::Fragment || case.calls.has(Call::Create)
    }),
    (
        "a reply is never steered, unless it starts anew on what a finished flow has left, or its flow goes by lo",
        |case| {
            let on_finished = case.world.entry().is_some_and(|entry| {
                matches!(entry.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE) && case.byte(14 + 9) == 6
            });
            !case.is_steered_by_its_flow()
                || on_finished
                || case.world.entry().is_none_or(|entry| !entry.is_reply)
                || (case.by_lo && (case.world.known_flow.by_lo || case.world.way == Way::ByLo))
        },
    ),
];

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

    fn world(&mut self) -> World {
        let conntrack = match self.below(8) {
            0 => Conntrack::Failed,
            1..=3 => Conntrack::Missing,
            _ => Conntrack::Found(Entry {
                is_reply: self.below(4) == 0,
                status: self.next(),
                tcp_state: u8::try_from(self.below(11)).unwrap_or(0),
                is_to_loopback: self.below(4) == 0,
            }),
        };
        let number = self.below(u64::try_from(COMBINATIONS).unwrap_or(1));
        World::of(conntrack, usize::try_from(number).unwrap_or(0))
    }
}

/// One part of the frames: how often each reason came up, and the first case that breaks a property.
fn run(part: usize) -> Result<HashMap<&'static str, u64>, String> {
    let seed = part as u64;
    let mut numbers = Numbers(seed);
    let mut reasons = HashMap::new();
    for sample in samples_of(anything(), seed, FRAMES / PARTS) {
        let world = numbers.world();
        let mut visit = Visit::of(&world);
        // However much of a frame lies in the linear part of the buffer.
        let linear = usize::try_from(numbers.below(160)).unwrap_or(0);
        // Where nothing can be delivered by `lo`, nothing was.
        let age = AGES[usize::try_from(numbers.below(AGES.len() as u64)).unwrap_or(0)];
        let mut datagram = Datagram(age.filter(|_| world.way != Way::Plain));
        let Decision { reason, by_lo } = match parse_as_the_program_does(&sample, linear) {
            Ok(packet) => {
                // One of two has the number that was remembered.
                let sequence = if seed.is_multiple_of(2) { SEQUENCE } else { packet.sequence };
                let decision = decide(&Packet { sequence, ..packet }, &mut visit);
                fragments::first(&packet, decision, &mut datagram);
                decision
            }
            Err(Reason::LaterFragment) => match packet::fragment(&sample.frame()) {
                Some(key) => fragments::later(key, &mut datagram),
                None => Decision::plain(Reason::LaterFragment),
            },
            Err(reason) => Decision::plain(reason),
        };
        let calls = visit.calls;
        *reasons.entry(reason.name()).or_insert(0) += 1;
        let case = Case { sample, world, datagram, reason, by_lo, calls };
        for (says, holds) in PROPERTIES {
            if !holds(&case) {
                let Case { sample, world, reason, calls, .. } = case;
                return Err(format!("{says}: not so: {reason:?}\n{sample:?}\n{world:?}\n{calls:?}"));
            }
        }
    }
    Ok(reasons)
}

#[test]
fn ten_million_generated_frames_break_no_property() {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut reasons: HashMap<&str, u64> = HashMap::new();
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
    assert_eq!(reasons.values().sum::<u64>(), FRAMES as u64);
    // A property that no frame comes near proves nothing.
    for reason in Reason::ALL {
        // Of the program itself, before or around the pure function.
        if matches!(reason, Reason::NoSettings | Reason::PullFailed | Reason::DeliverFailed) {
            continue;
        }
        let count = reasons.get(reason.name()).copied().unwrap_or(0);
        assert!(count >= 500, "only {count} frames came out as {reason:?}: {reasons:#?}");
    }
}
