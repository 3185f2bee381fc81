//! The parser's answers about single fields. `tests/packets` parses generated frames.

use wsl_mirror_core::{
    abi::{Protocol, Reason},
    packet::{Role, parse},
};
use wsl_mirror_packets::Spec;

#[test]
fn a_frame_from_windows_parses_field_by_field() {
    let spec = Spec { source: [127, 1, 2, 3], ..Spec::udp(50_000, 8080, 10) };
    let packet = parse(&spec.build().frame()).expect("nothing is wrong with it");
    assert_eq!((packet.protocol, packet.role), (Protocol::Udp, Role::Datagram));
    assert_eq!(packet.client, [127, 1, 2, 3]);
    assert_eq!((packet.client_port, packet.server_port), (50_000, 8080));
}

#[test]
fn tcp_flags_have_the_roles_that_conntrack_gives_them() {
    for flags in 0..=u8::MAX {
        let spec = Spec::tcp(50_000, 8080, flags, 0);
        // ECN and PSH, URG change nothing; SYN, ACK, RST, FIN decide.
        let role = match flags & 0x17 {
            0x02 => Role::Syn,
            0x10 => Role::Ack,
            _ => Role::Other,
        };
        assert_eq!(parse(&spec.build().frame()).map(|packet| packet.role), Ok(role), "{flags:#04x}");
    }
}

#[test]
fn only_a_super_packet_beyond_65535_bytes_may_have_length_0() {
    let reason = |packet_len: usize, total_length| {
        let spec =
            Spec { total_length: Some(total_length), ..Spec::tcp(50_000, 8080, 0x10, packet_len - 40) };
        assert_eq!(spec.packet_len(), packet_len);
        parse(&spec.build().frame()).err()
    };
    assert_eq!(reason(65_535, 65_535), None, "GRO's longest");
    assert_eq!(reason(65_535, 0), Some(Reason::BadHeader));
    assert_eq!(reason(65_536, 0), None, "BIG TCP's shortest");
    assert_eq!(reason(524_280, 0), None);
    assert_eq!(reason(65_536, 65_535), None, "a byte of padding");
}
