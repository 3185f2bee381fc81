//! The verdict in every world that it can meet. [`everywhere`] combines each pair of conntrack's answers, about the
//! alias and about the packet's own tuple, with other answers of the kernel. Each test states one property.

use wsl_mirror_core::{
    abi::{Policy, Protocol, Reason, Verdict},
    packet::{Packet, Role},
    verdict::{Conntrack, Destination, Entry, Listener, decide, status, tcp_state},
};
use wsl_mirror_packets::worlds::{COMBINATIONS, Call, Calls, Visit, World};

const ALIAS: Destination = Destination::Alias;
const OWN: Destination = Destination::Own;

/// The bits that have a meaning to the verdict; and those that have none: expected, assured, confirmed, dying, ….
const BITS: [u32; 3] = [status::SEEN_REPLY, status::SRC_NAT, status::DST_NAT];
const OTHER_BITS: u32 = !(BITS[0] | BITS[1] | BITS[2]);

/// Every answer that conntrack can give.
fn conntrack_answers() -> Vec<Conntrack> {
    let mut answers = vec![Conntrack::Missing, Conntrack::Failed];
    for is_reply in [false, true] {
        for bits in 0..1_u32 << BITS.len() {
            let status = (0..BITS.len()).filter(|bit| bits >> bit & 1 == 1).map(|bit| BITS[bit]).sum::<u32>();
            for tcp_state in 0..=10 {
                // Alternately with and without the bits that mean nothing.
                let others = if tcp_state % 2 == 0 { 0 } else { OTHER_BITS };
                answers.push(Conntrack::Found(Entry { is_reply, status: status | others, tcp_state }));
            }
        }
    }
    answers
}

/// How many combinations each pair of answers gets. Pairs without any entry get all of them.
const TRIED: usize = 30;
/// From one combination to the next: it has no divisor in common with [`COMBINATIONS`].
const STRIDE: usize = 12_289;

/// Hands `test` every packet in worlds of every kind, with the reason and the calls.
fn everywhere(test: impl Fn(&World, &Packet, Reason, &Calls)) {
    let answers = conntrack_answers();
    let mut combination = 0;
    for role in [Role::Syn, Role::Ack, Role::Other, Role::Datagram] {
        let packet = packet(role);
        for on_alias in &answers {
            for own in &answers {
                let has_entry = [on_alias, own].iter().any(|answer| matches!(answer, Conntrack::Found(_)));
                for _ in 0..if has_entry { TRIED } else { COMBINATIONS } {
                    combination = (combination + STRIDE) % COMBINATIONS;
                    let world = World::of(*on_alias, *own, combination);
                    let mut visit = Visit::of(&world);
                    let reason = decide(&packet, &mut visit);
                    test(&world, &packet, reason, &visit.calls);
                }
            }
        }
    }
}

#[test]
fn the_stride_reaches_every_combination() {
    let mut seen = vec![false; COMBINATIONS];
    let mut at = 0;
    for _ in 0..COMBINATIONS {
        at = (at + STRIDE) % COMBINATIONS;
        seen[at] = true;
    }
    assert!(seen.into_iter().all(|seen| seen));
}

fn packet(role: Role) -> Packet {
    let protocol = if role == Role::Datagram { Protocol::Udp } else { Protocol::Tcp };
    Packet {
        protocol,
        client: [127, 0, 0, 1],
        client_port: 50_000,
        server_port: 8080,
        role,
        transport: 34,
        first_fragment: None,
    }
}

fn is_start(packet: &Packet) -> bool {
    matches!(packet.role, Role::Syn | Role::Datagram)
}

fn is_translated(entry: Entry) -> bool {
    entry.status & 0x20 != 0
}

/// The entry on the alias that carries a flow.
fn carries(answer: Conntrack) -> bool {
    matches!(answer, Conntrack::Found(entry) if !entry.is_reply && is_translated(entry))
}

/// The flow of exactly this tuple is over, and the packet starts it again.
fn is_finished(answer: Conntrack, packet: &Packet) -> bool {
    matches!(answer, Conntrack::Found(Entry { tcp_state: 7 | 8, .. }) if packet.role == Role::Syn)
}

/// An entry on the alias that carries no flow, where the packet begins one.
fn is_stray(answer: Conntrack, packet: &Packet) -> bool {
    matches!(answer, Conntrack::Found(entry) if is_start(packet) && !is_translated(entry))
}

/// An engine's DNAT caught the flow, which cannot work.
fn is_caught(answer: Conntrack, packet: &Packet) -> bool {
    let Conntrack::Found(entry) = answer else { return false };
    let bits = entry.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY);
    is_start(packet) && !entry.is_reply && bits == status::DST_NAT
}

