//! The values of the configuration's keys.

use std::fmt;
use std::net::Ipv4Addr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use wsl_mirror_core::abi::{LinuxClients, Owner, Policy};

use crate::host::interface;
use crate::policy::{PortSpec, SYNTAX};

/// Most bits that `mark` may have: others need the rest.
const MARK_BITS_MAX: u32 = 8;

/// `TASK_COMM_LEN` (`include/linux/sched.h`), without the zero at the end.
const PROCESS_NAME_MAX: usize = 15;
/// How many rules `OWNERS` has room for, beside what is built in.
const OWNERS_MAX: usize = 1000;

/// `default`, and `policy` of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Steer.
    Steer,
    /// Leave alone.
    Pass,
}

impl From<Choice> for Policy {
    fn from(default: Choice) -> Self {
        match default {
            Choice::Steer => Self::Steer,
            Choice::Pass => Self::Pass,
        }
    }
}

/// `linux_clients` and `keep_on_lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Wherever it can be done.
    Auto,
    /// Nowhere.
    Off,
}

impl From<Switch> for LinuxClients {
    fn from(linux_clients: Switch) -> Self {
        match linux_clients {
            Switch::Auto => Self::Translated,
            Switch::Off => Self::Off,
        }
    }
}

/// An entry of `owners`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerRule {
    /// The process's name, as `/proc/PID/comm` has it.
    #[serde(deserialize_with = "process_name")]
    pub name: String,
    /// Its real user; root unless told.
    #[serde(default)]
    pub uid: User,
    /// What the ports get that it serves.
    pub policy: Choice,
}

/// `uid` of an owner: a number, or `"any"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct User(pub u32);

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UserVisitor;
        impl Visitor<'_> for UserVisitor {
            type Value = User;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a user id or \"any\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<User, E> {
                let uid = u32::try_from(value).ok().filter(|uid| *uid != Owner::ANY_UID);
                uid.map(User).ok_or_else(|| E::custom(format!("{value} is no user id")))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<User, E> {
                if value == "any" {
                    Ok(User(Owner::ANY_UID))
                } else {
                    Err(E::custom(format!("{value:?} is no user id; expected a number or \"any\"")))
                }
            }
        }
        deserializer.deserialize_any(UserVisitor)
    }
}

/// `hook`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookChoice {
    /// tcx where the kernel has it (6.6 and later), else `cls_bpf`.
    Auto,
    /// tcx.
    Tcx,
    /// `cls_bpf` on a clsact qdisc.
    ClsBpf,
}

/// `log`: the program's own messages. The numbers are aya-log's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LogLevel {
    /// Nothing: costs nothing either.
    Off = 0,
    /// Each flow's first verdict.
    Debug = 4,
}

/// An entry of `exempt`: a number, or a text like `"8000-8100/tcp"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port(pub PortSpec);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a port number or {SYNTAX:?}")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Port, E> {
                let port = u16::try_from(value).ok().and_then(PortSpec::single);
                port.map(Port).ok_or_else(|| E::custom(format!("{value} is no port; expected {SYNTAX}")))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Port, E> {
                value.parse().map(Port).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

/// Deserializes `interface`.
pub fn interface_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if interface::is_valid_name(&name) {
        Ok(name)
    } else {
        Err(de::Error::custom(format!("{name:?} is no name that an interface can have (1 to 15 bytes)")))
    }
}

/// Deserializes `owners`.
pub fn owner_rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OwnerRule>, D::Error> {
    let rules = Vec::<OwnerRule>::deserialize(deserializer)?;
    if rules.len() > OWNERS_MAX {
        return Err(de::Error::custom(format!("more than {OWNERS_MAX} owners")));
    }
    for (index, rule) in rules.iter().enumerate() {
        if rules[..index].iter().any(|other| (&other.name, other.uid) == (&rule.name, rule.uid)) {
            return Err(de::Error::custom(format!(
                "the owner {:?} is there twice with the same uid",
                rule.name
            )));
        }
    }
    Ok(rules)
}

/// Deserializes `name` of an owner.
pub fn process_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if (1..=PROCESS_NAME_MAX).contains(&name.len()) && !name.contains('\0') {
        Ok(name)
    } else {
        Err(de::Error::custom(format!(
            "{name:?} is no name that a process can have (1 to {PROCESS_NAME_MAX} bytes; the kernel cuts longer \
             ones, see /proc/PID/comm)"
        )))
    }
}

/// Deserializes `alias`.
pub fn alias<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ipv4Addr, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.parse::<Ipv4Addr>() {
        Ok(Ipv4Addr::LOCALHOST) => {
            Err(de::Error::custom("alias cannot be 127.0.0.1: the alias tells carried flows from all others"))
        }
        Ok(address) if address.is_loopback() => Ok(address),
        Ok(address) => Err(de::Error::custom(format!(
            "{address} cannot be the alias: only an address of 127.0.0.0/8 stays on this machine"
        ))),
        Err(_) => Err(de::Error::custom(format!("{text:?} is no IPv4 address"))),
    }
}

/// Deserializes `source_alias`.
pub fn source_alias<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ipv4Addr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let address: Ipv4Addr =
        text.parse().map_err(|_| de::Error::custom(format!("{text:?} is no IPv4 address")))?;
    let why = match address {
        _ if address.is_loopback() => "containers cannot answer an address of 127.0.0.0/8",
        // `ipv4_is_zeronet`: the kernel drops packets from there.
        _ if address.octets()[0] == 0 => "no machine may have an address of 0.0.0.0/8",
        _ if address.is_multicast() || address.is_broadcast() => "it is no address of a single machine",
        _ => return Ok(address),
    };
    Err(de::Error::custom(format!("{address} cannot be the source alias: {why}")))
}

/// Deserializes `mark`.
pub fn mark<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = i64::deserialize(deserializer)?;
    let mark = u32::try_from(value).map_err(|_| {
        de::Error::invalid_value(de::Unexpected::Signed(value), &"a number of 32 bits like 0x80")
    })?;
    match mark.count_ones() {
        0..=MARK_BITS_MAX => Ok(mark),
        bits => Err(de::Error::custom(format!(
            "mark has {bits} bits; at most {MARK_BITS_MAX}, since others use skb->mark too"
        ))),
    }
}
