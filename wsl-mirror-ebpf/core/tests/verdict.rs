//! The verdict in every world that it can meet: conntrack's answers about each of the packet's three tuples, with any other
//! answers of the kernel. Each test states one property. `admission.rs` has the policies, `entry.rs` the entries.

use wsl_mirror_core::{
    abi::{DEFAULT_SOURCE_ALIAS, Policy, PortPackets, Protocol, Reason, Service, Verdict},
    packet::{LOCALHOST, Packet, Role},
    verdict::{Conntrack, End, Entry, TupleKind, decide, status},
};
use wsl_mirror_packets::worlds::{COMBINATIONS, CONTAINER, Call, Calls, FLOW, FORMER, Visit, World};

const OWN: TupleKind = TupleKind::Own;
const STEERED: TupleKind = TupleKind::Steered;
const DIRECT: TupleKind = TupleKind::Direct;

/// How many worlds each role of a packet meets.
const WORLDS: u32 = 300_000;

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

    fn one_of<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[usize::try_from(self.next() % N as u64).unwrap_or(0)]
    }

    /// Half of the tuples have an entry, and most of those are what a kind of flow has.
    fn conntrack(&mut self, kind: TupleKind, client: [u8; 4]) -> Conntrack {
        const BOTH: u32 = status::SRC_NAT | status::DST_NAT;
        if self.one_of([false, true]) {
            return self.one_of([
                Conntrack::Missing,
                Conntrack::Missing,
                Conntrack::Missing,
                Conntrack::Failed,
            ]);
        }
        let tcp_state = self.one_of([0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]);
        let seen = self.one_of([0, status::SEEN_REPLY]);
        let others = self.one_of([0, !(BOTH | status::SEEN_REPLY)]);
        let any = (
            self.one_of([0, status::SRC_NAT, status::DST_NAT, BOTH]),
            self.one_of([LOCALHOST, CONTAINER, FORMER, [127, 119, 0, 1]]),
        );
        let (status, reply_source) =
            self.one_of([(status::DST_NAT, LOCALHOST), (BOTH, CONTAINER), (BOTH, FORMER), any]);
        let is_reply = self.one_of([false, false, false, true]);
        // A tuple in the direction of replies is itself where they come from.
        let itself = if kind == DIRECT { DEFAULT_SOURCE_ALIAS } else { client };
        let reply_source = if is_reply { itself } else { reply_source };
        Conntrack::Found(Entry {
            is_reply,
            status: status | seen | others,
            tcp_state,
            reply_source,
            reply_port: 80,
        })
    }
}

/// Hands `test` every packet in worlds of every kind, with the reason and the calls.
fn everywhere(mut test: impl FnMut(&World, &Packet, Reason, &Calls)) {
    let mut numbers = Numbers(1);
    for role in [Role::Syn, Role::Ack, Role::Other, Role::Datagram] {
        for _ in 0..WORLDS {
            let client = numbers.one_of([LOCALHOST, LOCALHOST, LOCALHOST, [127, 0, 0, 2]]);
            let packet = packet(role, client);
            let entries = [OWN, STEERED, DIRECT].map(|kind| numbers.conntrack(kind, client));
            let world = World::of(entries, numbers.next() % COMBINATIONS);
            let mut visit = Visit::of(&world);
            let reason = decide(&packet, &mut visit);
            test(&world, &packet, reason, &visit.calls);
        }
    }
}

