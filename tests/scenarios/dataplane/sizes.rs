//! Packets of every size: what GSO makes of a stream, and single segments.

use std::time::Duration;

use wsl_mirror_lab::{
    checks::{OrPanic as _, load, windows},
    raw::{Frame, RawSocket},
};

use crate::world::{Probe, services};

#[test]
fn streams_are_carried_in_super_packets_and_in_segments() {
    const BYTES: u64 = 16 << 20;
    let lab = services();
    load(&lab);
    let sniffer = RawSocket::open(lab.guest(), "loopback0").or_panic();
    let probe = Probe::new(&lab);
    probe.add("unmarked", "tcp dport { 8009, 8080 } meta mark & 0x80 == 0");
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
