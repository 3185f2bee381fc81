//! What a conntrack entry means, over every entry that there can be.

use wsl_mirror_core::{
    packet::{LOCALHOST, Role},
    verdict::{End, Entry, TupleKind, status, tcp_state},
};
use wsl_mirror_packets::worlds::{CONTAINER, FORMER};

const ROLES: [Role; 4] = [Role::Syn, Role::Ack, Role::Other, Role::Datagram];
const KINDS: [TupleKind; 3] = [TupleKind::Own, TupleKind::Steered, TupleKind::Direct];
/// The container's port.
const PORT: u16 = 80;
const SOURCES: [[u8; 4]; 6] =
    [LOCALHOST, [127, 0, 0, 2], [127, 119, 0, 1], CONTAINER, FORMER, [192, 168, 50, 10]];

/// The bits that have a meaning to the verdict; and those that have none: expected, assured, confirmed, dying, ….
const BITS: [u32; 3] = [status::SEEN_REPLY, status::SRC_NAT, status::DST_NAT];
const OTHER_BITS: u32 = !(BITS[0] | BITS[1] | BITS[2]);

/// Hands `test` every entry.
fn every_entry(mut test: impl FnMut(Entry)) {
    for is_reply in [false, true] {
        for bits in 0..1_u32 << BITS.len() {
            for others in [0, OTHER_BITS] {
                for tcp_state in 0..=10 {
                    for reply_source in SOURCES {
                        let set = (0..BITS.len()).filter(|bit| bits >> bit & 1 == 1);
                        let status = set.map(|bit| BITS[bit]).sum::<u32>() | others;
                        test(Entry { is_reply, status, tcp_state, reply_source, reply_port: PORT });
                    }
                }
            }
        }
    }
}

/// Whether the entry translates as ours do: a steered flow to 127.0.0.1, a direct one to another machine and from another
/// address.
fn is_ours(entry: Entry, kind: TupleKind) -> bool {
    let [has_source, has_destination] = [0x10, 0x20].map(|bit| entry.status & bit != 0);
    match kind {
        TupleKind::Own => false,
        TupleKind::Steered => has_destination && entry.reply_source == [127, 0, 0, 1],
        TupleKind::Direct => has_source && has_destination && entry.reply_source[0] != 127,
    }
}

#[test]
fn an_entry_carries_its_flow_if_it_translates_as_ours_do() {
    every_entry(|entry| {
        for kind in KINDS {
            assert_eq!(entry.is_ours(kind), is_ours(entry, kind), "{kind:?} {entry:?}");
            assert_eq!(entry.carries(kind), !entry.is_reply && is_ours(entry, kind), "{kind:?} {entry:?}");
        }
    });
}

#[test]
fn no_entry_carries_two_kinds_of_flows() {
    every_entry(|entry| {
        assert!(KINDS.iter().filter(|kind| entry.carries(**kind)).count() <= 1, "{entry:?}");
    });
}

#[test]
fn an_entry_of_its_own_tuple_is_never_ours() {
    every_entry(|entry| assert!(!entry.carries(TupleKind::Own), "{entry:?}"));
}

/// The program asks again before it expires an entry: another CPU may have put a new one in its place.
#[test]
fn an_entry_is_expirable_by_role_kind_state_and_target() {
    let mut expirable = 0;
    every_entry(|entry| {
        for (role, kind, target) in combinations() {
            let is_start = matches!(role, Role::Syn | Role::Datagram);
            let is_finished = role == Role::Syn && matches!(entry.tcp_state, 7 | 8);
            let is_on_alias = kind != TupleKind::Own;
            let is_stray = is_on_alias && is_start && !is_ours(entry, kind);
            let is_ours_and_direct = kind == TupleKind::Direct && is_ours(entry, kind);
            let is_unanswered = is_ours_and_direct && role == Role::Syn && entry.status & 2 == 0;
            let leads_elsewhere = is_on_alias && is_start && entry.reply_source != target.address;
            let expected = is_finished || is_stray || is_unanswered || leads_elsewhere;
            assert_eq!(entry.is_expirable(role, kind, target), expected, "{role:?} {kind:?} {entry:?}");
            expirable += u32::from(expected);
        }
    });
    assert!(expirable > 10_000, "{expirable}");
}

fn combinations() -> impl Iterator<Item = (Role, TupleKind, End)> {
    ROLES.into_iter().flat_map(|role| {
        KINDS.into_iter().flat_map(move |kind| {
            let targets = [LOCALHOST, CONTAINER, FORMER].map(|address| End { address, port: PORT });
            targets.into_iter().map(move |target| (role, kind, target))
        })
    })
}

/// The container's address stays, and another of its ports is published. A steered flow leads to its own port.
#[test]
fn a_direct_entry_to_another_port_is_expirable() {
    every_entry(|entry| {
        let elsewhere = End { address: entry.reply_source, port: PORT + 1 };
        for kind in KINDS {
            let is_expirable = entry.is_expirable(Role::Datagram, kind, elsewhere);
            let is_stray = kind == TupleKind::Steered && !is_ours(entry, kind);
            assert_eq!(is_expirable, kind == TupleKind::Direct || is_stray, "{kind:?} {entry:?}");
        }
    });
}

#[test]
fn a_segment_within_a_flow_expires_no_entry() {
    every_entry(|entry| {
        for (role, kind, target) in combinations() {
            if matches!(role, Role::Ack | Role::Other) {
                assert!(!entry.is_expirable(role, kind, target), "{kind:?} {entry:?}");
            }
        }
    });
}

#[test]
fn an_answered_flow_that_lives_is_never_expirable() {
    every_entry(|entry| {
        let is_over = matches!(entry.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE);
        for (role, kind, target) in combinations() {
            if !is_over && entry.is_answered() && entry.carries(kind) && entry.leads_to(target) {
                assert!(!entry.is_expirable(role, kind, target), "{role:?} {kind:?} {entry:?}");
            }
        }
    });
}

#[test]
fn conntracks_numbers_are_those_of_its_headers() {
    // nf_conntrack_common.h, nf_conntrack_tcp.h: both uapi, so they stay.
    assert_eq!(BITS, [1 << 1, 1 << 4, 1 << 5]);
    assert_eq!((tcp_state::TIME_WAIT, tcp_state::CLOSE), (7, 8));
}