fn packet(role: Role, client: [u8; 4]) -> Packet {
    let protocol = if role == Role::Datagram { Protocol::Udp } else { Protocol::Tcp };
    Packet {
        protocol,
        client,
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

/// Whether the verdict asks for the entry of this tuple, where none before decides.
fn looks_at(kind: TupleKind, world: &World, packet: &Packet) -> bool {
    match kind {
        TupleKind::Own => true,
        TupleKind::Steered => packet.role == Role::Syn || world.carried.steered != 0,
        TupleKind::Direct => packet.client == LOCALHOST && world.carried.direct != 0,
    }
}

/// What the entry of a tuple means to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// No entry, or no lookup.
    Nothing,
    /// The lookup failed.
    Failed,
    /// It carries the packet.
    Carries,
    /// It goes, and the flow begins on the addresses of another.
    Reused,
    /// It goes: it carried nothing.
    Stray,
    /// It goes: the container did not answer.
    Unanswered,
}

/// Of an entry on the alias.
fn meaning(kind: TupleKind, world: &World, packet: &Packet) -> Meaning {
    if !looks_at(kind, world, packet) {
        return Meaning::Nothing;
    }
    let entry = match world.entry(kind) {
        Conntrack::Missing => return Meaning::Nothing,
        Conntrack::Failed => return Meaning::Failed,
        Conntrack::Found(entry) => entry,
    };
    let is_over = packet.role == Role::Syn && matches!(entry.tcp_state, 7 | 8);
    if !entry.carries(kind) {
        // A steered flow's from the other side is left alone until it is over.
        let is_expirable = is_start(packet) && (kind == DIRECT || !entry.is_ours(kind)) || is_over;
        return if is_expirable { Meaning::Stray } else { Meaning::Nothing };
    }
    let target = world.target();
    let goes_elsewhere = match kind {
        TupleKind::Direct => target.is_none_or(|target| target.address != entry.reply_source),
        // A proxy served the flow, and the holder that has the port now never will.
        _ => {
            packet.role == Role::Datagram && target.is_some_and(|target| target.service() == Service::Holder)
        }
    };
    let is_unanswered = packet.role == Role::Syn && kind == DIRECT && entry.status & 2 == 0;
    match () {
        () if is_start(packet) && goes_elsewhere => Meaning::Reused,
        // In CLOSE, too: a REJECT rule has answered for the container.
        () if is_unanswered => Meaning::Unanswered,
        () if is_over => Meaning::Reused,
        () => Meaning::Carries,
    }
}

/// The holder of the port never accepts.
fn is_held(world: &World) -> bool {
    world.target().is_some_and(|target| target.service() == Service::Holder)
}

/// What the entries say about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Decided(Reason),
    /// No entry at all: an ACK looks for its socket.
    PickUp,
    Begins {
        /// The entries that go first, by [`TupleKind`].
        expires: [bool; 3],
        is_reused: bool,
        is_unanswered: bool,
        /// The own tuple's entry stays, and leaves no room for a steered flow's.
        is_beside: bool,
    },
}

fn course(world: &World, packet: &Packet) -> Course {
    let is_known = looks_at(STEERED, world, packet) || looks_at(DIRECT, world, packet);
    if !is_known && !is_start(packet) {
        return Course::Decided(Reason::NeverCarried);
    }
    let [direct, steered] = [DIRECT, STEERED].map(|kind| meaning(kind, world, packet));
    for (meaning, carried) in [(direct, Reason::DirectEstablished), (steered, Reason::Established)] {
        match meaning {
            Meaning::Failed => return Course::Decided(Reason::LookupFailed),
            Meaning::Carries => return Course::Decided(carried),
            _ => {}
        }
    }
    let goes = |meaning| !matches!(meaning, Meaning::Nothing);
    let begins = |is_over, is_beside| Course::Begins {
        expires: [is_over, goes(steered), goes(direct)],
        is_reused: is_over || [direct, steered].contains(&Meaning::Reused),
        is_unanswered: direct == Meaning::Unanswered,
        is_beside,
    };
    let entry = match world.entry(OWN) {
        Conntrack::Failed => return Course::Decided(Reason::LookupFailed),
        Conntrack::Missing => {
            return match packet.role {
                Role::Syn | Role::Datagram => begins(false, false),
                Role::Ack => Course::PickUp,
                Role::Other => Course::Decided(Reason::Stray),
            };
        }
        Conntrack::Found(entry) => entry,
    };
    let has = |bit: u32| entry.status & bit != 0;
    let is_caught = is_start(packet)
        && has(status::DST_NAT)
        && !has(status::SRC_NAT)
        && !has(status::SEEN_REPLY)
        && entry.reply_source[0] != 127;
    match packet.role {
        Role::Syn if matches!(entry.tcp_state, 7 | 8) => begins(true, false),
        _ if entry.is_reply => Course::Decided(Reason::Reply),
        _ if is_caught => begins(false, false),
        _ if has(status::DST_NAT) => Course::Decided(Reason::EngineNat),
        Role::Datagram if (!has(status::SEEN_REPLY) || is_held(world)) && !world.sender => {
            begins(false, true)
        }
        _ => Course::Decided(Reason::NotOurs),
    }
}

