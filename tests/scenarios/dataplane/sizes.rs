//! Packets of every size: fragments of datagrams, and what GRO makes of a stream.

use std::time::Duration;

use anyhow::Context as _;
use wsl_mirror_lab::{
    checks::{OrPanic as _, load, windows, windows_udp},
    nat,
    raw::{Frame, RawSocket},
    udp,
};

use crate::world::{HANG, Probe, send_in_fragments, services, udp_datagram};

const EIGHT_KB: usize = 8192;

fn eight_kb() -> Vec<u8> {
    (0..EIGHT_KB).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[1]).collect()
}

#[test]
fn fragmented_datagrams_are_steered() {
    let lab = services();
    let client = || windows_udp(&lab, 8080);
    let ask = |client: udp::Client| client.request(&eight_kb()).map(|reply| reply.len());
    assert_eq!(ask(client().limit(HANG)), Err(udp::Failure::TimedOut), "without wsl-mirror");
    load(&lab);
    let probe = Probe::new(&lab);
    probe.add("seen", "udp dport 8080");
    probe.add("marked", "udp dport 8080 meta mark & 0x1000 != 0");
    for _ in 0..5 {
        assert_eq!(ask(client()), Ok(EIGHT_KB));
    }
    assert!(lab.packets("pass_later_fragment").or_panic() >= 25, "six fragments each");
    assert_eq!((probe.packets("seen"), probe.packets("marked")), (5, 5), "reassembled");
}

/// The later fragments, which carry no ports, come first.
#[test]
fn fragments_in_any_order_are_steered() {
    let lab = services();
    load(&lab);
    let nic = RawSocket::open(lab.windows(), "winlo0").or_panic();
    let orders: [[usize; 6]; 4] =
        [[5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 0], [3, 0, 5, 1, 4, 2], [0, 5, 1, 4, 2, 3]];
    let before = nat::dnat_packets(lab.guest(), "udp", 8080).or_panic();
    for (id, order) in (1..).zip(orders) {
        let socket = windows_udp(&lab, 8080).from_port(40_000 + id).connect().or_panic();
        let datagram = udp_datagram(40_000 + id, 8080, &eight_kb());
        send_in_fragments(&nic, &datagram, id, order);
        let mut reply = vec![0; EIGHT_KB + 1];
        let length = socket.recv(&mut reply).with_context(|| format!("order {order:?}")).or_panic();
        assert!(reply[..length] == eight_kb(), "order {order:?}: {length} bytes, or others than were sent");
    }
    assert_eq!(
        nat::dnat_packets(lab.guest(), "udp", 8080).or_panic(),
        before,
        "Docker's rule sees none of it"
    );
}

#[test]
fn streams_are_steered_in_super_packets_and_in_single_segments() {
    const BYTES: u64 = 16 << 20;
    let lab = services();
    load(&lab);
    let sniffer = RawSocket::open(lab.guest(), "loopback0").or_panic();
    let probe = Probe::new(&lab);
    probe.add("unmarked", "tcp dport { 8009, 8080 } meta mark & 0x1000 == 0");
    // The last one is what the NICs begin with.
    for (segments, large_expected) in [("1", false), ("65535", true)] {
        for (namespace, nic) in [(lab.windows(), "winlo0"), (lab.guest(), "loopback0")] {
            namespace.run("ip", ["link", "set", "dev", nic, "gso_max_segs", segments]).or_panic();
        }
        windows(&lab, 8009).upload(BYTES).or_panic();
        windows(&lab, 8080).echo_stream(BYTES).or_panic();
        let is_upload = |frame: &Frame| !frame.outgoing && matches!(frame.ports(), Some((6, _, 8009 | 8080)));
        let frames = sniffer.collect(Duration::from_millis(20), is_upload).or_panic();
        let longest = frames.iter().map(|frame| frame.bytes.len()).max().unwrap_or(0);
        assert_eq!(longest > 1514, large_expected, "the longest of {} frames: {longest}", frames.len());
    }
    assert_eq!(probe.packets("unmarked"), 0, "each of them was understood");
}
