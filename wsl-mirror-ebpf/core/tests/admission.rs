//! Who decides about a flow that begins: what the user wrote, the path, the owner, the default; and whether a flow can go
//! direct. Every combination, against the order of the documentation.

use wsl_mirror_core::{
    abi::{
        DirectFlow, EngineWay, Path, Policy, PortPackets, PortPolicy, Protocol, Reason, Service, Target,
        Verdict,
    },
    packet::{LOCALHOST, Packet, Role},
    verdict::{Conntrack, Entry, Listener, TupleKind, decide, status},
};
use wsl_mirror_packets::worlds::{CONTAINER, Call, Calls, FLOW, FORMER, NOW, Visit, World, target};

const POLICIES: [u8; 5] = [0, 1, 2, 3, 0x80];
const PATHS: [Path; 4] = [Path::Unset, Path::Auto, Path::Direct, Path::Proxy];
const OWNERS: [Policy; 3] = [Policy::Unset, Policy::Pass, Policy::Steer];
const DEFAULTS: [Policy; 4] = [Policy::Unset, Policy::Pass, Policy::Steer, Policy::Direct];
const SERVICES: [Service; 2] = [Service::Holder, Service::Proxy];
const ENGINE_WAYS: [EngineWay; 2] = [EngineWay::Open, EngineWay::Dropped];
/// When a direct flow was last unanswered: never, within the last minute, before it.
const UNANSWERED: [u64; 3] = [0, NOW - 1, NOW - 60_000_000_000];

fn syn(client: [u8; 4]) -> Packet {
    Packet {
        protocol: Protocol::Tcp,
        client,
        client_port: 50_000,
        server_port: 8080,
        role: Role::Syn,
        transport: 34,
        first_fragment: None,
    }
}

/// A world where nothing is in the way of a flow, and nothing fails.
fn free(listener: Option<Listener>) -> World {
    World {
        carried: PortPackets { steered: 1, direct: 1 },
        entries: [Conntrack::Missing; 3],
        after_insertion: [Conntrack::Missing; 3],
        written: PortPolicy::default(),
        path: Path::Unset,
        default: Policy::Unset,
        listener,
        reachable: true,
        connection: false,
        sender: false,
        recalled: None,
        expire: [Ok(()); 3],
        create: [Ok(()); 3],
    }
}

fn listeners() -> Vec<Option<Listener>> {
    let mut listeners = vec![None];
    for owner in OWNERS {
        listeners.push(Some(Listener::new(owner, None)));
        for service in SERVICES {
            for engine_way in ENGINE_WAYS {
                for unanswered_at in UNANSWERED {
                    let target = Some(target(service, engine_way, unanswered_at));
                    listeners.push(Some(Listener::new(owner, target)));
                }
            }
        }
    }
    listeners
}

/// A direct flow to this container that saw no reply.
fn unanswered(reply_source: [u8; 4]) -> Conntrack {
    let status = status::SRC_NAT | status::DST_NAT;
    Conntrack::Found(Entry { is_reply: false, status, tcp_state: 1, reply_source, reply_port: 80 })
}

fn visit(world: &World, packet: &Packet) -> (Reason, Calls) {
    let mut visit = Visit::of(world);
    (decide(packet, &mut visit), visit.calls)
}

/// What the policies say: who is to get the flow, or why it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Pass(Reason),
    Listener,
    Container(Target),
}

/// Whether a direct flow was begun before, and to the container that now has the port.
fn is_unanswered_now(world: &World) -> bool {
    let Conntrack::Found(entry) = world.entry(TupleKind::Direct) else { return false };
    world.target().is_some_and(|target| target.address == entry.reply_source)
}

/// Whether the addresses are those of a flow to another container.
fn is_reused(world: &World) -> bool {
    world.entry(TupleKind::Direct) != Conntrack::Missing && !is_unanswered_now(world)
}