/// The steered UDP flow leads to a holder, where the user may want it: then it stays.
fn stays(world: &World, packet: &Packet) -> bool {
    packet.role == Role::Datagram
        && meaning(STEERED, world, packet) == Meaning::Reused
        && world.written.effective() == Policy::Steer
}

/// The calls that change something, in order.
fn changes(calls: &Calls) -> Vec<Call> {
    let changes = |call: &Call| matches!(call, Call::Expire(_) | Call::Create(_) | Call::NoteUnanswered);
    calls.iter().filter(changes).collect()
}

#[test]
fn the_entries_decide_or_the_policies_are_asked() {
    everywhere(|world, packet, reason, calls| match course(world, packet) {
        Course::Decided(expected) => {
            assert_eq!(reason, expected, "{packet:?} {world:?}");
            assert!(!calls.changed_anything() && !calls.has(Call::PortPolicy), "{calls:?}");
        }
        Course::PickUp => assert!(!calls.has(Call::PortPolicy), "{calls:?}"),
        Course::Begins { .. } => assert!(calls.has(Call::PortPolicy), "{packet:?} {world:?} {calls:?}"),
    });
}

#[test]
fn a_live_direct_flow_costs_one_lookup() {
    everywhere(|world, packet, reason, calls| {
        if meaning(DIRECT, world, packet) == Meaning::Carries {
            assert_eq!(reason, Reason::DirectEstablished, "{packet:?} {world:?}");
            // A flow that may begin anew also has its container compared.
            let listener = is_start(packet).then_some(Call::Listener);
            let expected = listener.into_iter().chain([Call::Carried, Call::Conntrack(DIRECT)]);
            assert!(calls.iter().eq(expected), "{calls:?}");
        }
    });
}

#[test]
fn a_live_steered_segment_costs_one_lookup_a_kind() {
    everywhere(|world, packet, reason, calls| {
        if reason == Reason::Established && packet.role != Role::Datagram && !calls.changed_anything() {
            let direct = looks_at(DIRECT, world, packet).then_some(Call::Conntrack(DIRECT));
            let lookups = calls.iter().filter(|call| matches!(call, Call::Conntrack(_)));
            assert!(lookups.eq(direct.into_iter().chain([Call::Conntrack(STEERED)])), "{calls:?}");
            assert_eq!(calls.times(Call::Listener), usize::from(is_start(packet)), "{calls:?}");
        }
    });
}

#[test]
fn a_segment_to_a_never_carried_port_costs_no_lookup() {
    everywhere(|world, packet, reason, calls| {
        let is_known = looks_at(STEERED, world, packet) || looks_at(DIRECT, world, packet);
        assert_eq!(reason == Reason::NeverCarried, !is_start(packet) && !is_known, "{packet:?} {world:?}");
        if reason == Reason::NeverCarried {
            assert!(calls.iter().eq([Call::Carried]), "{calls:?}");
        }
    });
}

#[test]
fn a_datagram_to_a_never_carried_port_asks_one_tuple() {
    everywhere(|world, packet, _, calls| {
        if packet.role == Role::Datagram && world.carried == PortPackets::default() {
            let until_insertion = calls.iter().take_while(|call| !matches!(call, Call::Create(_)));
            let lookups = until_insertion.filter(|call| matches!(call, Call::Conntrack(_)));
            assert!(lookups.eq([Call::Conntrack(OWN)]), "{calls:?}");
        }
    });
}

