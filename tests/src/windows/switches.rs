//! What a test, or somebody in a lab's shell, makes Windows do while it runs.

use std::ops::RangeInclusive;

use anyhow::Result;
use wsl_mirror_windows::{Dropped, rule};

use super::{
    garbling::{Garbled, Garbling},
    object::ensure_can_refuse,
    transport::Transport,
};
use crate::Lab;

impl Lab {
    /// Windows refuses the guest's binds in these ranges (at most four), and in no others: `EADDRINUSE`. Needs Linux
    /// 5.18.
    pub fn refuse_binds(&self, ranges: &[RangeInclusive<u16>]) -> Result<()> {
        self.windows_side().refuse_binds(ranges)
    }

    /// A program on Windows has the port: Windows refuses the guest's binds of it. Needs Linux 5.18.
    pub fn take_port(&self, protocol: Transport, port: u16) -> Result<()> {
        ensure_can_refuse()?;
        self.windows_side().object.add_rule(protocol.key(port), rule::TAKEN)
    }

    /// The program on Windows has given the port up.
    pub fn give_port_back(&self, protocol: Transport, port: u16) -> Result<()> {
        self.windows_side().object.remove_rule(protocol.key(port), rule::TAKEN)
    }

    /// The Hyper-V firewall drops what goes to the guest on this port, from Windows and from the guest itself. That it
    /// sees what the guest sends to itself is the model's.
    pub fn block_port(&self, protocol: Transport, port: u16) -> Result<()> {
        self.windows_side().object.add_rule(protocol.key(port), rule::BLOCKED)
    }

    /// The Hyper-V firewall lets the port pass again.
    pub fn unblock_port(&self, protocol: Transport, port: u16) -> Result<()> {
        self.windows_side().object.remove_rule(protocol.key(port), rule::BLOCKED)
    }

    /// The Hyper-V firewall drops what the guest sends to this port, of Windows or its own.
    pub fn block_port_outbound(&self, protocol: Transport, port: u16) -> Result<()> {
        self.windows_side().object.add_rule(protocol.key(port), rule::BLOCKED_OUT)
    }

    /// The Hyper-V firewall lets the guest send to the port again.
    pub fn unblock_port_outbound(&self, protocol: Transport, port: u16) -> Result<()> {
        self.windows_side().object.remove_rule(protocol.key(port), rule::BLOCKED_OUT)
    }

    /// Whether Windows knows that the guest has bound the port.
    pub fn has_reported(&self, protocol: Transport, port: u16) -> bool {
        self.windows_side().object.port(protocol.key(port)).is_some()
    }

    /// Windows garbles the destination port of such packets on their way to `loopback0`: of these kinds, and of no
    /// others, `per_mille` of a thousand, spread evenly, beginning with the first. It counts from zero again.
    pub fn garble(&self, kinds: &[Garbled], per_mille: u32) -> Result<()> {
        let garbling = Garbling { kinds: kinds.to_vec(), per_mille };
        self.windows_side().object.set_garble(garbling.value()?)
    }

    /// How many packets Windows has garbled since it was told to.
    pub fn garbled(&self) -> Result<u64> {
        Ok(self.windows_side().object.garble()?.garbled)
    }

    /// Windows forgets every bind and every flow, as when its network service starts anew.
    pub fn forget_binds_and_flows(&self) -> Result<()> {
        let object = &self.windows_side().object;
        for key in object.ports()?.into_keys() {
            object.remove_port(key)?;
        }
        object.forget_flows()
    }

    /// Windows forgets every flow.
    pub fn forget_flows(&self) -> Result<()> {
        self.windows_side().object.forget_flows()
    }

    /// How many packets Windows dropped for this reason.
    pub fn dropped(&self, reason: Dropped) -> Result<u64> {
        self.windows_side().object.dropped(reason)
    }
}