/// The order "Who decides".
fn choice(world: &World) -> Choice {
    let PortPolicy { cli, config, path, .. } = world.written;
    let known = |number: &u8| (1..=3).contains(number);
    // The command line is stronger than the file.
    let policy = [cli, config].into_iter().find(known).unwrap_or(0);
    // The port's path is stronger than the global one, and auto where there is neither.
    let path = [path, world.path as u8].into_iter().find(known).unwrap_or(1);
    let (auto, direct) = (path == 1, path == 2);
    let Some(listener) = world.listener else {
        return Choice::Pass(if policy == 1 { Reason::Exempt } else { Reason::NoListener });
    };
    let (owner, target) = (listener.owner, listener.target().copied());
    let by_owner = match (owner, world.default) {
        (Policy::Steer, _) | (Policy::Unset, Policy::Steer) => Choice::Listener,
        (Policy::Pass, _) => Choice::Pass(Reason::OwnerPolicy),
        _ => Choice::Pass(Reason::DefaultPolicy),
    };
    match (policy, target) {
        (1, _) => Choice::Pass(Reason::Exempt),
        (2, _) => Choice::Listener,
        (3, None) => Choice::Pass(Reason::NoTarget),
        (3, Some(target)) => Choice::Container(target),
        (_, None) => by_owner,
        (_, Some(target)) => match (target.service(), target.engine_way()) {
            _ if direct => Choice::Container(target),
            (Service::Holder, EngineWay::Dropped) if auto => Choice::Container(target),
            (Service::Holder, _) => Choice::Pass(Reason::Holder),
            (Service::Proxy, _) => by_owner,
        },
    }
}

/// What becomes of a flow that begins on an alias where only an unanswered direct entry may be in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    reason: Reason,
    /// The entries that are made, or tried.
    makes: [bool; 2],
    notes: bool,
}

fn outcome(world: &World, packet: &Packet) -> Outcome {
    let passes = |reason| Outcome { reason, makes: [false, false], notes: false };
    let steers = |reason| Outcome {
        reason: world.create(TupleKind::Steered).err().unwrap_or(reason),
        makes: [true, false],
        notes: false,
    };
    let target = match choice(world) {
        Choice::Pass(reason) => return passes(reason),
        Choice::Listener if is_reused(world) => return steers(Reason::Reused),
        Choice::Listener => return steers(Reason::New),
        Choice::Container(target) => target,
    };
    let has_proxy = target.service() == Service::Proxy;
    // Nothing else works there.
    let is_last_resort = !has_proxy && target.engine_way() == EngineWay::Dropped;
    let is_unanswered_now = is_unanswered_now(world);
    let begun = if is_reused(world) { Reason::DirectReused } else { Reason::DirectNew };
    let is_avoided = target.unanswered_at != 0 && NOW - target.unanswered_at < 60_000_000_000;
    if (is_unanswered_now || is_avoided) && !is_last_resort {
        let outcome = if has_proxy { steers(Reason::Instead) } else { passes(Reason::Unanswered) };
        return Outcome { notes: is_unanswered_now, ..outcome };
    }
    if packet.client != LOCALHOST || !world.reachable {
        let outcome = if has_proxy { steers(Reason::Instead) } else { passes(Reason::Unreachable) };
        return Outcome { notes: is_unanswered_now, ..outcome };
    }
    let outcome = match world.create(TupleKind::Direct) {
        Ok(()) => Outcome { makes: [false, true], ..passes(begun) },
        Err(_) if has_proxy => Outcome { makes: [true, true], ..steers(Reason::Instead) },
        Err(failed) => Outcome { makes: [false, true], ..passes(failed) },
    };
    Outcome { notes: is_unanswered_now, ..outcome }
}