/// Whether the verdict asks for the entry on the alias before anything else.
fn looks_at_alias(world: &World, packet: &Packet) -> bool {
    packet.role == Role::Syn || world.was_carried
}

/// The packet's flow has its entry on the alias.
fn is_established(world: &World, packet: &Packet) -> bool {
    looks_at_alias(world, packet) && carries(world.on_alias) && !is_finished(world.on_alias, packet)
}

/// No entry keeps the packet from beginning a flow.
fn begins(world: &World, packet: &Packet) -> bool {
    let is_free =
        world.own == Conntrack::Missing || is_finished(world.own, packet) || is_caught(world.own, packet);
    let is_known = looks_at_alias(world, packet) && world.on_alias == Conntrack::Failed;
    is_start(packet) && is_free && !is_known && !is_established(world, packet)
}

/// The program asks again before it expires an entry: another CPU may have put a new one in its place.
#[test]
fn an_entry_is_expirable_by_role_and_tuple_and_state() {
    for answer in conntrack_answers() {
        let Conntrack::Found(entry) = answer else { continue };
        for role in [Role::Syn, Role::Ack, Role::Other, Role::Datagram] {
            let packet = packet(role);
            let is_finished = is_finished(answer, &packet);
            assert_eq!(entry.is_expirable(role, OWN), is_finished, "{role:?} {entry:?}");
            let on_alias = is_finished || is_stray(answer, &packet);
            assert_eq!(entry.is_expirable(role, ALIAS), on_alias, "{role:?} {entry:?}");
        }
        assert_eq!(entry.carries(), carries(answer), "{entry:?}");
    }
}

#[test]
fn only_what_carries_no_live_flow_is_ever_expired() {
    everywhere(|world, packet, _, calls| {
        let mut has_created = false;
        for call in calls.iter() {
            match call {
                Call::Create(_) => has_created = true,
                Call::Expire(Destination::Own) => {
                    assert!(is_finished(world.own, packet), "{packet:?} {world:?}");
                }
                Call::Expire(Destination::Alias) => {
                    let answer = if has_created { world.after_insertion } else { world.on_alias };
                    let may = is_finished(answer, packet) || is_stray(answer, packet);
                    assert!(may, "{packet:?} {world:?} {calls:?}");
                }
                _ => {}
            }
        }
    });
}

#[test]
fn an_entry_is_expired_only_once_its_flow_is_admitted() {
    everywhere(|world, packet, _, calls| {
        for destination in [ALIAS, OWN] {
            if calls.has(Call::Expire(destination)) {
                assert!(calls.in_order(Call::Listener, Call::Expire(destination)), "{calls:?}");
                assert!(is_start(packet) && world.admits(), "{packet:?} {world:?}");
            }
        }
    });
}

#[test]
fn an_entry_in_the_way_is_expired_before_ours_is_made() {
    everywhere(|world, packet, _, calls| {
        if !calls.has(Call::Create(ALIAS)) {
            return;
        }
        let on_alias = is_finished(world.on_alias, packet) || is_stray(world.on_alias, packet);
        let is_known = looks_at_alias(world, packet);
        assert_eq!(
            calls.in_order(Call::Expire(ALIAS), Call::Create(ALIAS)),
            on_alias && is_known,
            "{world:?}"
        );
        assert_eq!(
            calls.in_order(Call::Expire(OWN), Call::Create(ALIAS)),
            is_finished(world.own, packet),
            "{world:?}"
        );
    });
}

#[test]
fn an_entry_on_the_alias_begins_with_a_syn_or_datagram() {
    everywhere(|world, packet, _, calls| {
        let changed = |call| matches!(call, Call::Create(ALIAS) | Call::Expire(_));
        assert!(is_start(packet) || !calls.iter().any(changed), "{packet:?} {calls:?}");
        if calls.has(Call::Create(ALIAS)) {
            assert!(world.admits() && begins(world, packet), "{packet:?} {world:?}");
            assert!(calls.in_order(Call::Listener, Call::Create(ALIAS)), "{calls:?}");
        }
    });
}

#[test]
fn an_entry_of_its_own_tuple_is_for_an_ack_with_a_socket() {
    everywhere(|world, packet, reason, calls| {
        let is_due = packet.role == Role::Ack
            && world.was_carried
            && world.on_alias != Conntrack::Failed
            && !is_established(world, packet)
            && world.own == Conntrack::Missing;
        assert_eq!(calls.has(Call::HasConnection), is_due, "{packet:?} {world:?}");
        assert_eq!(calls.has(Call::Create(OWN)), is_due && world.connection, "{packet:?} {world:?}");
        let expected = match (is_due, world.connection, world.create(OWN)) {
            (false, ..) => {
                assert!(!matches!(reason, Reason::PickedUp | Reason::NoSocket), "{packet:?} {world:?}");
                return;
            }
            (_, false, _) => Reason::NoSocket,
            (_, _, Ok(())) => Reason::PickedUp,
            (_, _, Err(failed)) => failed,
        };
        assert_eq!(reason, expected, "{packet:?} {world:?}");
    });
}

