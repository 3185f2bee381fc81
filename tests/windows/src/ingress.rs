//! tc ingress of Windows' NICs: what the guest sends goes to Windows' own sockets, or is reflected to the guest if the
//! port is the guest's.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::{Dropped, rule};

use crate::fragments::{self, Direction};
use crate::maps::SETTINGS;
use crate::packet::Packet;
use crate::ports::{self, Owner};
use crate::{flows, frame, neighbour};

/// A frame comes in by a NIC of Windows.
#[classifier]
pub fn windows_takes(ctx: TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return frame::PASS };
    if let Some(action) = neighbour::take(&ctx) {
        return action;
    }
    let Some(packet) = Packet::read(&ctx, settings) else { return frame::PASS };
    if frame::is_own(&packet) {
        return frame::PASS;
    }
    let owner = if packet.is_later_fragment {
        let Some(owner) = fragments::owner(&packet, Direction::FromGuest) else {
            return frame::drop(Dropped::UnknownFlow);
        };
        owner
    } else {
        let owner = if ports::rules(packet.protocol, packet.destination_port) & rule::BLOCKED_OUT == 0 {
            ports::owner(settings, packet.protocol, packet.destination_port)
        } else {
            Owner::Firewall
        };
        if !flows::accepts_from_guest(settings, &packet, owner) {
            return frame::drop(Dropped::UnknownFlow);
        }
        fragments::follow(&packet, Direction::FromGuest, owner);
        owner
    };
    match owner {
        Owner::Windows => frame::PASS,
        Owner::Guest => frame::to_guest(&ctx, &packet),
        Owner::Both => {
            frame::copy_to_guest(&ctx, &packet);
            frame::PASS
        }
        Owner::Nobody => frame::drop(Dropped::NeverSent),
        Owner::Firewall => frame::drop(Dropped::Firewall),
    }
}
