//! One step of a plan.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use wsl_mirror_core::abi::{
    Carrying, LinuxClients, Owner, OwnerPolicy, Path, Policy, PortKey, PortPolicy, Settings,
};

use super::attachments::{CgroupAttachment, Direction, InterfaceAttachment, UdpAttachment};
use super::pins::{self, bpffs};
use super::source_alias::Change;
use crate::config::{LogLevel, Switch};

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
    /// Change the source alias' policy route rules or its route.
    ChangeRouting(Change),
    /// Mark no socket any more in `SETTINGS`, which are these: the rules that keep connections on `lo` change.
    ClearLoMark(Settings),
    /// Change the policy route rules that keep connections on `lo`.
    ChangeLocalRules(Change),
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
    /// Attach a program to the cgroup and pin its link. A pinned link on the same cgroup gets the program in one stroke.
    AttachToCgroup(CgroupAttachment),
    /// Pin a program of UDP's hooks, in the place of the one that is pinned.
    PinUdpProgram(UdpAttachment),
    /// Tag the listeners that were bound before the programs on the cgroup were attached, and write all targets. UDP's hooks
    /// are attached before the first target of UDP, and detached where there is none.
    TagSockets {
        /// The policies of owners.
        owners: BTreeMap<Owner, OwnerPolicy>,
        /// Whether Linux' own clients are connected to containers. If not, UDP's hooks are detached in any case.
        linux_clients: Switch,
    },
    /// Attach the program: a new tcx link, first on ingress and last on egress, pinned.
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
            Self::ChangeRouting(change) | Self::ChangeLocalRules(change) => change.fmt(f),
            Self::ClearLoMark(_) => f.write_str("write SETTINGS: no connection is kept on lo any more"),
            Self::WritePolicies(changes) => write!(f, "write {} ports to PORT_POLICY", changes.len()),
            Self::WriteOwners(changes) => write!(f, "write {} owners to OWNERS", changes.len()),
            Self::WriteSettings { new, .. } => write!(
                f,
                "write SETTINGS: alias {}, source alias {}, carrying {}, mark {:#x}, default {}, path {}, linux clients {}, \
                 lo mark {:#x}",
                Ipv4Addr::from(new.alias),
                Ipv4Addr::from(new.source_alias),
                match Carrying::from_number(new.carrying) {
                    Carrying::On => "on",
                    Carrying::Off => "off",
                },
                new.mark,
                Policy::from_byte(u8::try_from(new.default_policy).unwrap_or_default()).name(),
                Path::from_byte(u8::try_from(new.path).unwrap_or_default()).name(),
                match LinuxClients::from_number(new.linux_clients) {
                    LinuxClients::Translated => "translated",
                    LinuxClients::Off => "off",
                },
                new.lo_mark
            ),
            Self::PinMap(name) => write!(f, "pin the map {name}"),
            Self::PinProgram(on) => {
                write!(f, "pin the new program as {}", pins::path_of_new(on.program_pin).display())
            }
            Self::AttachToCgroup(on) => {
                write!(f, "attach {} to the cgroup, and pin the link as {}", on.program, on.link_pin)
            }
            Self::PinUdpProgram(udp) => write!(f, "pin {} as {}", udp.on.program, udp.program_pin),
            Self::TagSockets { linux_clients, .. } => write!(
                f,
                "tag the sockets that serve by the processes that hold them{}, and write the containers behind them",
                match linux_clients {
                    Switch::Auto => ", attach UDP's hooks if a UDP port has a container",
                    Switch::Off => "",
                }
            ),
            Self::AttachLink(on) => write!(
                f,
                "attach the program by a tcx link, {} on {}, and pin the link",
                match on.direction {
                    Direction::Ingress => "first",
                    Direction::Egress => "last",
                },
                on.direction.name()
            ),
            Self::ReplaceInLink { on, .. } => {
                write!(f, "replace the program in the pinned link on {}", on.direction.name())
            }
            Self::AddClsact => f.write_str("make a clsact qdisc"),
            Self::AddFilter(on) => {
                write!(f, "attach the program as a cls_bpf filter on {}", on.direction.name())
            }
            Self::ReplaceInFilter { on, .. } => {
                write!(f, "replace the program in our cls_bpf filter on {}", on.direction.name())
            }
            Self::SwapProgramPin(on) => {
                write!(f, "rename that pin to {}", pins::path(on.program_pin).display())
            }
        }
    }
}

impl Step {
    /// Whether it puts back what somebody has taken away, if it is part of a `plan::difference` on the interface that is
    /// steered. That makes everything anew where a pin or a hook is missing.
    pub const fn is_repair(&self) -> bool {
        matches!(
            self,
            Self::LoadProgram { .. }
                | Self::ChangeRouting(_)
                | Self::ChangeLocalRules(Change::AddRule(_))
                | Self::AttachLink(_)
                | Self::AddClsact
                | Self::AddFilter(_)
                | Self::ReplaceInFilter { .. }
        )
    }
}