#[test]
fn a_packet_is_steered_only_by_a_carrying_entry() {
    everywhere(|world, packet, reason, calls| {
        let made = calls.has(Call::Create(ALIAS)) && world.create(ALIAS).is_ok();
        // Another CPU was first.
        let met = calls.has(Call::Create(ALIAS))
            && world.create(ALIAS) == Err(Reason::InsertFailed)
            && carries(world.after_insertion);
        let steered = reason.verdict() == Verdict::Steer;
        assert_eq!(steered, made || met || is_established(world, packet), "{packet:?} {world:?} {calls:?}");
    });
}

#[test]
fn an_established_flow_costs_one_lookup_and_no_question() {
    everywhere(|world, packet, reason, calls| {
        if is_established(world, packet) {
            assert_eq!(reason, Reason::Established, "{packet:?} {world:?}");
            let others = calls.iter().filter(|call| *call != Call::WasCarried);
            assert!(others.eq([Call::Conntrack(ALIAS)]), "{calls:?}");
        }
    });
}

#[test]
fn a_segment_to_a_never_carried_port_costs_no_lookup() {
    everywhere(|world, packet, reason, calls| {
        let is_segment = matches!(packet.role, Role::Ack | Role::Other);
        assert_eq!(reason == Reason::NeverCarried, is_segment && !world.was_carried, "{packet:?} {world:?}");
        if reason == Reason::NeverCarried {
            assert!(calls.iter().eq([Call::WasCarried]), "{calls:?}");
        }
    });
}

#[test]
fn a_datagram_to_a_never_carried_port_asks_one_tuple() {
    everywhere(|world, packet, _, calls| {
        if packet.role == Role::Datagram && !world.was_carried {
            let until_insertion = calls.iter().take_while(|call| *call != Call::Create(ALIAS));
            let lookups = until_insertion.filter(|call| matches!(call, Call::Conntrack(_)));
            assert!(lookups.eq([Call::Conntrack(OWN)]), "{calls:?}");
        }
    });
}

#[test]
fn a_flow_is_carried_if_nothing_forbids_it() {
    everywhere(|world, packet, reason, calls| {
        let nothing_fails = world.create(ALIAS).is_ok() && world.expire == [Ok(()), Ok(())];
        if !begins(world, packet) || !world.admits() || !nothing_fails {
            return;
        }
        let is_reused = is_finished(world.own, packet)
            || (is_finished(world.on_alias, packet) && carries(world.on_alias));
        let expected = if is_reused { Reason::Reused } else { Reason::New };
        assert_eq!(reason, expected, "{packet:?} {world:?}");
        assert_eq!(calls.last(), Some(Call::Create(ALIAS)), "{calls:?}");
    });
}

#[test]
fn a_refused_flow_passes_unchanged_for_the_first_reason() {
    everywhere(|world, packet, reason, calls| {
        let refused = begins(world, packet) && !world.admits();
        let expected = match (world.port_policy, world.listener) {
            (Policy::Pass, _) => Reason::Exempt,
            (_, None) => Reason::NoListener,
            (_, Some(Listener { owner: Policy::Pass })) => Reason::OwnerPolicy,
            _ => Reason::DefaultPolicy,
        };
        if refused {
            assert_eq!(reason, expected, "{packet:?} {world:?}");
            assert!(!calls.changed_anything(), "{calls:?}");
            return;
        }
        let by_policy = [Reason::Exempt, Reason::NoListener, Reason::OwnerPolicy, Reason::DefaultPolicy];
        assert!(!by_policy.contains(&reason), "{reason:?} {packet:?} {world:?}");
    });
}

#[test]
fn an_exempt_port_is_asked_for_no_listener() {
    everywhere(|world, _, _, calls| {
        assert!(world.port_policy != Policy::Pass || !calls.has(Call::Listener), "{calls:?}");
    });
}

