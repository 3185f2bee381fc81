//! Generated frames: the program counts each for the reason that the pure function gives.

use std::time::Duration;

use wsl_mirror_core::{
    abi::{FragmentKey, Policy, PortKey, PortPolicy, PortRule, Protocol, Reason, Verdict, Verdicts},
    verdict::Decision,
};
use wsl_mirror_lab::{
    checks::{OrPanic as _, STEER},
    loopback,
    raw::RawSocket,
    tcp,
};
use wsl_mirror_packets::{BY_FORM, Sample, Spec, anything, samples_of};

use crate::{
    program::{NEXT, Outcome, Program, REDIRECT},
    world::World,
};

/// How many frames go through `BPF_PROG_TEST_RUN` in each of the three configurations.
const GENERATED: usize = 100_000;
/// What that call takes at most; the kernel wants its own room in the page.
const TEST_RUN_LONGEST: usize = 3_500;
/// How many frames Windows sends.
const SENT: usize = 4_000;
/// What the wire takes at most.
const WIRE_LONGEST: usize = 1_514;
/// From which of Windows' ports there are connections to 8080, where frames meet the program alone.
const CONNECTED: [u16; 2] = [50_001, 50_003];

/// Runs the program once; but for the mark's own bits on a steered packet, and for the destination of one that is
/// delivered by `lo`, everything has to stay as it is.
fn run_and_expect_untouched(program: &Program, sample: &Sample, decision: Decision, mark: u32) {
    let bits = if decision.reason.verdict() == Verdict::Steer { program.mark } else { 0 };
    let frame = sample.bytes();
    let mut expected = Outcome { action: NEXT, data: frame.clone(), mark: mark | bits };
    if decision.by_lo {
        expected.action = REDIRECT;
        expected.data[..6].fill(0);
    }
    let outcome = program.run(&frame, mark).or_panic();
    assert!(
        outcome == expected,
        "{sample:?}, {decision:?}, mark {mark:#x} before:\n{outcome:x?}, expected\n{expected:x?}"
    );
}

/// Frames that the way to the program can carry. A tag beside the bytes cannot be handed over; from one in the
/// bytes of a frame on the wire the kernel makes one.
fn frames(
    series: u64,
    longest: usize,
    can_carry: impl Fn(&[u8]) -> bool,
    count: usize,
) -> impl Iterator<Item = Sample> {
    samples_of(anything(), series, usize::MAX)
        .filter(move |sample| !sample.vlan_tag && sample.len() <= longest && can_carry(&sample.head))
        .take(count)
}

/// `BPF_PROG_TEST_RUN` refuses frames that end within the Ethernet header or an IP header without options.
fn test_run_can_carry(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        None => return false,
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        Some(_) => 15,
    };
    frame.len() >= shortest
}

/// A packet socket refuses frames that end within the Ethernet header, and the kernel drops before any hook what
/// ends within a VLAN tag (`skb_vlan_untag`).
fn wire_can_carry(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        None => false,
        Some([0x81, 0x00] | [0x88, 0xa8]) => frame.len() >= 14 + 6,
        Some(_) => true,
    }
}

fn expect_agreement(
    series: u64,
    configuration: &str,
    mark: u32,
    change: impl FnOnce(&mut World, &mut Program) + Send,
) -> Verdicts {
    let mut world = World::new();
    // Flows of which there is a socket at this end: one without an entry, and one whose entry a DNAT has caught. From
    // before the load, so nothing is remembered of them.
    let mut connections = Vec::new();
    for client in CONNECTED {
        connections.push(
            tcp::Client::new(world.lab.windows(), loopback(8080)).from_port(client).connect().or_panic(),
        );
        world.model.connections.insert((client, 8080));
    }
    world.load(configuration);
    let guest = world.lab.guest().clone();
    // Without a carrier nothing comes in that we have not sent.
    world.lab.windows().run("ip", ["link", "set", "winlo0", "down"]).or_panic();
    guest.enter(move || {
        let mut program = Program::open().or_panic();
        assert_eq!(program.mark, mark);
        change(&mut world, &mut program);
        // None of our bits, all of them, those of others.
        let mut marks = [0, mark, !0, !mark, 0x00ff_2f01].into_iter().cycle();
        world.compare(
            &mut program,
            frames(series, TEST_RUN_LONGEST, test_run_can_carry, GENERATED),
            |program, sample, decision| {
                run_and_expect_untouched(program, sample, decision, marks.next().unwrap_or(0));
            },
        )
    })
}

