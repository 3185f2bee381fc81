//! The verdict in every world that it can meet. [`everywhere`] combines each answer of conntrack with thousands of
//! combinations of the other answers, together all of them many times. Each test states one property.

use wsl_mirror_core::{
    abi::{Carrier, Policy, Protocol, Reason, Verdict},
    packet::{Packet, Role},
    verdict::{Conntrack, Decision, Entry, Listener, Way, decide, status, tcp_state},
};
use wsl_mirror_packets::worlds::{COMBINATIONS, Call, Calls, SEQUENCE, Visit, World};

/// The bits that have a meaning to the verdict; and those that have none: expected, assured, confirmed, dying, ….
const BITS: [u64; 5] =
    [status::SEEN_REPLY, status::SRC_NAT, status::DST_NAT, status::SRC_NAT_DONE, status::DST_NAT_DONE];
const OTHER_BITS: u64 = !(BITS[0] | BITS[1] | BITS[2] | BITS[3] | BITS[4]);

/// Every answer that conntrack can give.
fn conntrack_answers() -> Vec<Conntrack> {
    let mut answers = vec![Conntrack::Missing, Conntrack::Failed];
    for is_reply in [false, true] {
        for bits in 0..1_u64 << BITS.len() {
            let status = (0..BITS.len()).filter(|bit| bits >> bit & 1 == 1).map(|bit| BITS[bit]).sum::<u64>();
            for tcp_state in 0..=10 {
                // Alternately with and without the bits that mean nothing.
                let others = if tcp_state % 2 == 0 { 0 } else { OTHER_BITS };
                for is_to_loopback in [false, true] {
                    let status = status | others;
                    answers.push(Conntrack::Found(Entry { is_reply, status, tcp_state, is_to_loopback }));
                }
            }
        }
    }
    answers
}

/// How many combinations each entry of conntrack gets. Its two answers without an entry get all of them.
const TRIED: usize = 4_000;
/// From one combination to the next: it has no divisor in common with [`COMBINATIONS`].
const STRIDE: usize = 12_289;

/// Hands `test` every packet in worlds of every kind, with the decision and the calls.
fn everywhere(test: impl Fn(&World, &Packet, Decision, &Calls)) {
    let answers = conntrack_answers();
    let mut combination = 0;
    for role in [Role::Syn, Role::Ack, Role::Other, Role::Datagram] {
        let packet = packet(role);
        for conntrack in &answers {
            let tried = if matches!(conntrack, Conntrack::Found(_)) { TRIED } else { COMBINATIONS };
            for _ in 0..tried {
                combination = (combination + STRIDE) % COMBINATIONS;
                let world = World::of(*conntrack, combination);
                let mut visit = Visit::of(&world);
                let decision = decide(&packet, &mut visit);
                test(&world, &packet, decision, &visit.calls);
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
        sequence: SEQUENCE,
        first_fragment: None,
    }
}

fn is_start(packet: &Packet) -> bool {
    matches!(packet.role, Role::Syn | Role::Datagram)
}

/// The flow is over, and the packet starts it again.
fn is_finished(entry: &Entry, packet: &Packet) -> bool {
    packet.role == Role::Syn && matches!(entry.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE)
}

/// An engine's DNAT caught the flow, which cannot work.
fn is_caught(entry: &Entry, packet: &Packet) -> bool {
    let bits = entry.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY);
    is_start(packet) && !entry.is_reply && !entry.is_to_loopback && bits == status::DST_NAT
}

/// An engine's DNAT caught one of our flows in mid-stream.
fn is_caught_midway(world: &World, entry: &Entry, packet: &Packet) -> bool {
    let bits = entry.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY);
    packet.role == Role::Ack
        && !entry.is_reply
        && !entry.is_to_loopback
        && bits == status::DST_NAT
        && world.carrier() == Some(Carrier::Listener)
        && world.connection
}

/// The flow lost its entry, an engine carried it before, and no known rule drops it before the engine's rule.
fn is_the_engines(world: &World, packet: &Packet) -> bool {
    packet.role == Role::Datagram
        && world.is_missing()
        && world.carrier() == Some(Carrier::Engine)
        && world.way != Way::ByLo
}

#[test]
fn an_engines_udp_flow_stays_its_own_after_a_lost_entry() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        if is_the_engines(world, packet) {
            assert_eq!(reason, Reason::EngineNat, "{packet:?} {world:?}");
            assert_eq!(calls.last(), Some(Call::Way), "nothing is done: {calls:?}");
        }
        // Known as the engine's from an entry that works, and noted once.
        let carried = packet.role == Role::Datagram && reason == Reason::EngineNat && !world.is_missing();
        let noted = world.carrier() == Some(Carrier::Engine);
        assert_eq!(calls.has(Call::RememberEngine), carried && !noted, "{packet:?} {world:?}");
    });
}

