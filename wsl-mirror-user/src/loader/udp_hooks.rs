//! UDP's hooks on the cgroup: attached only while a listener of UDP has a target. While they are, each unconnected
//! datagram of the machine takes its socket's lock (`udp_sendmsg`, `BPF_CGROUP_RUN_PROG_UDP4_SENDMSG_LOCK`).

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::Result;
use aya::Ebpf;

use super::attachments::{self, UdpAttachment};
use super::cgroup::{self, Change};
use super::look::Look;
use super::pins;
use crate::config::Switch;

/// Attaches and detaches the hooks during one look at listeners.
pub struct UdpHooks<'a> {
    programs: Programs<'a>,
    cgroup: &'a dyn Fn() -> Result<OwnedFd>,
    linux_clients: Switch,
    state: State,
    changes: Vec<Change>,
}

/// The programs that are attached.
enum Programs<'a> {
    /// New ones. They replace what is in the pinned links.
    Loaded(&'a mut Ebpf),
    /// The pinned ones.
    Pinned,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Attached,
}

impl<'a> UdpHooks<'a> {
    /// Hooks of new programs.
    pub const fn loaded(
        ebpf: &'a mut Ebpf,
        cgroup: &'a dyn Fn() -> Result<OwnedFd>,
        linux_clients: Switch,
    ) -> Self {
        Self::new(Programs::Loaded(ebpf), cgroup, linux_clients)
    }

    /// Hooks of the pinned programs.
    pub const fn pinned(cgroup: &'a dyn Fn() -> Result<OwnedFd>, linux_clients: Switch) -> Self {
        Self::new(Programs::Pinned, cgroup, linux_clients)
    }

    const fn new(
        programs: Programs<'a>,
        cgroup: &'a dyn Fn() -> Result<OwnedFd>,
        linux_clients: Switch,
    ) -> Self {
        Self { programs, cgroup, linux_clients, state: State::Unknown, changes: Vec::new() }
    }

    /// Sees to it that the hooks are there. To be called before a listener of UDP gets a target.
    pub fn attach(&mut self, look: Look) -> Result<()> {
        if self.linux_clients == Switch::Off || self.state == State::Attached {
            return Ok(());
        }
        for udp in attachments::of_udp() {
            let change = match &mut self.programs {
                Programs::Pinned if is_attached(udp, look)? => continue,
                Programs::Pinned => cgroup::attach_pinned(udp, (self.cgroup)()?.as_fd())?,
                Programs::Loaded(ebpf) => cgroup::attach(ebpf, udp.on, (self.cgroup)()?.as_fd())?,
            };
            self.changes.push(change);
        }
        self.state = State::Attached;
        Ok(())
    }

    /// A look at everything ends. The hooks go if no listener of UDP has a target.
    pub fn settle(&mut self, targets: UdpTargets) -> Result<()> {
        match targets {
            _ if self.linux_clients == Switch::Off => self.detach(),
            UdpTargets::Some => self.attach(Look::Everything),
            UdpTargets::None => self.detach(),
            // They stay as they are, with the new programs in them.
            UdpTargets::Unknown if attachments::of_udp().any(has_link) => self.attach(Look::Everything),
            UdpTargets::Unknown => Ok(()),
        }
    }

    fn detach(&mut self) -> Result<()> {
        for udp in attachments::of_udp().rev().filter(|udp| has_link(*udp)) {
            self.changes.push(cgroup::detach(udp.on)?);
        }
        Ok(())
    }

    /// What was done, in order.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// Whether a listener of UDP has a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpTargets {
    /// At least one.
    Some,
    /// None has.
    None,
    /// The look has failed in part, and found none.
    Unknown,
}

fn has_link(udp: UdpAttachment) -> bool {
    pins::path(udp.on.link_pin).exists()
}

/// Whether the pinned link is there. A look at everything also asks whether it hangs on the cgroup.
fn is_attached(udp: UdpAttachment, look: Look) -> Result<bool> {
    Ok(has_link(udp) && !(look == Look::Everything && cgroup::is_detached(udp.on)?))
}

/// Whether all of the hooks are on the cgroup.
pub fn are_attached() -> bool {
    // A running agent may take a pin away after we have seen it.
    attachments::of_udp().all(|udp| is_attached(udp, Look::Everything).unwrap_or(false))
}