/// Every world of [`free`] with every policy, path, listener, way and failure, and the packet in it.
fn everywhere(mut test: impl FnMut(&World, &Packet, Reason, &Calls)) {
    const CREATIONS: [[Result<(), Reason>; 2]; 6] = [
        [Ok(()), Ok(())],
        [Ok(()), Err(Reason::AllocFailed)],
        [Ok(()), Err(Reason::NatFailed)],
        [Ok(()), Err(Reason::InsertFailed)],
        [Err(Reason::AllocFailed), Ok(())],
        [Err(Reason::InsertFailed), Err(Reason::InsertFailed)],
    ];
    let entries = [Conntrack::Missing, unanswered(CONTAINER), unanswered(FORMER)];
    for listener in listeners() {
        for [cli, config, path] in triples(POLICIES) {
            for global in PATHS {
                for default in DEFAULTS {
                    for entry in entries {
                        for reachable in [false, true] {
                            for [steered, direct] in CREATIONS {
                                let world = World {
                                    written: PortPolicy { cli, config, path, flags: 0 },
                                    path: global,
                                    default,
                                    reachable,
                                    entries: [Conntrack::Missing, Conntrack::Missing, entry],
                                    create: [Ok(()), steered, direct],
                                    ..free(listener)
                                };
                                let packet = syn(LOCALHOST);
                                let (reason, calls) = visit(&world, &packet);
                                test(&world, &packet, reason, &calls);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn triples<T: Copy + 'static, const N: usize>(of: [T; N]) -> impl Iterator<Item = [T; 3]> {
    of.into_iter().flat_map(move |a| of.into_iter().flat_map(move |b| of.into_iter().map(move |c| [a, b, c])))
}

fn made(calls: &Calls) -> [bool; 2] {
    [TupleKind::Steered, TupleKind::Direct].map(|kind| calls.has(Call::Create(kind)))
}

#[test]
fn the_first_that_has_a_say_decides_in_every_combination() {
    let mut reasons = std::collections::BTreeMap::new();
    everywhere(|world, packet, reason, calls| {
        let seen = Outcome { reason, makes: made(calls), notes: calls.has(Call::NoteUnanswered) };
        assert_eq!(seen, outcome(world, packet), "{world:?} {calls:?}");
        *reasons.entry(reason).or_insert(0_u32) += 1;
    });
    for reason in [
        Reason::New,
        Reason::Reused,
        Reason::Instead,
        Reason::DirectNew,
        Reason::DirectReused,
        Reason::Exempt,
        Reason::OwnerPolicy,
        Reason::DefaultPolicy,
        Reason::Holder,
        Reason::NoTarget,
        Reason::Unanswered,
        Reason::Unreachable,
        Reason::NoListener,
        Reason::AllocFailed,
        Reason::NatFailed,
        Reason::InsertFailed,
    ] {
        assert!(reasons.get(&reason).is_some_and(|count| *count > 1_000), "{reason:?}: {reasons:?}");
    }
}

#[test]
fn a_direct_flow_gets_its_targets_translation() {
    everywhere(|world, _, _, calls| {
        if let Some(flow) = calls.flow {
            assert_eq!(flow, DirectFlow { source_port: 0, ..FLOW }, "the kernel chooses the port");
            assert!(calls.in_order(Call::IsReachable, Call::Create(TupleKind::Direct)), "{calls:?}");
            assert!(world.target().is_some_and(|target| target.address == flow.address));
        }
    });
}

#[test]
fn an_unanswered_entry_is_gone_before_another_is_made() {
    everywhere(|world, _, reason, calls| {
        let [steered, direct] = made(calls);
        let is_in_the_way = world.entry(TupleKind::Direct) != Conntrack::Missing;
        let begins = steered || direct || reason == Reason::Unanswered && calls.has(Call::NoteUnanswered);
        assert_eq!(
            calls.has(Call::Expire(TupleKind::Direct)),
            is_in_the_way && begins,
            "{reason:?} {calls:?}"
        );
        for kind in [TupleKind::Steered, TupleKind::Direct] {
            let order = calls.in_order(Call::Expire(TupleKind::Direct), Call::Create(kind));
            assert_eq!(order, is_in_the_way && calls.has(Call::Create(kind)), "{calls:?}");
        }
    });
}

#[test]
fn no_flow_gets_a_steered_and_a_direct_entry() {
    everywhere(|world, _, _, calls| {
        let both = [TupleKind::Steered, TupleKind::Direct]
            .into_iter()
            .filter(|kind| calls.has(Call::Create(*kind)) && world.create(*kind).is_ok());
        assert!(both.count() <= 1, "{world:?} {calls:?}");
    });
}

#[test]
fn an_exempt_port_changes_nothing() {
    everywhere(|world, _, reason, calls| {
        let is_exempt = world.written.effective() == Policy::Pass;
        assert_eq!(reason == Reason::Exempt, is_exempt, "{world:?}");
        assert!(!is_exempt || !calls.changed_anything(), "{calls:?}");
    });
}

#[test]
fn a_port_without_container_asks_for_no_path() {
    everywhere(|world, _, _, calls| {
        if world.target().is_none() {
            for call in [Call::GlobalPath, Call::IsReachable, Call::Now, Call::Create(TupleKind::Direct)] {
                assert!(!calls.has(call), "{calls:?}");
            }
        }
    });
}

#[test]
fn another_client_than_127_0_0_1_never_goes_direct() {
    for listener in listeners() {
        for client in [[127, 0, 0, 2], [127, 1, 0, 1], [127, 119, 0, 1]] {
            for [cli, config, path] in triples(POLICIES) {
                // Were it asked for, the entry of a direct flow would be there.
                for entry in [Conntrack::Missing, unanswered(CONTAINER), Conntrack::Failed] {
                    let world = World {
                        written: PortPolicy { cli, config, path, flags: 0 },
                        entries: [Conntrack::Missing, Conntrack::Missing, entry],
                        ..free(listener)
                    };
                    let packet = syn(client);
                    let (reason, calls) = visit(&world, &packet);
                    assert_ne!(reason.verdict(), Verdict::Direct, "{world:?}");
                    for call in [Call::Conntrack(TupleKind::Direct), Call::Create(TupleKind::Direct)] {
                        assert!(!calls.has(call), "{calls:?}");
                    }
                    let alone = World { entries: [Conntrack::Missing; 3], ..world };
                    assert_eq!(reason, outcome(&alone, &packet).reason, "{world:?}");
                }
            }
        }
    }
}

/// Docker's port under `direct`: the container drops the flow's SYNs, and the proxy gets the rest of the minute.
#[test]
fn a_proxys_unanswered_flow_is_steered_and_noted() {
    let listener = Listener::new(Policy::Steer, Some(target(Service::Proxy, EngineWay::Open, 0)));
    let first = World { path: Path::Direct, ..free(Some(listener)) };
    assert_eq!(visit(&first, &syn(LOCALHOST)).0, Reason::DirectNew);
    let second = World { entries: [Conntrack::Missing, Conntrack::Missing, unanswered(CONTAINER)], ..first };
    let (reason, calls) = visit(&second, &syn(LOCALHOST));
    assert_eq!(reason, Reason::Instead);
    let order: Vec<Call> = calls
        .iter()
        .filter(|call| matches!(call, Call::Expire(_) | Call::Create(_) | Call::NoteUnanswered))
        .collect();
    assert_eq!(
        order,
        [Call::NoteUnanswered, Call::Expire(TupleKind::Direct), Call::Create(TupleKind::Steered)]
    );
}

/// A container that came back with another address: the flow to the old one tells nothing about the new one.
#[test]
fn a_former_containers_silence_is_not_held_against_the_next() {
    for service in SERVICES {
        let listener = Listener::new(Policy::Unset, Some(target(service, EngineWay::Open, 0)));
        let world = World {
            path: Path::Direct,
            entries: [Conntrack::Missing, Conntrack::Missing, unanswered(FORMER)],
            ..free(Some(listener))
        };
        let (reason, calls) = visit(&world, &syn(LOCALHOST));
        assert_eq!(reason, Reason::DirectReused);
        assert!(calls.has(Call::Expire(TupleKind::Direct)) && !calls.has(Call::NoteUnanswered), "{calls:?}");
    }
}
