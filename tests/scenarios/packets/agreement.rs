//! Generated frames: the programs count each for the reason that the pure functions give, and rewrite what they carry
//! as the host would.

use std::time::Duration;

use wsl_mirror_core::abi::{
    Carrying, DEFAULT_MARK, FragmentKey, Path, Policy, PortKey, PortPolicy, Protocol, Reason, Verdict,
    Verdicts,
};
use wsl_mirror_core::packet::LOCALHOST;
use wsl_mirror_lab::{
    checks::{OrPanic as _, STEER},
    loopback,
    raw::RawSocket,
    tcp,
};
use wsl_mirror_packets::{
    BY_FORM, Sample, Spec, anything,
    checksum::{Address, with_address},
    samples_of,
};

use crate::{
    program::{Border, DROP, NEXT, Outcome, Program, Side, difference},
    world::World,
};

/// How many frames go through `BPF_PROG_TEST_RUN` in each configuration.
const GENERATED: usize = 100_000;
/// The same where nearly all of them come out alike.
const FEW: usize = 10_000;
/// What that call takes at most; the kernel wants its own room in the page.
const TEST_RUN_LONGEST: usize = 3_500;
/// How many frames Windows sends.
const SENT: usize = 4_000;
/// What the wire takes at most.
const WIRE_LONGEST: usize = 1_514;
/// From which of Windows' ports there are connections to 8080, where frames meet the program alone.
const CONNECTED: [u16; 2] = [50_001, 50_003];

/// Runs the program on ingress once. A carried packet gets the mark's bits and the alias as its destination, a direct one
/// also the source alias as its source; else everything has to stay as it is.
fn run_and_compare(program: &Program, sample: &Sample, reason: Reason, mark: u32) {
    let frame = sample.bytes();
    let verdict = reason.verdict();
    let expected = if verdict.is_carried() {
        let mut data = with_address(&frame, Address::Destination, program.alias);
        if verdict == Verdict::Direct {
            data = with_address(&data, Address::Source, program.source_alias);
        }
        Outcome { action: NEXT, data, mark: mark | program.mark }
    } else {
        Outcome { action: NEXT, data: frame.clone(), mark }
    };
    let outcome = program.run(Side::Ingress, &frame, mark).or_panic();
    assert!(
        outcome == expected,
        "{sample:?}, {reason:?}, mark {mark:#x} before:\n{outcome:x?}, expected\n{expected:x?}"
    );
}

