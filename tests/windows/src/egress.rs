//! tc egress of Windows' NICs: what Windows sends goes to the guest if the port is the guest's, else back to Windows.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::Dropped;

use crate::fragments::{self, Direction};
use crate::maps::SETTINGS;
use crate::packet::Packet;
use crate::ports::{self, Owner};
use crate::{flows, frame, garble, neighbour};

/// A frame leaves by a NIC of Windows.
#[classifier]
pub fn windows_sends(ctx: TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return frame::PASS };
    let Some(packet) = Packet::read(&ctx, settings) else { return frame::PASS };
    if neighbour::has_sent(&packet) {
        return frame::PASS;
    }
    if frame::is_reflected(&packet) {
        garble::garble(&ctx, &packet);
        return frame::PASS;
    }
    if frame::is_handmade(&ctx) {
        // Thousands of datagrams would push out the flows of clients; replies to them need none.
        if packet.is_syn() {
            flows::begin_from_windows(&packet);
        }
        return frame::PASS;
    }
    let owner = if packet.is_later_fragment {
        fragments::owner(&packet, Direction::FromWindows).unwrap_or(Owner::Windows)
    } else {
        let owner = ports::owner(settings, packet.protocol, packet.destination_port);
        fragments::follow(&packet, Direction::FromWindows, owner);
        if matches!(owner, Owner::Guest | Owner::Both) {
            flows::begin_from_windows(&packet);
        }
        owner
    };
    match owner {
        Owner::Guest => {
            garble::garble(&ctx, &packet);
            frame::PASS
        }
        Owner::Both => {
            frame::copy_to_windows(&ctx, &packet);
            frame::PASS
        }
        Owner::Windows | Owner::Nobody => frame::to_windows(&ctx, &packet),
        Owner::Firewall => frame::drop(Dropped::Firewall),
    }
}
