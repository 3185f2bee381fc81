//! Fragments on ingress: they follow the first one of their datagram, for as long as the kernel would wait.

use std::collections::HashMap;

use wsl_mirror_core::{
    abi::{CarriedDatagram, FragmentKey, Protocol, Reason, Verdict},
    fragments::{Datagrams, LIFETIME, first, later},
    packet::{Packet, Role, fragment},
};
use wsl_mirror_packets::Spec;

/// A clock, and the datagrams that were carried.
#[derive(Default)]
struct Memory {
    now: u64,
    carried: HashMap<FragmentKey, CarriedDatagram>,
}

impl Datagrams for Memory {
    fn now(&mut self) -> u64 {
        self.now
    }

    fn record(&mut self, datagram: FragmentKey) -> Option<CarriedDatagram> {
        self.carried.get(&datagram).copied()
    }

    fn remember(&mut self, datagram: FragmentKey, carried: CarriedDatagram) {
        self.carried.insert(datagram, carried);
    }

    fn forget(&mut self, datagram: FragmentKey) {
        self.carried.remove(&datagram);
    }
}

/// The first fragment of this datagram.
fn packet(datagram: FragmentKey) -> Packet {
    Packet {
        protocol: Protocol::Udp,
        client: datagram.client,
        client_port: 50_000,
        server_port: 8080,
        role: Role::Datagram,
        transport: 34,
        first_fragment: Some(datagram.id),
    }
}

fn datagram(id: u16) -> FragmentKey {
    FragmentKey::new(Protocol::Udp, [127, 0, 0, 1], id)
}

#[test]
fn a_later_fragment_is_carried_with_its_first_one() {
    for reason in Reason::ALL {
        // An earlier datagram had the same identification.
        for earlier in [Reason::New, Reason::DirectNew] {
            let mut memory = Memory::default();
            first(&packet(datagram(7)), earlier, &mut memory);
            first(&packet(datagram(7)), *reason, &mut memory);
            let expected = match reason.verdict() {
                Verdict::Steer => Reason::Fragment,
                Verdict::Direct => Reason::DirectFragment,
                _ => Reason::LaterFragment,
            };
            assert_eq!(later(datagram(7), &mut memory), expected, "{reason:?} after {earlier:?}");
        }
    }
}

#[test]
fn a_fragment_that_overtakes_its_first_one_passes() {
    let mut memory = Memory::default();
    assert_eq!(later(datagram(7), &mut memory), Reason::LaterFragment);
    first(&packet(datagram(7)), Reason::Established, &mut memory);
    assert_eq!(later(datagram(7), &mut memory), Reason::Fragment);
    assert_eq!(later(datagram(7), &mut memory), Reason::Fragment, "any number of them");
}

#[test]
fn fragments_of_interleaved_datagrams_stay_apart() {
    let mut memory = Memory::default();
    let carried = datagram(7);
    let others = [
        datagram(8),
        FragmentKey::new(Protocol::Tcp, [127, 0, 0, 1], 7),
        FragmentKey::new(Protocol::Udp, [127, 0, 0, 2], 7),
    ];
    first(&packet(carried), Reason::New, &mut memory);
    first(&packet(datagram(8)), Reason::Exempt, &mut memory);
    for other in others {
        assert_eq!(later(other, &mut memory), Reason::LaterFragment, "{other:?}");
        assert_eq!(later(carried, &mut memory), Reason::Fragment, "after {other:?}");
    }
    first(&packet(datagram(8)), Reason::DirectNew, &mut memory);
    for (id, reason) in [(7, Reason::Fragment), (8, Reason::DirectFragment)].repeat(2) {
        assert_eq!(later(datagram(id), &mut memory), reason, "{id}");
    }
}

#[test]
fn a_record_lives_as_long_as_the_kernel_waits() {
    for (carried, fragment) in
        [(Reason::New, Reason::Fragment), (Reason::DirectEstablished, Reason::DirectFragment)]
    {
        let mut memory = Memory { now: 5, ..Memory::default() };
        first(&packet(datagram(7)), carried, &mut memory);
        for (age, reason) in [
            (0, fragment),
            (LIFETIME - 1, fragment),
            (LIFETIME, Reason::LaterFragment),
            (u64::MAX - 5, Reason::LaterFragment),
        ] {
            memory.now = age + 5;
            assert_eq!(later(datagram(7), &mut memory), reason, "{age} ns");
        }
    }
    assert_eq!(LIFETIME, 30_000_000_000, "IP_FRAG_TIME");
}

#[test]
fn a_packet_in_one_piece_leaves_no_record() {
    let mut memory = Memory::default();
    first(&Packet { first_fragment: None, ..packet(datagram(7)) }, Reason::New, &mut memory);
    assert!(memory.carried.is_empty());
}

#[test]
fn a_later_fragment_has_the_key_of_its_first_one() {
    let whole = Spec { source: [127, 1, 2, 3], ..Spec::udp(50_000, 8080, 100) };
    let begins = Spec { fragment: 0x2000, ..whole.clone() };
    let packet = wsl_mirror_core::packet::parse(&begins.build().frame()).expect("a first fragment parses");
    let id = packet.first_fragment.expect("a first fragment");
    for fragment_field in [1, 0x1fff, 0x2001] {
        let goes_on = Spec { fragment: fragment_field, ..whole.clone() };
        let key = fragment(&goes_on.build().frame());
        assert_eq!(key, Some(FragmentKey::new(packet.protocol, packet.client, id)), "{fragment_field:#x}");
    }
}