/// Fails unless each of these came up.
fn expect_all(seen: &Verdicts, reasons: &[Reason]) {
    let missing: Vec<_> = reasons.iter().filter(|reason| seen.get(**reason) == 0).collect();
    assert!(missing.is_empty(), "no frame came out as {missing:?}");
}

#[test]
fn the_program_agrees_with_the_pure_function_on_every_frame() {
    let seen = expect_agreement(0, STEER, 0x1000, |_, _| {});
    expect_all(&seen, &BY_FORM);
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::Reused,
            Reason::Healed,
            Reason::PickedUp,
            Reason::NotOurs,
            Reason::EngineNat,
            Reason::Reply,
            Reason::Exempt,
            Reason::OwnerPolicy,
            Reason::NoListener,
            Reason::NoSocket,
            Reason::Stray,
        ],
    );
}

#[test]
fn the_program_agrees_with_another_mark_and_default_pass() {
    let seen = expect_agreement(1, "mark = 0x50000\n", 0x50000, |world, program| {
        world.model.default = Policy::Pass;
        for protocol in Protocol::ALL {
            for port in [8082, 8085] {
                let key = PortKey::new(protocol, port);
                program.write_policy(key, PortPolicy { cli: Policy::Steer as u8, config: 0 }).or_panic();
                world.model.policies.insert(key, Policy::Steer);
            }
        }
    });
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::OwnerPolicy,
            Reason::DefaultPolicy,
            Reason::Exempt,
            Reason::NoListener,
        ],
    );
}

#[test]
fn the_program_agrees_where_a_rule_wants_delivery_by_lo() {
    let seen = expect_agreement(2, STEER, 0x1000, |world, program| {
        world.model.lo = true;
        program.deliver_by_lo().or_panic();
        for protocol in Protocol::ALL {
            let key = PortKey::new(protocol, 8081);
            program.write_rule(key, PortRule::NotOnLo).or_panic();
            world.model.rules.insert(key, PortRule::NotOnLo);
        }
        let closed = PortKey::new(Protocol::Udp, 8080);
        program.write_rule(closed, PortRule::Closed).or_panic();
        world.model.rules.insert(closed, PortRule::Closed);
    });
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::Learned,
            Reason::Local,
            Reason::Fragment,
            Reason::LaterFragment,
            Reason::NotOurs,
            Reason::EngineNat,
        ],
    );
}

/// A fragment that overtakes its first one may have the number of an earlier datagram.
#[test]
fn fragments_follow_their_first_one_by_lo_for_30_seconds() {
    let mut world = World::new();
    world.load(STEER);
    let guest = world.lab.guest().clone();
    guest.enter(move || {
        let mut program = Program::open().or_panic();
        program.deliver_by_lo().or_panic();
        let later = Spec { fragment: 100, ..Spec::udp(50_000, 8080, 100) };
        let frame = later.build().bytes();
        let identification = u16::from_be_bytes([frame[18], frame[19]]);
        let datagram = FragmentKey::new(Protocol::Udp, [127, 0, 0, 1], identification);
        assert_eq!(program.run(&frame, 0).or_panic().action, NEXT, "its first one has not come");
        for (seconds, action) in [(0, REDIRECT), (28, REDIRECT), (31, NEXT)] {
            program.remember_fragments(datagram, Duration::from_secs(seconds)).or_panic();
            assert_eq!(program.run(&frame, 0).or_panic().action, action, "after {seconds} s");
        }
    });
}

#[test]
fn frames_from_windows_count_as_the_pure_function_says() {
    let mut world = World::new();
    world.load(STEER);
    // Behind the hook everything ends: what comes back would bring more frames.
    world.lab.guest().run(
        "nft",
        ["add table netdev end; add chain netdev end here { type filter hook ingress device loopback0 priority 0; policy drop; }"],
    ).or_panic();
    let windows = RawSocket::open(world.lab.windows(), "winlo0").or_panic();
    let guest = world.lab.guest().clone();
    let seen = guest.enter(move || {
        let mut program = Program::open().or_panic();
        let frames = frames(0, WIRE_LONGEST, wire_can_carry, SENT);
        world.compare(&mut program, frames, |_, sample, _| windows.send(&sample.bytes()).or_panic())
    });
    expect_all(&seen, &BY_FORM);
    expect_all(&seen, &[Reason::New, Reason::Established, Reason::Exempt, Reason::NoListener]);
}