#[test]
fn a_refused_flow_drops_the_record_of_an_earlier_flow() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let left = matches!(
            reason,
            Reason::Exempt | Reason::OwnerPolicy | Reason::DefaultPolicy | Reason::NoListener
        );
        // One within Linux of which its listener was asked, and is not to be steered.
        let within_linux = reason == Reason::NotOurs && calls.has(Call::PortPolicy) && !world.admits();
        assert_eq!(
            calls.has(Call::Forget),
            (left || within_linux) && is_start(packet),
            "{packet:?} {world:?}"
        );
    });
}

#[test]
fn a_new_flow_is_steered_only_by_policy_and_to_a_listener() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let begins = matches!(reason, Reason::New | Reason::Reused | Reason::Healed)
            || (is_start(packet) && calls.changed_anything());
        assert!(!begins || world.admits(), "{reason:?} {packet:?} {world:?}");
    });
}

#[test]
fn a_new_flow_is_steered_if_policy_and_listener_allow_it() {
    everywhere(|world, packet, Decision { reason, .. }, _| {
        let nothing_fails = world.expire.is_ok() && world.create.is_ok() && world.remember.is_ok();
        if !is_start(packet) || !world.admits() || !nothing_fails {
            return;
        }
        let expected = match world.entry() {
            None if is_the_engines(world, packet) => return,
            None if world.is_missing() => Reason::New,
            Some(entry) if is_finished(&entry, packet) => Reason::Reused,
            Some(entry) if is_caught(&entry, packet) => Reason::Healed,
            _ => return,
        };
        assert_eq!(reason, expected, "{packet:?} {world:?}");
    });
}

#[test]
fn a_refused_flow_passes_for_the_first_reason_that_applies() {
    everywhere(|world, packet, Decision { reason, .. }, _| {
        let begins = is_start(packet)
            && (world.is_missing()
                || world
                    .entry()
                    .is_some_and(|entry| is_finished(&entry, packet) || is_caught(&entry, packet)));
        if !begins || world.admits() || is_the_engines(world, packet) {
            return;
        }
        let expected = match (world.port_policy, world.listener) {
            (Policy::Pass, _) => Reason::Exempt,
            (_, None) => Reason::NoListener,
            (_, Some(Listener { owner: Policy::Pass, .. })) => Reason::OwnerPolicy,
            _ => Reason::DefaultPolicy,
        };
        assert_eq!(reason, expected, "{packet:?} {world:?}");
    });
}

/// Conntrack does not count it with its flow, and yet it is of a flow that is delivered by `lo`: the entry was lost, and
/// the server was the first to speak after that, or the flow ends.
fn is_of_a_flow_by_lo(world: &World, packet: &Packet) -> bool {
    let uncounted = match world.entry() {
        Some(entry) => entry.is_reply && entry.status & status::DST_NAT == 0 && !is_finished(&entry, packet),
        None => world.is_missing() && packet.role == Role::Other,
    };
    uncounted
        && match world.way {
            Way::Plain | Way::Open => false,
            Way::Seen => world.known_flow.by_lo,
            // What went the plain way would not get through any more.
            Way::ByLo => {
                world.known_flow.by_lo || matches!(world.carrier(), Some(Carrier::Listener | Carrier::Linux))
            }
        }
}

#[test]
fn a_reply_is_never_touched() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let Some(entry) = world.entry() else { return };
        // The one packet of that direction that is no reply: it begins a connection on a finished one's tuple.
        if entry.is_reply && !is_finished(&entry, packet) && !is_of_a_flow_by_lo(world, packet) {
            assert_eq!(reason, Reason::Reply, "{packet:?} {world:?}");
            let more = |call: &Call| !matches!(call, Call::Conntrack | Call::Way | Call::KnownFlow);
            assert!(!calls.made.iter().flatten().any(more), "nobody is asked who serves: {calls:?}");
        }
    });
}

#[test]
fn an_uncounted_packet_of_a_flow_by_lo_goes_by_lo() {
    everywhere(|world, packet, decision, calls| {
        if !is_of_a_flow_by_lo(world, packet) {
            return;
        }
        let within_linux = world.carrier() == Some(Carrier::Linux);
        let reason = if within_linux { Reason::Local } else { Reason::Established };
        assert_eq!(decision, Decision { reason, by_lo: true }, "{packet:?} {world:?}");
        assert!(!calls.changed_anything() && !calls.has(Call::Forget), "{calls:?}");
    });
}

