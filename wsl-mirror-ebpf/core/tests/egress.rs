//! Egress: the packets that the program acts upon, and what it does with them.

use wsl_mirror_core::{
    abi::{DEFAULT_ALIAS, DEFAULT_SOURCE_ALIAS, Protocol, Reason, Verdict},
    egress::{Outgoing, Standing, decide, parse},
    verdict::TupleKind,
};
use wsl_mirror_packets::Spec;

/// A reply of a carried flow, as it leaves conntrack.
fn reply() -> Spec {
    Spec { source: DEFAULT_ALIAS, ..Spec::tcp(8080, 50_000, 0x10, 10) }
}

fn outgoing(spec: &Spec) -> Option<Outgoing> {
    parse(&spec.build().frame(), DEFAULT_ALIAS, DEFAULT_SOURCE_ALIAS)
}

#[test]
fn a_reply_from_the_alias_parses_field_by_field() {
    let expected = Outgoing {
        protocol: Protocol::Tcp,
        transport: 34,
        is_later_fragment: false,
        kind: TupleKind::Steered,
    };
    assert_eq!(outgoing(&reply()), Some(expected));
    let direct = Spec { destination: DEFAULT_SOURCE_ALIAS, ..reply() };
    assert_eq!(outgoing(&direct), Some(Outgoing { kind: TupleKind::Direct, ..expected }));
    let datagram = Spec { source: DEFAULT_ALIAS, options: vec![1; 40], ..Spec::udp(8080, 50_000, 10) };
    let expected = Outgoing { protocol: Protocol::Udp, transport: 74, ..expected };
    assert_eq!(outgoing(&datagram), Some(expected));
}

#[test]
fn any_destination_of_the_alias_is_at_the_border() {
    for destination in
        [[127, 0, 0, 1], DEFAULT_ALIAS, [127, 1, 2, 3], [192, 168, 50, 10], [192, 0, 0, 9], [255; 4]]
    {
        let kind = outgoing(&Spec { destination, ..reply() }).map(|outgoing| outgoing.kind);
        assert_eq!(kind, Some(TupleKind::Steered), "{destination:?}");
    }
}

#[test]
fn only_ipv4_tcp_and_udp_of_the_aliases_is_acted_upon() {
    for source in [[127, 0, 0, 1], [127, 119, 0, 2], [127, 119, 1, 1], [126, 119, 0, 1], DEFAULT_SOURCE_ALIAS]
    {
        for destination in [[127, 0, 0, 1], [192, 0, 0, 9]] {
            assert_eq!(outgoing(&Spec { source, destination, ..reply() }), None, "{source:?}");
        }
    }
    for protocol in (0..=u8::MAX).filter(|protocol| !matches!(protocol, 6 | 17)) {
        assert_eq!(outgoing(&Spec { protocol: Some(protocol), ..reply() }), None, "{protocol}");
    }
    for ethertype in [0x0806, 0x86dd, 0x8100, 0x0008] {
        assert_eq!(outgoing(&Spec { ethertype, ..reply() }), None, "{ethertype:#x}");
    }
}

/// Our own route brings it here: a container's, or a loop.
#[test]
fn what_only_goes_to_the_source_alias_is_dropped() {
    for source in [[172, 17, 0, 2], [127, 0, 0, 1], DEFAULT_SOURCE_ALIAS, [192, 168, 50, 10]] {
        let kind = outgoing(&Spec { source, destination: DEFAULT_SOURCE_ALIAS, ..reply() });
        let kind = kind.map(|outgoing| outgoing.kind);
        assert_eq!(kind, Some(TupleKind::Own), "{source:?}");
    }
    for standing in [Standing::Reply, Standing::Other] {
        assert_eq!(decide(standing, TupleKind::Own), Reason::NoReply);
    }
}

#[test]
fn the_border_needs_no_valid_headers() {
    // The kernel makes none of these. A program that forges frames may.
    let forged = [
        Spec { version: 6, ..reply() },
        Spec { ihl: Some(0), ..reply() },
        Spec { total_length: Some(0), ..reply() },
        Spec { source_port: 0, ..reply() },
        Spec { to: [0; 6], ..reply() },
        Spec { vlan_tag: true, ..reply() },
    ];
    for spec in forged {
        assert!(outgoing(&spec).is_some(), "{spec:?}");
    }
    // 34 bytes hold all that the border has to know.
    let [whole, cut] = [34, 33]
        .map(|length| parse(&reply().build().truncated(length).frame(), DEFAULT_ALIAS, DEFAULT_SOURCE_ALIAS));
    assert!(whole.is_some() && cut.is_none(), "{whole:?} {cut:?}");
}

#[test]
fn only_a_later_fragment_has_no_transport_header() {
    for fragment in 0..=u16::MAX {
        let outgoing = outgoing(&Spec { fragment, ..reply() }).expect("it is from the alias");
        assert_eq!(outgoing.is_later_fragment, fragment & 0x1fff != 0, "{fragment:#x}");
    }
}

#[test]
fn a_reply_returns_and_all_else_is_dropped() {
    for (kind, reason, verdict) in [
        (TupleKind::Steered, Reason::Returned, Verdict::Steer),
        (TupleKind::Direct, Reason::DirectReturned, Verdict::Direct),
    ] {
        assert_eq!((decide(Standing::Reply, kind), reason.verdict()), (reason, verdict));
        assert_eq!(decide(Standing::Other, kind), Reason::NoReply);
    }
    for reason in [Reason::NoReply, Reason::ReplyFailed] {
        assert_eq!(reason.verdict(), Verdict::Drop);
    }
}
