//! One step of a plan.

use std::collections::BTreeMap;
use std::fmt;

use wsl_mirror_core::abi::{Owner, OwnerPolicy, Policy, PortKey, PortPolicy, PortRule, Settings};

use super::attachments::{CgroupAttachment, InterfaceAttachment};
use super::delivery;
use super::pins::{self, bpffs};
use crate::config::LogLevel;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mount bpffs.
    MountBpffs,
    /// Make our directories.
    MakeDirectories,
    /// Remove what a killed `load` left.
    RemoveLeftover(String),
    /// Load programs and maps. Pinned maps are used again.
    LoadProgram {
        /// Names of the pinned maps.
        reused: Vec<&'static str>,
        /// What the program logs.
        log: LogLevel,
    },
    /// Use the pinned programs and maps.
    UsePinned,
    /// Write what the configuration says about ports.
    WritePolicies(Vec<PolicyChange>),
    /// Write what is built in and what the configuration says about owners.
    WriteOwners(Vec<OwnerChange>),
    /// Write `SETTINGS`.
    WriteSettings {
        /// The value before, if the map has one.
        old: Option<Settings>,
        /// The value after.
        new: Settings,
    },
    /// Pin a new map.
    PinMap(&'static str),
    /// Pin the new program beside the old one.
    PinProgram(InterfaceAttachment),
    /// Attach a program to the cgroup and pin its link, in the place of the one that is pinned.
    AttachToCgroup(CgroupAttachment),
    /// Tag the listeners that were bound before the programs on the cgroup were attached.
    TagSockets(BTreeMap<Owner, OwnerPolicy>),
    /// Attach the program: a new tcx link, first in the chain, pinned.
    AttachLink(InterfaceAttachment),
    /// Replace the program in the pinned link, in one stroke.
    ReplaceInLink {
        /// Where the program is attached.
        on: InterfaceAttachment,
        /// The id of the program that is in it.
        old: u32,
    },
    /// Make a clsact qdisc.
    AddClsact,
    /// Add our `cls_bpf` filter.
    AddFilter(InterfaceAttachment),
    /// Replace the program in our filter, in one stroke.
    ReplaceInFilter {
        /// Where the program is attached.
        on: InterfaceAttachment,
        /// The id of the program that is in it.
        old: u32,
    },
    /// Put the new program's pin in the place of the old one's.
    SwapProgramPin(InterfaceAttachment),
    /// Write what the machine's rules say of ports.
    WriteRules(Vec<RuleChange>),
    /// Prepare the machine for delivery by `lo`. A failure means plain delivery.
    PrepareDelivery(delivery::Change),
    /// Remove what no packet needs any more.
    CleanUp(delivery::Change),
}

/// A port's entry in `PORT_POLICY`, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyChange {
    /// The port.
    pub key: PortKey,
    /// The entry before.
    pub old: PortPolicy,
    /// The entry after.
    pub new: PortPolicy,
}

/// What `PORT_DELIVERY` says of the rules for a port, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleChange {
    /// The port.
    pub key: PortKey,
    /// The entry before.
    pub old: Option<PortRule>,
    /// The entry after.
    pub new: Option<PortRule>,
}

/// An owner's entry in `OWNERS`, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerChange {
    /// Whom it is about.
    pub owner: Owner,
    /// The entry before.
    pub old: Option<OwnerPolicy>,
    /// The entry after.
    pub new: Option<OwnerPolicy>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MountBpffs => write!(f, "mount bpffs at {}, for root only", bpffs::ROOT),
            Self::MakeDirectories => write!(f, "make {}", pins::directory().display()),
            Self::RemoveLeftover(name) => {
                write!(f, "remove {}, left by a killed load", pins::path(name).display())
            }
            Self::LoadProgram { reused, .. } if reused.is_empty() => {
                f.write_str("load the program with new maps")
            }
            Self::LoadProgram { reused, .. } => {
                write!(f, "load the program with the pinned maps {}", reused.join(", "))
            }
            Self::UsePinned => f.write_str("go on with the pinned program and its maps"),
            Self::WritePolicies(changes) => write!(f, "write {} ports to PORT_POLICY", changes.len()),
            Self::WriteRules(changes) => write!(
                f,
                "write to PORT_DELIVERY what the machine's rules say of {} ports: {} they keep to lo, {} they close",
                changes.len(),
                changes.iter().filter(|change| change.new == Some(PortRule::NotOnLo)).count(),
                changes.iter().filter(|change| change.new == Some(PortRule::Closed)).count()
            ),
            Self::WriteOwners(changes) => write!(f, "write {} owners to OWNERS", changes.len()),
            Self::WriteSettings { new, .. } => write!(
                f,
                "write SETTINGS: mark {:#x}, default {}, delivery {}",
                new.mark,
                Policy::from_byte(u8::try_from(new.default_policy).unwrap_or_default()).name(),
                if new.lo_ifindex == 0 { "plain" } else { "by lo where nothing else helps" }
            ),
            Self::PinMap(name) => write!(f, "pin the map {name}"),
            Self::PinProgram(on) => {
                write!(f, "pin the new program as {}", pins::path_of_new(on.program_pin).display())
            }
            Self::AttachToCgroup(on) => {
                write!(f, "attach {} to the cgroup, and pin the link as {}", on.program, on.link_pin)
            }
            Self::TagSockets(_) => f.write_str("tag the sockets that serve by the processes that hold them"),
            Self::AttachLink(on) => write!(
                f,
                "attach the program by a tcx link, first on {}, and pin the link",
                on.direction.name()
            ),
            Self::ReplaceInLink { .. } => f.write_str("replace the program in the pinned link"),
            Self::AddClsact => f.write_str("make a clsact qdisc"),
            Self::AddFilter(on) => {
                write!(f, "attach the program as a cls_bpf filter on {}", on.direction.name())
            }
            Self::ReplaceInFilter { .. } => f.write_str("replace the program in our cls_bpf filter"),
            Self::SwapProgramPin(on) => {
                write!(f, "rename that pin to {}", pins::path(on.program_pin).display())
            }
            Self::PrepareDelivery(change) | Self::CleanUp(change) => change.fmt(f),
        }
    }
}

impl Step {
    /// Whether it puts back what somebody has taken away, if it is part of a `plan::difference` on the interface that is
    /// steered. That makes everything anew where a pin or a hook is missing.
    pub const fn is_repair(&self) -> bool {
        matches!(
            self,
            Self::PrepareDelivery(_)
                | Self::LoadProgram { .. }
                | Self::AttachLink(_)
                | Self::AddClsact
                | Self::AddFilter(_)
                | Self::ReplaceInFilter { .. }
        )
    }
}
