//! `/etc/wsl-mirror.toml`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use wsl_mirror_ebpf::abi::{Policy, PortKey};

use crate::exit::{Exit, Failure, OrExit as _};
use crate::host::interface;
use crate::policy::{PortSpec, SYNTAX};

/// Where the configuration is unless `--config` says otherwise. It need not exist.
pub const PATH: &str = "/etc/wsl-mirror.toml";

/// Most bits that `mark` may have: others need the rest.
const MARK_BITS_MAX: u32 = 8;

/// What the configuration says, or would say by default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interface that carries Windows' 127.0.0.1.
    #[serde(deserialize_with = "interface_name")]
    pub interface: String,
    /// The bits that steered packets get in `skb->mark`; `None` for the first one that nobody else uses.
    #[serde(deserialize_with = "mark")]
    pub mark: Option<u32>,
    /// What ports get about which nothing is written.
    pub default: DefaultPolicy,
    /// Ports to leave alone.
    pub exempt: Vec<Port>,
    /// How the program is attached.
    pub hook: HookChoice,
    /// How steered packets get past rules that drop what does not come in on `lo`.
    pub delivery: DeliveryChoice,
    /// What the program logs, for `wsl-mirror log`.
    pub log: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interface: "loopback0".into(),
            mark: None,
            default: DefaultPolicy::Steer,
            exempt: Vec::new(),
            hook: HookChoice::Auto,
            delivery: DeliveryChoice::Auto,
            log: LogLevel::Off,
        }
    }
}

/// `default`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultPolicy {
    /// Steer wherever somebody listens.
    Steer,
    /// Leave every port alone.
    Pass,
}

impl From<DefaultPolicy> for Policy {
    fn from(default: DefaultPolicy) -> Self {
        match default {
            DefaultPolicy::Steer => Self::Steer,
            DefaultPolicy::Pass => Self::Pass,
        }
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

/// `delivery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryChoice {
    /// As if received on `lo`, on ports where nothing else helps and if the machine lets us.
    Auto,
    /// As they came in.
    Plain,
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

fn interface_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if interface::is_valid_name(&name) {
        Ok(name)
    } else {
        Err(de::Error::custom(format!("{name:?} is no name that an interface can have (1 to 15 bytes)")))
    }
}

fn mark<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    struct MarkVisitor;
    impl Visitor<'_> for MarkVisitor {
        type Value = Option<u32>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number like 0x1000, or \"auto\"")
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Option<u32>, E> {
            let unexpected = || E::invalid_value(de::Unexpected::Signed(value), &self);
            let mark = u32::try_from(value).map_err(|_| unexpected())?;
            match mark.count_ones() {
                1..=MARK_BITS_MAX => Ok(Some(mark)),
                0 => Err(E::custom("mark needs at least one bit")),
                bits => Err(E::custom(format!(
                    "mark has {bits} bits; at most {MARK_BITS_MAX}, since others use skb->mark too"
                ))),
            }
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Option<u32>, E> {
            if value == "auto" { Ok(None) } else { Err(E::invalid_value(de::Unexpected::Str(value), &self)) }
        }
    }
    deserializer.deserialize_any(MarkVisitor)
}

impl Config {
    /// Reads the file. Only the one that nobody asked for may be missing.
    pub fn read(asked_for: Option<&Path>) -> Result<Self> {
        let path = asked_for.map_or_else(|| PathBuf::from(PATH), Path::to_owned);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|error| {
                Failure::new(
                    Exit::Config,
                    format!(
                        "the configuration {} is not valid, nothing was changed: {error}",
                        path.display()
                    ),
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && asked_for.is_none() => {
                Ok(Self::default())
            }
            Err(error) => Err(error)
                .or_exit(Exit::Config, || format!("cannot read the configuration {}", path.display())),
        }
    }

    /// Reads a text. Errors name line and column.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Every exempt port.
    pub fn exempt_keys(&self) -> BTreeSet<PortKey> {
        self.exempt.iter().flat_map(|Port(spec)| spec.keys()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_understood() {
        let config = Config::parse(
            "interface = \"lo9\"\nmark = 0x3000\ndefault = \"pass\"\nexempt = [22, \"53/udp\", \"8000-8001/tcp\"]\n\
             hook = \"cls_bpf\"\ndelivery = \"plain\"\nlog = \"debug\"\n",
        )
        .unwrap();
        assert_eq!(config.interface, "lo9");
        assert_eq!(config.mark, Some(0x3000));
        assert_eq!(config.delivery, DeliveryChoice::Plain);
        assert_eq!(Policy::from(config.default), Policy::Pass);
        assert_eq!(config.hook, HookChoice::ClsBpf);
        assert_eq!(config.log, LogLevel::Debug);
        let keys: Vec<_> = config.exempt_keys().iter().map(|key| (key.protocol, key.port)).collect();
        assert_eq!(keys, [(6, 22), (6, 8000), (6, 8001), (17, 22), (17, 53)]);
    }

    #[test]
    fn the_example_names_every_key_with_its_default() {
        let example = include_str!("../../contrib/wsl-mirror.toml");
        assert_eq!(Config::parse(example).unwrap(), Config::default());
        let keys: Vec<_> = example.parse::<toml::Table>().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["default", "delivery", "exempt", "hook", "interface", "log", "mark"]);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_line_and_column() {
        let error = error("mark = 0x1000\nexemt = [22]\n");
        assert!(error.contains("line 2, column 1"), "{error}");
        assert!(error.contains("exemt") && error.contains("`exempt`"), "{error}");
    }

    #[test]
    fn a_bad_port_is_an_error_with_line_and_column() {
        for (text, place) in [
            ("exempt = [\n  22,\n  \"80800\",\n]", "line 3, column 3"),
            ("exempt = [0]", "line 1, column 11"),
            ("exempt = [22, -5]", "line 1, column 15"),
            ("exempt = [22, 70000]", "line 1, column 15"),
            ("exempt = [\"80/sctp\"]", "line 1, column 11"),
        ] {
            let error = error(text);
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn a_mark_without_bits_or_with_too_many_is_an_error() {
        for text in [
            "mark = 0",
            "mark = 0xffffffff",
            "mark = -1",
            "mark = 0x1_0000_0000",
            "mark = 0x1ff",
            "mark = \"any\"",
        ] {
            assert!(error(text).contains("line 1, column 8"), "{text}: {}", error(text));
        }
        assert_eq!(Config::parse("mark = 0xff").unwrap().mark, Some(0xff));
        assert_eq!(Config::parse("mark = \"auto\"").unwrap().mark, None);
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_an_error() {
        assert!(error("interface = \"a/b\"").contains("line 1, column 13"));
    }
}