#[test]
fn an_entry_is_removed_only_if_finished_or_caught_unanswered() {
    everywhere(|world, packet, _, calls| {
        if !calls.has(Call::Expire) {
            return;
        }
        let entry = world.entry().expect("an entry");
        if is_caught_midway(world, &entry, packet) {
            assert!(calls.in_order(Call::HasConnection, Call::Expire), "{calls:?}");
            return;
        }
        assert!(is_finished(&entry, packet) || is_caught(&entry, packet), "{packet:?} {world:?}");
        assert!(calls.in_order(Call::Listener, Call::Expire), "only once it is known what for: {calls:?}");
        assert!(world.admits(), "{world:?}");
    });
}

#[test]
fn an_entry_is_made_only_in_an_empty_place_and_when_admitted() {
    everywhere(|world, packet, _, calls| {
        if !calls.has(Call::Create) {
            return;
        }
        match world.entry() {
            Some(_) => {
                assert!(calls.in_order(Call::Expire, Call::Create), "{calls:?}");
                assert!(world.expire.is_ok(), "{world:?}");
            }
            None => assert!(world.is_missing(), "{world:?}"),
        }
        let resumed = packet.role == Role::Ack
            && (world.is_missing() || world.entry().is_some_and(|e| is_caught_midway(world, &e, packet)))
            && world.connection
            && world.carrier() == Some(Carrier::Listener)
            && calls.in_order(Call::HasConnection, Call::Create);
        let admitted = world.admits() && calls.in_order(Call::Listener, Call::Create);
        assert!(admitted || resumed, "{packet:?} {world:?} {calls:?}");
    });
}

#[test]
fn a_lost_entry_is_made_again_only_for_an_ack_with_its_socket() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let mid_stream = matches!(packet.role, Role::Ack | Role::Other);
        if let Some(entry) = world.entry() {
            let midway = is_caught_midway(world, &entry, packet);
            assert!(midway || reason != Reason::PickedUp, "{packet:?} {world:?}");
            let nothing_fails = world.expire.is_ok() && world.create.is_ok() && world.remember.is_ok();
            assert!(!midway || !nothing_fails || reason == Reason::PickedUp, "{packet:?} {world:?}");
            return;
        }
        if !mid_stream || !world.is_missing() {
            assert_ne!(reason, Reason::PickedUp, "{packet:?} {world:?}");
            return;
        }
        if packet.role == Role::Other {
            let along = is_of_a_flow_by_lo(world, packet);
            assert_eq!(reason != Reason::Stray, along, "{world:?} {calls:?}");
            assert!(!calls.changed_anything(), "{calls:?}");
            return;
        }
        if !world.connection {
            assert_eq!(reason, Reason::NoSocket, "{world:?}");
            assert!(!calls.changed_anything(), "{calls:?}");
            return;
        }
        let ours = world.carrier() == Some(Carrier::Listener);
        let nothing_fails = world.create.is_ok() && world.remember.is_ok();
        if nothing_fails {
            assert_eq!(reason == Reason::PickedUp, ours || world.admits(), "{world:?}");
        }
        if ours {
            // It goes on as it began, whatever is written by now.
            assert!(!calls.has(Call::PortPolicy) && !calls.has(Call::Listener), "{calls:?}");
        }
    });
}

#[test]
fn established_flows_ask_neither_policies_nor_sockets() {
    everywhere(|world, packet, _, calls| {
        let Some(entry) = world.entry() else { return };
        if is_finished(&entry, packet) || is_caught(&entry, packet) {
            return;
        }
        if is_caught_midway(world, &entry, packet) {
            let asked = |call| calls.has(call);
            assert!(!asked(Call::PortPolicy) && !asked(Call::DefaultPolicy) && !asked(Call::Listener));
            return;
        }
        // Where there are two ways, who listens is asked about what may have to take the other one.
        if matches!(world.way, Way::Seen | Way::ByLo) || (world.way == Way::Open && packet.role == Role::Syn)
        {
            return;
        }
        // The socket of a segment whose entry looks caught; it may be an engine's, and then nothing is done.
        let more = |call: &Call| {
            !matches!(
                call,
                Call::Conntrack | Call::Way | Call::KnownFlow | Call::RememberEngine | Call::HasConnection
            )
        };
        assert!(!calls.made.iter().flatten().any(more), "{packet:?} {world:?} {calls:?}");
    });
}