#[test]
fn the_own_tuples_entry_says_who_carries_the_flow() {
    everywhere(|world, packet, reason, calls| {
        let has_failed = looks_at_alias(world, packet) && world.on_alias == Conntrack::Failed;
        let is_asked = !is_established(world, packet) && !has_failed && reason != Reason::NeverCarried;
        assert_eq!(calls.has(Call::Conntrack(OWN)), is_asked, "{packet:?} {world:?}");
        let expected = match world.own {
            Conntrack::Found(entry) if is_asked && !begins(world, packet) => {
                assert!(!calls.changed_anything(), "{calls:?}");
                match (entry.is_reply, is_translated(entry)) {
                    (true, _) => Reason::Reply,
                    (false, false) => Reason::NotOurs,
                    (false, true) => Reason::EngineNat,
                }
            }
            _ => {
                let by_entry = [Reason::Reply, Reason::NotOurs, Reason::EngineNat];
                assert!(!by_entry.contains(&reason), "{reason:?} {packet:?} {world:?}");
                return;
            }
        };
        assert_eq!(reason, expected, "{packet:?} {world:?}");
    });
}

#[test]
fn an_unknown_segment_that_is_no_ack_is_a_stray() {
    everywhere(|world, packet, reason, calls| {
        let is_unknown = packet.role == Role::Other
            && world.was_carried
            && world.own == Conntrack::Missing
            && world.on_alias != Conntrack::Failed
            && !carries(world.on_alias);
        assert_eq!(reason == Reason::Stray, is_unknown, "{packet:?} {world:?} {calls:?}");
    });
}

#[test]
fn a_failed_call_has_its_own_reason_and_the_packet_passes() {
    everywhere(|world, packet, reason, calls| {
        let mut has_created = false;
        let failure = calls.iter().find_map(|call| {
            let failed = match call {
                // After an insertion its own failure counts.
                Call::Conntrack(_) | Call::Expire(_) if has_created => None,
                Call::Conntrack(Destination::Alias) => {
                    (world.on_alias == Conntrack::Failed).then_some(Reason::LookupFailed)
                }
                Call::Conntrack(Destination::Own) => {
                    (world.own == Conntrack::Failed).then_some(Reason::LookupFailed)
                }
                Call::Expire(destination) => {
                    world.expire(destination).is_err().then_some(Reason::ExpireFailed)
                }
                Call::Create(destination) => {
                    has_created = true;
                    world.create(destination).err()
                }
                _ => None,
            };
            Some((call, failed?))
        });
        let Some((call, failed)) = failure else {
            assert_ne!(reason.verdict(), Verdict::Failed, "nothing failed: {packet:?} {world:?}");
            return;
        };
        if (call, failed) == (Call::Create(ALIAS), Reason::InsertFailed) {
            let was_first = carries(world.after_insertion);
            let expected = if was_first { Reason::Established } else { Reason::InsertFailed };
            assert_eq!(reason, expected, "{packet:?} {world:?}");
            return;
        }
        assert_eq!((reason, reason.verdict()), (failed, Verdict::Failed), "{packet:?} {world:?}");
        assert_eq!(calls.last(), Some(call), "{calls:?}");
    });
}

#[test]
fn a_failed_insertion_has_one_more_look_at_the_alias() {
    everywhere(|world, packet, _, calls| {
        let created = calls.iter().position(|call| call == Call::Create(ALIAS));
        let Some(at) = created else { return };
        let mut after = calls.iter().skip(at + 1);
        if world.create(ALIAS) != Err(Reason::InsertFailed) {
            assert_eq!(after.next(), None, "{calls:?}");
            return;
        }
        assert_eq!(after.next(), Some(Call::Conntrack(ALIAS)), "{calls:?}");
        // What the kernel made from a stray packet goes, so that the flow's next packet finds it gone.
        let is_expired = is_stray(world.after_insertion, packet);
        assert_eq!(after.next(), is_expired.then_some(Call::Expire(ALIAS)), "{world:?} {calls:?}");
        assert_eq!(after.next(), None, "{calls:?}");
    });
}

#[test]
fn the_verdict_asks_no_question_twice() {
    everywhere(|_, packet, _, calls| {
        let made: Vec<Call> = calls.iter().take_while(|call| *call != Call::Create(ALIAS)).collect();
        for (index, call) in made.iter().enumerate() {
            assert!(!made[..index].contains(call), "{packet:?} {calls:?}");
        }
        let first = if packet.role == Role::Syn { Call::Conntrack(ALIAS) } else { Call::WasCarried };
        assert_eq!(made.first(), Some(&first), "{packet:?}");
    });
}

#[test]
fn conntracks_numbers_are_those_of_its_headers() {
    // nf_conntrack_common.h, nf_conntrack_tcp.h: both uapi, so they stay.
    assert_eq!(BITS, [1 << 1, 1 << 4, 1 << 5]);
    assert_eq!((tcp_state::TIME_WAIT, tcp_state::CLOSE), (7, 8));
}