#[test]
fn another_client_than_127_0_0_1_never_meets_direct() {
    everywhere(|_, packet, reason, calls| {
        if packet.client != LOCALHOST {
            assert_ne!(reason.verdict(), Verdict::Direct);
            let calls_of_direct = [
                Call::Conntrack(DIRECT),
                Call::Create(DIRECT),
                Call::Expire(DIRECT),
                Call::IsReachable,
                Call::Recall,
            ];
            assert!(calls_of_direct.iter().all(|call| !calls.has(*call)), "{calls:?}");
        }
    });
}

#[test]
fn only_what_a_packet_may_expire_is_expired() {
    everywhere(|world, packet, _, calls| {
        let mut created = [false; 3];
        for call in calls.iter() {
            match call {
                Call::Create(kind) => created[kind as usize] = true,
                Call::Expire(kind) => {
                    let after = created[kind as usize];
                    let met = if after { world.after_insertion(kind) } else { world.entry(kind) };
                    let Conntrack::Found(entry) = met else { panic!("no entry: {world:?} {calls:?}") };
                    let target = calls.expired_for[kind as usize].expect("noted with the call");
                    // For the steered tuple the last one counts, which is after an insertion.
                    assert!(
                        entry.is_expirable(packet.role, kind, target),
                        "{kind:?} for {target:?}: {packet:?} {world:?} {calls:?}"
                    );
                }
                _ => {}
            }
        }
    });
}

#[test]
fn what_is_in_the_way_goes_before_an_entry_is_made() {
    everywhere(|world, packet, reason, calls| {
        let mut changes = changes(calls);
        changes.retain(|call| *call != Call::NoteUnanswered);
        let Course::Begins { expires, .. } = course(world, packet) else { return };
        if stays(world, packet) && reason == Reason::Established {
            assert!(!calls.changed_anything(), "{calls:?}");
            return;
        }
        let created = changes.iter().position(|call| matches!(call, Call::Create(_)));
        let before: Vec<Call> = changes[..created.unwrap_or(changes.len())].to_vec();
        if changes.is_empty() {
            assert!(!reason.verdict().is_carried(), "{reason:?} {world:?}");
            return;
        }
        let mut expected = Vec::new();
        for kind in [STEERED, DIRECT, OWN] {
            if expires[kind as usize] {
                expected.push(Call::Expire(kind));
                if world.expire(kind).is_err() {
                    break;
                }
            }
        }
        assert_eq!(before, expected, "{packet:?} {world:?}");
    });
}

#[test]
fn a_udp_flow_stays_at_a_holder_where_the_user_wants_it() {
    let mut stayed = 0;
    everywhere(|world, packet, reason, calls| {
        if stays(world, packet) && matches!(course(world, packet), Course::Begins { .. }) {
            assert_eq!(reason, Reason::Established, "{packet:?} {world:?} {calls:?}");
            stayed += 1;
        }
    });
    assert!(stayed > 20, "{stayed}");
}

/// The entries that carry the packet's flow after the verdict, as far as the verdict knows of them.
fn carrying_after(world: &World, packet: &Packet, calls: &Calls) -> [bool; 3] {
    let mut carrying = [OWN, STEERED, DIRECT].map(|kind| {
        let is_known = kind != OWN && looks_at(kind, world, packet) && calls.has(Call::Conntrack(kind));
        is_known && matches!(world.entry(kind), Conntrack::Found(entry) if entry.carries(kind))
    });
    for call in calls.iter() {
        match call {
            Call::Expire(kind) if world.expire(kind).is_ok() => carrying[kind as usize] = false,
            Call::Create(kind) if world.create(kind).is_ok() => carrying[kind as usize] = true,
            _ => {}
        }
    }
    carrying
}