#[test]
fn an_established_flow_is_steered_exactly_if_its_entry_is_ours() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let Some(entry) = world.entry() else {
            let along = is_of_a_flow_by_lo(world, packet);
            assert!(along || reason != Reason::Established, "{packet:?} {world:?}");
            return;
        };
        let replaced = is_finished(&entry, packet)
            || is_caught(&entry, packet)
            || is_caught_midway(world, &entry, packet);
        if entry.is_reply || replaced {
            return;
        }
        let expected = if entry.status & status::DST_NAT != 0 {
            Reason::EngineNat
        } else if is_ours(&entry) {
            Reason::Established
        } else {
            Reason::NotOurs
        };
        match reason {
            // What a rule eats that is not on lo.
            Reason::Learned => assert!(expected != Reason::EngineNat && packet.role == Role::Syn),
            Reason::Local => assert_eq!(expected, Reason::NotOurs),
            _ => assert_eq!(reason, expected, "{packet:?} {world:?}"),
        }
        assert!(!calls.has(Call::Expire) && !calls.has(Call::Create), "{calls:?}");
    });
}

#[test]
fn a_failed_call_is_the_last_and_its_packet_passes() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let failed = |call: Call| match call {
            Call::Conntrack => (world.conntrack == Conntrack::Failed).then_some(Reason::LookupFailed),
            Call::Expire => world.expire.is_err().then_some(Reason::ExpireFailed),
            Call::Create => world.create.err(),
            _ => None,
        };
        let failure = calls.made.iter().flatten().find_map(|call| Some((*call, failed(*call)?)));
        match failure {
            Some((call, expected)) => {
                assert_eq!(reason, expected, "{packet:?} {world:?}");
                assert_eq!(reason.verdict(), Verdict::Failed);
                assert_eq!(calls.last(), Some(call), "{calls:?}");
            }
            None => assert_ne!(reason.verdict(), Verdict::Failed, "nothing failed: {packet:?} {world:?}"),
        }
    });
}

#[test]
fn a_steered_packet_has_an_entry_of_ours_or_one_within_linux() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        let made = calls.has(Call::Create) && world.create.is_ok();
        let steered = reason.verdict() == Verdict::Steer;
        let ours = matches!(reason, Reason::Established | Reason::Learned);
        // A flow within Linux has an entry of its own, which stays as it is.
        assert_eq!(steered, made || ours || reason == Reason::Local, "{packet:?} {world:?} {reason:?}");
        // What was made is remembered; that there is no room matters to no packet but one that finds the entry lost.
        assert!(!made || calls.has(Call::Remember), "{calls:?}");
        assert_eq!(reason == Reason::Unremembered, made && world.remember.is_err(), "{world:?}");
    });
}

fn is_ours(entry: &Entry) -> bool {
    entry.status & (status::DST_NAT_DONE | status::SRC_NAT_DONE) == status::DST_NAT_DONE
}

#[test]
fn only_steered_packets_go_by_lo_and_only_where_lo_delivers() {
    everywhere(|world, packet, decision, calls| {
        if decision.by_lo {
            assert_ne!(world.way, Way::Plain, "{packet:?} {world:?}");
            assert_eq!(decision.reason.verdict(), Verdict::Steer, "{packet:?} {world:?}");
        }
        assert!(world.way != Way::Plain || !calls.has(Call::Learn), "{packet:?} {world:?}");
        let always = matches!(decision.reason, Reason::Learned | Reason::Local);
        assert!(decision.by_lo || !always, "{packet:?} {world:?}");
    });
}

#[test]
fn a_new_flow_goes_by_lo_for_a_known_rule_or_a_listener() {
    everywhere(|world, packet, Decision { reason, by_lo }, calls| {
        if !is_start(packet) || !matches!(reason, Reason::New | Reason::Reused | Reason::Healed) {
            return;
        }
        assert_eq!(by_lo, world.begins_by_lo(), "{packet:?} {world:?}");
        let flow = calls.flow.expect("a flow that begins is remembered");
        assert_eq!(flow.by_lo == 1, by_lo, "{packet:?} {world:?}");
    });
}