/// Runs the program on egress once. Only a reply is changed; whatever else comes from the alias is dropped.
fn run_leaving(program: &Program, sample: &Sample, reason: Option<Reason>, mark: u32) {
    let frame = sample.bytes();
    let (action, data) = match reason.map(Reason::verdict) {
        Some(Verdict::Steer) => (NEXT, with_address(&frame, Address::Source, LOCALHOST)),
        Some(Verdict::Direct) => {
            let to_localhost = with_address(&frame, Address::Destination, LOCALHOST);
            (NEXT, with_address(&to_localhost, Address::Source, LOCALHOST))
        }
        Some(_) => (DROP, frame.clone()),
        None => (NEXT, frame.clone()),
    };
    let expected = Outcome { action, data, mark };
    let before = program.counted().or_panic();
    let outcome = program.run(Side::Egress, &frame, mark).or_panic();
    assert!(outcome == expected, "{sample:?}, {reason:?}:\n{outcome:x?}, expected\n{expected:x?}");
    let counted = difference(&before, &program.counted().or_panic());
    let expected: Vec<_> = reason.into_iter().map(|reason| (reason, 1)).collect();
    assert!(counted == expected, "counted as {counted:?}, expected {expected:?}: {sample:?}");
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

/// A lab with sockets and conntrack entries, in which nothing comes in but what the test sends.
fn world(configuration: &str) -> World {
    let mut world = World::new();
    // Flows of which there is a socket at this end: one without an entry, and one whose entry a DNAT has caught. From
    // before the load, so no entry of ours carries them.
    for client in CONNECTED {
        world.connect(
            tcp::Client::new(world.lab.windows(), loopback(8080)).from_port(client).connect().or_panic(),
        );
        world.model.connections.insert((client, 8080));
    }
    world.load(configuration);
    // Without a carrier nothing comes in that we have not sent.
    world.lab.windows().run("ip", ["link", "set", "winlo0", "down"]).or_panic();
    world
}

/// None of our bits, all of them, those of others.
fn marks(mark: u32) -> impl Iterator<Item = u32> {
    [0, mark, !0, !mark, 0x00ff_2f01].into_iter().cycle()
}

fn expect_agreement(
    series: u64,
    count: usize,
    configuration: &str,
    mark: u32,
    change: impl FnOnce(&mut World, &mut Program) + Send,
) -> Verdicts {
    let mut world = world(configuration);
    let guest = world.lab.guest().clone();
    guest.enter(move || {
        let mut program = Program::open().or_panic();
        assert_eq!(program.mark, mark);
        change(&mut world, &mut program);
        let mut marks = marks(mark);
        world.compare(
            &mut program,
            frames(series, TEST_RUN_LONGEST, test_run_can_carry, count),
            |_, program, sample, reason| {
                run_and_compare(program, sample, reason, marks.next().unwrap_or(0));
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
    let seen = expect_agreement(0, GENERATED, STEER, DEFAULT_MARK, |_, _| {});
    expect_all(&seen, &BY_FORM);
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::Reused,
            Reason::Fragment,
            Reason::PickedUp,
            Reason::NeverCarried,
            Reason::NotOurs,
            Reason::EngineNat,
            Reason::Reply,
            Reason::Exempt,
            Reason::OwnerPolicy,
            // The engine's own way to the container, and where its own rules drop the flow.
            Reason::Holder,
            Reason::DirectNew,
            Reason::DirectEstablished,
            Reason::NoListener,
            Reason::NoSocket,
            Reason::Stray,
            Reason::InsertFailed,
        ],
    );
}

#[test]
fn the_program_agrees_with_other_settings_and_default_pass() {
    let seen = expect_agreement(1, GENERATED, "mark = 0x50000\n", 0x50000, |world, program| {
        program.set_alias([127, 1, 2, 3]).or_panic();
        world.model.default = Policy::Pass;
        for protocol in Protocol::ALL {
            for port in [8082, 8085] {
                let key = PortKey::new(protocol, port);
                let policy = PortPolicy { cli: Policy::Steer as u8, ..PortPolicy::default() };
                write_policy(world, program, key, policy);
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

/// Writes a port's policy for the program and the model.
fn write_policy(world: &mut World, program: &mut Program, key: PortKey, policy: PortPolicy) {
    program.write_policy(key, policy).or_panic();
    world.model.policies.insert(key, policy);
}

/// The path is the containers', but for ports with policies of their own.
fn go_direct(world: &mut World, program: &mut Program) {
    program.set_path(Path::Direct).or_panic();
    world.model.path = Path::Direct;
    let direct = PortPolicy { config: Policy::Direct as u8, ..PortPolicy::default() };
    // Its listener has no target.
    write_policy(world, program, PortKey::new(Protocol::Tcp, 8080), direct);
    // The path of a proxy is not the port's own policy.
    let proxy = PortPolicy { path: Path::Proxy as u8, ..direct };
    write_policy(world, program, PortKey::new(Protocol::Udp, 8086), proxy);
}

#[test]
fn the_program_agrees_about_direct_flows() {
    let seen = expect_agreement(4, GENERATED, STEER, DEFAULT_MARK, go_direct);
    expect_all(
        &seen,
        &[
            Reason::DirectNew,
            Reason::DirectReused,
            Reason::DirectEstablished,
            Reason::DirectPickedUp,
            Reason::DirectFragment,
            Reason::Instead,
            Reason::Established,
            Reason::NoTarget,
            Reason::Unanswered,
        ],
    );
}

#[test]
fn the_program_asks_whether_a_container_can_be_reached() {
    // A port of a holder that the container's way does not lead to, and a proxy that takes its flows.
    let seen = expect_agreement(5, FEW, STEER, DEFAULT_MARK, |world, program| {
        go_direct(world, program);
        world.lab.guest().set_sysctls([("net/ipv4/conf/containers/forwarding", "0")]).or_panic();
        world.model.reachable = false;
    });
    expect_all(&seen, &[Reason::Unreachable, Reason::Instead]);
    assert_eq!(seen.get(Reason::DirectNew), 0);
}

#[test]
fn a_machine_that_cannot_carry_flows_has_its_frames_untouched() {
    let seen = expect_agreement(2, FEW, STEER, DEFAULT_MARK, |world, program| {
        program.set_carrying(Carrying::Off).or_panic();
        world.model.is_carrying = false;
    });
    expect_all(&seen, &BY_FORM);
    expect_all(&seen, &[Reason::NotCarrying]);
    assert!(Reason::ALL.iter().all(|reason| seen.get(*reason) == 0 || reason.verdict() == Verdict::Pass));
}

/// Which of our addresses a frame that leaves has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// The alias as its source: a steered flow's.
    FromAlias,
    /// The source alias as its destination, too: a direct flow's.
    Both,
    /// The source alias alone: nobody's.
    ToSourceAlias,
}

/// A frame that leaves: every other as it was made, but for our addresses; the rest as if the one that came in had been
/// answered.
fn leaving(sample: &Sample, program: &Program, is_answer: bool, ends: Ends) -> Sample {
    let mut head = sample.head.clone();
    if is_answer {
        let transport = 14 + usize::from(head[14] & 0xf) * 4;
        head.copy_within(26..30, 30);
        if let Some(ports) = head.get_mut(transport..transport + 4) {
            ports.rotate_left(2);
        }
    }
    if ends != Ends::ToSourceAlias {
        head[26..30].copy_from_slice(&program.alias);
    }
    if ends != Ends::FromAlias {
        head[30..34].copy_from_slice(&program.source_alias);
    }
    Sample { head, ..sample.clone() }
}

/// `BPF_PROG_TEST_RUN` makes packets that conntrack has not seen. So `wsl_mirror_eg` has to drop each that comes from the
/// alias; `wsl_mirror_egl`, which looks the flow up, returns the answers of carried ones.
#[test]
fn nothing_passes_the_border_but_answers_of_carried_flows() {
    let mut world = world(STEER);
    let guest = world.lab.guest().clone();
    let (border, seen) = guest.enter(move || {
        let mut program = Program::open().or_panic();
        go_direct(&mut world, &mut program);
        let mut marks = marks(DEFAULT_MARK);
        let mut seen = Verdicts::default();
        let mut is_answer = false;
        world.compare(
            &mut program,
            frames(3, TEST_RUN_LONGEST, test_run_can_carry, GENERATED / 2),
            |world, program, sample, reason| {
                run_and_compare(program, sample, reason, 0);
                // What does not come from the alias passes uncounted.
                let mark = marks.next().unwrap_or(0);
                run_leaving(program, sample, None, mark);
                if sample.head.len() >= 34 {
                    is_answer = !is_answer;
                    // Of a steered flow some, too, as if they were another's.
                    let ends = match (reason.verdict(), mark) {
                        (Verdict::Direct, DEFAULT_MARK) | (_, 0) => Ends::Both,
                        (_, u32::MAX) => Ends::ToSourceAlias,
                        _ => Ends::FromAlias,
                    };
                    let leaves = leaving(sample, program, is_answer, ends);
                    let reason = world.model.judge_leaving(&leaves, program.border);
                    run_leaving(program, &leaves, reason, marks.next().unwrap_or(0));
                    if let Some(reason) = reason {
                        *seen.counter(reason) += 1;
                    }
                }
            },
        );
        (program.border, seen)
    });
    expect_all(&seen, &[Reason::NoReply]);
    match border {
        Border::ByNote => {
            assert_eq!([Reason::Returned, Reason::DirectReturned].map(|reason| seen.get(reason)), [0, 0]);
        }
        Border::ByLookup => expect_all(&seen, &[Reason::Returned, Reason::DirectReturned]),
    }
}

/// A fragment that overtakes its first one may have the number of an earlier datagram.
#[test]
fn fragments_follow_their_first_one_for_30_seconds() {
    let mut world = World::new();
    world.load(STEER);
    let guest = world.lab.guest().clone();
    guest.enter(move || {
        let mut program = Program::open().or_panic();
        let later = Spec { fragment: 100, ..Spec::udp(50_000, 8080, 100) };
        let frame = later.build().bytes();
        let identification = u16::from_be_bytes([frame[18], frame[19]]);
        let datagram = FragmentKey::new(Protocol::Udp, [127, 0, 0, 1], identification);
        // The source and the destination.
        let addresses = |program: &Program| -> [[u8; 4]; 2] {
            let outcome = program.run(Side::Ingress, &frame, 0).or_panic();
            assert_eq!(outcome.action, NEXT);
            [26, 30].map(|at| outcome.data[at..at + 4].try_into().or_panic())
        };
        let own = [LOCALHOST; 2];
        let steered = [LOCALHOST, program.alias];
        let direct = [program.source_alias, program.alias];
        assert_eq!(addresses(&program), own, "its first one has not come");
        for (is_direct, carried) in [(false, steered), (true, direct)] {
            for (seconds, expected) in [(0, carried), (28, carried), (31, own)] {
                program.remember_fragments(datagram, Duration::from_secs(seconds), is_direct).or_panic();
                assert_eq!(addresses(&program), expected, "direct: {is_direct}, after {seconds} s");
            }
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
        world.compare(&mut program, frames, |_, _, sample, _| windows.send(&sample.bytes()).or_panic())
    });
    expect_all(&seen, &BY_FORM);
    expect_all(&seen, &[Reason::New, Reason::Established, Reason::Exempt, Reason::NoListener]);
}