#[test]
fn a_flow_that_begins_has_one_entry_on_the_alias() {
    everywhere(|world, packet, reason, calls| {
        let begun = [Reason::New, Reason::Reused, Reason::Instead, Reason::DirectNew, Reason::DirectReused];
        if begun.contains(&reason) {
            let [_, steered, direct] = carrying_after(world, packet, calls);
            let is_direct = reason.verdict() == Verdict::Direct;
            assert_eq!([steered, direct], [!is_direct, is_direct], "{packet:?} {world:?} {calls:?}");
        }
    });
}

/// Another CPU was first.
fn was_first(kind: TupleKind, world: &World, calls: &Calls) -> bool {
    calls.has(Call::Create(kind))
        && world.create(kind) == Err(Reason::InsertFailed)
        && matches!(world.after_insertion(kind), Conntrack::Found(entry)
            if entry.carries(kind) && (kind != DIRECT || entry.leads_to(End { address: CONTAINER, port: 80 })))
}

#[test]
fn a_packet_is_carried_only_by_an_entry_of_its_verdict() {
    everywhere(|world, packet, reason, calls| {
        for (kind, verdict) in [(STEERED, Verdict::Steer), (DIRECT, Verdict::Direct)] {
            let made = calls.has(Call::Create(kind)) && world.create(kind).is_ok();
            let stays = kind == STEERED && stays(world, packet);
            let carries = made
                || stays
                || was_first(kind, world, calls)
                || meaning(kind, world, packet) == Meaning::Carries;
            if reason.verdict() == verdict {
                assert!(carries, "{reason:?} {packet:?} {world:?} {calls:?}");
            }
            // And what was made for it carries it.
            assert!(!made || reason.verdict() == verdict, "{reason:?} {packet:?} {world:?} {calls:?}");
        }
    });
}

#[test]
fn an_entry_on_the_alias_begins_with_a_syn_or_datagram() {
    everywhere(|_, packet, reason, calls| {
        if !is_start(packet) {
            let changed =
                |call| matches!(call, Call::Create(STEERED) | Call::Expire(_) | Call::NoteUnanswered);
            assert!(!calls.iter().any(changed), "{calls:?}");
            // But a direct flow's, which is known from before.
            let is_picked_up = calls.has(Call::Create(DIRECT));
            assert!(!is_picked_up || calls.has(Call::Recall), "{calls:?}");
            assert!(is_picked_up || reason != Reason::DirectPickedUp);
        }
    });
}

#[test]
fn an_ack_without_entry_looks_for_its_socket_then_its_past() {
    everywhere(|world, packet, reason, calls| {
        let is_due = course(world, packet) == Course::PickUp;
        assert_eq!(calls.has(Call::HasConnection), is_due, "{packet:?} {world:?}");
        if !is_due {
            assert!(!calls.has(Call::Recall) && !calls.has(Call::Create(OWN)), "{calls:?}");
            return;
        }
        let is_remembered = !world.connection && looks_at(DIRECT, world, packet);
        assert_eq!(calls.has(Call::Recall), is_remembered, "{packet:?} {world:?}");
        let flow = world.recalled.filter(|_| is_remembered);
        assert_eq!(calls.has(Call::Create(OWN)), world.connection, "{packet:?} {world:?}");
        assert_eq!(calls.flow, flow, "with the port that the container knows");
        let expected = match (world.connection, flow) {
            (true, _) => world.create(OWN).err().unwrap_or(Reason::PickedUp),
            (false, Some(_)) => world.create(DIRECT).err().unwrap_or(Reason::DirectPickedUp),
            (false, None) => Reason::NoSocket,
        };
        assert_eq!(reason, expected, "{packet:?} {world:?}");
    });
}

#[test]
fn a_new_direct_flow_leaves_its_port_to_the_kernel() {
    everywhere(|world, packet, _, calls| {
        if is_start(packet) && calls.has(Call::Create(DIRECT)) {
            assert_eq!(calls.flow, Some(FLOW), "{packet:?} {world:?}");
            assert!(calls.in_order(Call::IsReachable, Call::Create(DIRECT)) && world.reachable, "{calls:?}");
        }
    });
}