#[test]
fn a_flow_leaves_its_way_only_for_a_known_rule() {
    everywhere(|world, packet, Decision { reason, by_lo }, _| {
        let (flow, Some(entry)) = (world.known_flow, world.entry()) else { return };
        if flow.carrier.is_none() || entry.is_reply {
            return;
        }
        let goes_on = matches!(reason, Reason::Established | Reason::Local | Reason::NotOurs);
        if !goes_on || !matches!(world.way, Way::Seen | Way::ByLo) {
            return;
        }
        // Before conntrack has seen its SYN it has no way yet.
        if packet.role != Role::Syn {
            let rule = world.way == Way::ByLo;
            // A datagram within Linux asks its listener, as long as nobody has answered.
            let asks = !is_ours(&entry) && packet.role == Role::Datagram;
            let stays = flow.by_lo && (!asks || entry.status & status::SEEN_REPLY != 0);
            let is_saved = rule && is_ours(&entry) && packet.role != Role::Datagram;
            let learned = world.listener.is_some_and(|listener| listener.by_lo);
            let goes_there = (asks || rule) && world.admits() && (rule || flow.by_lo || learned);
            assert_eq!(by_lo, stays || is_saved || goes_there, "{packet:?} {world:?}");
        }
        let may_leave =
            is_of_an_earlier_flow(world, &entry, packet) && (packet.role == Role::Syn || !world.admits());
        assert!(by_lo || !flow.by_lo || may_leave, "{packet:?} {world:?}");
    });
}

/// Within Linux, what is remembered may be of an earlier flow: a SYN that is not the one of it, a datagram that nobody
/// has answered.
fn is_of_an_earlier_flow(world: &World, entry: &Entry, packet: &Packet) -> bool {
    let is_same = match packet.role {
        Role::Syn => world.carrier() == Some(Carrier::Linux) && world.known_flow.sequence == SEQUENCE,
        Role::Datagram => entry.status & status::SEEN_REPLY != 0,
        Role::Ack | Role::Other => true,
    };
    !entry.is_reply && !is_ours(entry) && !is_same
}

#[test]
fn a_new_flow_within_linux_is_judged_by_its_listener() {
    everywhere(|world, packet, decision, _| {
        let Some(entry) = world.entry() else { return };
        if !is_of_an_earlier_flow(world, &entry, packet)
            || !matches!(decision.reason, Reason::Local | Reason::NotOurs)
        {
            return;
        }
        // Of a datagram it is no more than likely: to stay there is as good. Where nothing went so far it does not ask.
        let may = match packet.role {
            Role::Datagram => world.begins_by_lo() || world.known_flow.by_lo,
            _ => world.begins_by_lo(),
        };
        let asks = packet.role == Role::Syn || world.way != Way::Open;
        let may = world.admits() && world.way != Way::Plain && asks && may;
        assert_eq!(decision.by_lo, may, "{packet:?} {world:?}");
    });
}

#[test]
fn a_listener_learns_of_a_rule_from_a_second_syn_alone() {
    everywhere(|world, packet, Decision { reason, .. }, calls| {
        assert_eq!(calls.has(Call::Learn), reason == Reason::Learned, "{packet:?} {world:?}");
        let Some(entry) = world.entry() else {
            assert_ne!(reason, Reason::Learned, "{world:?}");
            return;
        };
        let is_second = packet.role == Role::Syn
            && if is_ours(&entry) {
                entry.tcp_state == tcp_state::NONE
            } else {
                let flow = world.known_flow;
                flow.carrier == Some(Carrier::Linux) && flow.sequence == SEQUENCE && !flow.by_lo
            };
        if reason == Reason::Learned {
            assert!(is_second && world.admits() && world.way != Way::Plain, "{packet:?} {world:?}");
            assert_eq!(calls.flow.map(|flow| flow.by_lo), Some(1));
        }
    });
}

#[test]
fn a_flow_within_linux_keeps_its_entry_on_either_way() {
    everywhere(|_, packet, Decision { reason, .. }, calls| {
        if matches!(reason, Reason::Local | Reason::NotOurs) {
            let touched = calls.has(Call::Expire) || calls.has(Call::Create);
            assert!(!touched, "{packet:?} {calls:?}");
        }
    });
}

#[test]
fn the_verdict_asks_no_question_twice() {
    everywhere(|_, packet, _, calls| {
        let mut seen = [false; 16];
        for call in calls.made.iter().flatten() {
            assert!(!std::mem::replace(&mut seen[*call as usize], true), "{packet:?} {calls:?}");
        }
        assert_eq!(calls.made[0], Some(Call::Conntrack));
    });
}

#[test]
fn conntracks_numbers_are_those_of_its_headers() {
    // nf_conntrack_common.h, nf_conntrack_tcp.h: both uapi, so they stay.
    assert_eq!(BITS, [1 << 1, 1 << 4, 1 << 5, 1 << 7, 1 << 8]);
    assert_eq!((tcp_state::TIME_WAIT, tcp_state::CLOSE), (7, 8));
}
