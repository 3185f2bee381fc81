//! A packet on its way through rules, and whether a rule is for it.

use super::ruleset::{Condition, Sense};

/// A packet that this machine sends, or that goes to an address of its own.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    pub hook: &'static str,
    pub in_interface: Option<&'a str>,
    pub out_interface: Option<&'a str>,
    pub source: u32,
    pub destination: u32,
    pub protocol: u8,
    /// Its destination port; none stands for any port.
    pub port: Option<u16>,
    pub goes: Goes,
    pub flow: Flow,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    /// To an address of this machine.
    Here,
    Elsewhere,
}

/// Which packet of its flow a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Any.
    Any,
    /// The first.
    New,
}

/// Whether a rule, or a condition of it, is for a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    No,
    Maybe,
    Yes,
}

/// Whether all of these hold for a packet.
pub fn all_apply<'a>(conditions: impl IntoIterator<Item = &'a Condition>, packet: Packet<'_>) -> Applies {
    let mut applies = Applies::Yes;
    for condition in conditions {
        match condition.applies(packet) {
            Applies::Yes => {}
            Applies::No => return Applies::No,
            Applies::Maybe => applies = Applies::Maybe,
        }
    }
    applies
}

impl Condition {
    fn applies(&self, packet: Packet<'_>) -> Applies {
        let (found, sense) = match self {
            Self::InInterface(names, sense) => (is_one_of(names, packet.in_interface), sense),
            Self::OutInterface(names, sense) => (is_one_of(names, packet.out_interface), sense),
            Self::Destination(ranges, sense) => {
                (Some(ranges.iter().any(|range| range.contains(&packet.destination))), sense)
            }
            Self::Source(ranges, sense) => {
                (Some(ranges.iter().any(|range| range.contains(&packet.source))), sense)
            }
            Self::Protocol(protocols, sense) => (Some(protocols.contains(&packet.protocol)), sense),
            Self::DestinationPort(ranges, sense) => match packet.port {
                Some(port) => (Some(ranges.iter().any(|range| range.contains(&port))), sense),
                None => return Applies::Maybe,
            },
            Self::LocalDestination(sense) => (Some(packet.goes == Goes::Here), sense),
            Self::FlowState { is_for_new } if packet.flow == Flow::New => (Some(*is_for_new), &Sense::Is),
            Self::FlowState { .. } | Self::Sender | Self::Unknown => return Applies::Maybe,
        };
        match found {
            Some(found) if found == (*sense == Sense::Is) => Applies::Yes,
            // On this hook a packet has no such interface, and the rule ends.
            _ => Applies::No,
        }
    }
}

fn is_one_of(patterns: &[String], interface: Option<&str>) -> Option<bool> {
    interface.map(|name| patterns.iter().any(|pattern| matches(pattern, name)))
}

fn matches(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => pattern == interface,
    }
}