/// Datagrams that passed before the port had a container: their entry leaves no room for a steered flow's reply tuple.
#[test]
fn beside_an_entry_of_its_own_a_flow_only_goes_direct() {
    let mut direct = 0;
    everywhere(|world, packet, reason, calls| {
        if let Course::Begins { is_beside: true, .. } = course(world, packet) {
            assert!(!calls.has(Call::Create(STEERED)) && !calls.has(Call::Expire(OWN)), "{calls:?}");
            assert!(reason.verdict() != Verdict::Steer || stays(world, packet), "{reason:?}");
            direct += u32::from(reason.verdict() == Verdict::Direct);
        }
    });
    assert!(direct > 20, "{direct}");
}

#[test]
fn a_senders_own_datagram_stays_with_its_entry() {
    everywhere(|world, _, reason, calls| {
        if calls.has(Call::HasSender) && world.sender {
            assert_eq!(reason, Reason::NotOurs, "{world:?}");
            assert!(!calls.changed_anything(), "{calls:?}");
        }
    });
}

#[test]
fn a_note_is_for_a_syn_whose_direct_entry_is_unanswered() {
    let mut notes = 0;
    everywhere(|world, packet, reason, calls| {
        let was_unanswered = matches!(course(world, packet), Course::Begins { is_unanswered: true, .. });
        let has_noted = calls.has(Call::NoteUnanswered);
        assert!(!has_noted || was_unanswered && packet.role == Role::Syn, "{packet:?} {world:?}");
        // Where the policies have chosen the container. Its minute matters only to flows that were not unanswered just now.
        let goes_direct = [Reason::DirectNew, Reason::DirectReused, Reason::Instead];
        let chose_container = goes_direct.contains(&reason)
            || matches!(reason, Reason::Unanswered | Reason::Unreachable)
            || calls.has(Call::Create(DIRECT));
        assert!(has_noted || !was_unanswered || !chose_container, "{reason:?} {world:?} {calls:?}");
        notes += u32::from(has_noted);
    });
    assert!(notes > 100, "{notes}");
}

#[test]
fn a_refused_flow_passes_and_changes_nothing() {
    let refused = [
        Reason::Exempt,
        Reason::NoListener,
        Reason::OwnerPolicy,
        Reason::DefaultPolicy,
        Reason::Holder,
        Reason::NoTarget,
        Reason::Unreachable,
    ];
    everywhere(|world, packet, reason, calls| {
        if refused.contains(&reason) {
            // The last resort may have been tried before its route went.
            let changes = changes(calls);
            let may_note = reason == Reason::Unreachable && changes == [Call::NoteUnanswered];
            assert!(changes.is_empty() || may_note, "{reason:?} {calls:?}");
            assert!(matches!(course(world, packet), Course::Begins { .. }), "{packet:?} {world:?}");
        }
        if reason == Reason::Unanswered {
            assert!(!calls.iter().any(|call| matches!(call, Call::Create(_))), "{calls:?}");
        }
    });
}

#[test]
fn a_flow_that_begins_says_whether_its_addresses_are_reused() {
    everywhere(|world, packet, reason, _| {
        let Course::Begins { is_reused, .. } = course(world, packet) else { return };
        let (new, reused) = (
            [Reason::New, Reason::DirectNew].contains(&reason),
            [Reason::Reused, Reason::DirectReused].contains(&reason),
        );
        assert!(!new || !is_reused, "{packet:?} {world:?}");
        assert!(!reused || is_reused, "{packet:?} {world:?}");
    });
}

#[test]
fn a_failed_call_never_carries_a_packet_without_entry() {
    everywhere(|world, packet, reason, calls| {
        let failures = calls.iter().filter_map(|call| match call {
            Call::Expire(kind) => world.expire(kind).err().map(|()| (call, Reason::ExpireFailed)),
            Call::Create(kind) => world.create(kind).err().map(|failed| (call, failed)),
            _ => None,
        });
        let failures: Vec<_> = failures.collect();
        let Some((call, failed)) = failures.first().copied() else {
            let is_lookup = course(world, packet) == Course::Decided(Reason::LookupFailed);
            assert_eq!(reason.verdict() == Verdict::Failed, is_lookup, "{reason:?} {packet:?} {world:?}");
            return;
        };
        let is_direct = call == Call::Create(DIRECT);
        let has_proxy = world.target().is_some_and(|target| target.service() == Service::Proxy);
        if is_direct && is_start(packet) && was_first(DIRECT, world, calls) {
            assert_eq!(reason, Reason::DirectEstablished);
        } else if is_direct && is_start(packet) && has_proxy && reason != Reason::NotOurs {
            // The proxy gets what cannot go direct.
            let expected = match world.create(STEERED) {
                Ok(()) => Reason::Instead,
                Err(Reason::InsertFailed) if was_first(STEERED, world, calls) => Reason::Established,
                Err(failed) => failed,
            };
            assert!(calls.has(Call::Create(STEERED)), "{calls:?}");
            assert_eq!(reason, expected, "{packet:?} {world:?}");
        } else if call == Call::Create(STEERED) && was_first(STEERED, world, calls) {
            assert_eq!(reason, Reason::Established, "{packet:?} {world:?}");
        } else if reason != Reason::NotOurs && reason != Reason::Unanswered {
            assert_eq!(
                (reason, reason.verdict()),
                (failed, Verdict::Failed),
                "{packet:?} {world:?} {calls:?}"
            );
        }
    });
}

#[test]
fn a_failed_insertion_has_one_more_look_at_its_tuple() {
    everywhere(|world, packet, _, calls| {
        for kind in [STEERED, DIRECT] {
            let Some(at) = calls.iter().position(|call| call == Call::Create(kind)) else { continue };
            let mut after = calls.iter().skip(at + 1).peekable();
            let is_failed = world.create(kind) == Err(Reason::InsertFailed) && is_start(packet);
            assert_eq!(after.next_if_eq(&Call::Conntrack(kind)).is_some(), is_failed, "{calls:?}");
            if !is_failed {
                continue;
            }
            // What carries no flow goes, so that the flow's next packet finds it gone.
            let target = if kind == DIRECT { End { address: CONTAINER, port: 80 } } else { End::LISTENER };
            let is_expired = matches!(world.after_insertion(kind), Conntrack::Found(entry)
                if !was_first(kind, world, calls) && entry.is_expirable(packet.role, kind, target));
            assert_eq!(after.next_if_eq(&Call::Expire(kind)).is_some(), is_expired, "{world:?} {calls:?}");
        }
    });
}

#[test]
fn the_verdict_asks_no_question_twice() {
    everywhere(|_, packet, _, calls| {
        let made: Vec<Call> = calls.iter().take_while(|call| !matches!(call, Call::Create(_))).collect();
        let first = if is_start(packet) { Call::Listener } else { Call::Carried };
        assert_eq!(made.first(), Some(&first), "{packet:?}");
        for (index, call) in made.iter().enumerate() {
            assert!(!made[..index].contains(call), "{packet:?} {calls:?}");
        }
    });
}

/// Each branch of the verdict is reached, and not by accident.
#[test]
fn the_worlds_bring_up_every_reason_of_the_verdict() {
    let mut seen = std::collections::BTreeMap::new();
    everywhere(|_, _, reason, _| *seen.entry(reason).or_insert(0_u32) += 1);
    let elsewhere = [
        Reason::Fragment,
        Reason::Returned,
        Reason::DirectFragment,
        Reason::DirectReturned,
        Reason::NotCarrying,
        Reason::NoReply,
        Reason::ReplyFailed,
        Reason::NoSettings,
        Reason::PullFailed,
        Reason::RewriteFailed,
    ];
    for reason in Reason::ALL {
        let by_form = wsl_mirror_packets::BY_FORM.contains(reason);
        let count = seen.get(reason).copied().unwrap_or(0);
        assert_eq!(count > 50, !by_form && !elsewhere.contains(reason), "{reason:?}: {count}");
    }
}
