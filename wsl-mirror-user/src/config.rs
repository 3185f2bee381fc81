//! `/etc/wsl-mirror.toml`.

mod problems;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use wsl_mirror_core::abi::{BUILT_IN_OWNERS, Owner, OwnerPolicy, Policy, PortKey};

use crate::exit::{Exit, Failure, OrExit as _};
use crate::host::interface;
use crate::policy::{PortSpec, SYNTAX};

pub use problems::{Invalid, Problem};

/// Where the configuration is unless `--config` says otherwise. It need not exist.
pub const PATH: &str = "/etc/wsl-mirror.toml";

/// Most bits that `mark` may have: others need the rest.
const MARK_BITS_MAX: u32 = 8;

/// `TASK_COMM_LEN` (`include/linux/sched.h`), without the zero at the end.
const PROCESS_NAME_MAX: usize = 15;
/// How many rules `OWNERS` has room for, beside what is built in.
const OWNERS_MAX: usize = 1000;

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
    /// What ports get about which nothing is written, served by whom nothing is written about.
    pub default: Choice,
    /// What ports get by who serves them, beside what is built in.
    #[serde(deserialize_with = "owner_rules")]
    pub owners: Vec<OwnerRule>,
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
            default: Choice::Pass,
            owners: Vec::new(),
            exempt: Vec::new(),
            hook: HookChoice::Auto,
            delivery: DeliveryChoice::Auto,
            log: LogLevel::Off,
        }
    }
}

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
pub struct User(u32);

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

fn owner_rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OwnerRule>, D::Error> {
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

fn process_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
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

    /// Reads a text. Errors name line and column; all unknown keys are named at once.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let unknown = problems::unknown_keys(text);
        if !unknown.is_empty() {
            return Err(Invalid(unknown));
        }
        toml::from_str(text).map_err(|error| Invalid(vec![Problem::found(text, &error)]))
    }

    /// Everything that is written about owners: what is built in, unless the file says something else of it.
    pub fn owner_policies(&self) -> BTreeMap<Owner, OwnerPolicy> {
        let built_in = BUILT_IN_OWNERS.into_iter();
        let written = self
            .owners
            .iter()
            .map(|rule| (Owner::new(rule.name.as_bytes(), rule.uid.0), Policy::from(rule.policy)));
        built_in.chain(written).map(|(owner, policy)| (owner, OwnerPolicy::new(policy))).collect()
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
             hook = \"cls_bpf\"\ndelivery = \"plain\"\nlog = \"debug\"\n\
             owners = [{ name = \"rootlessport\", uid = 1000, policy = \"steer\" }, \
             { name = \"mine\", uid = \"any\", policy = \"pass\" }, { name = \"other\", policy = \"steer\" }]\n",
        )
        .unwrap();
        assert_eq!(config.interface, "lo9");
        assert_eq!(config.mark, Some(0x3000));
        assert_eq!(config.delivery, DeliveryChoice::Plain);
        assert_eq!(Policy::from(config.default), Policy::Pass);
        assert_eq!(config.hook, HookChoice::ClsBpf);
        assert_eq!(config.log, LogLevel::Debug);
        let keys: Vec<_> = config.exempt_keys().iter().map(|key| (key.protocol, key.port)).collect();
        let owner = |name: &str, uid| Owner::new(name.as_bytes(), uid);
        let expected = [
            (owner("docker-proxy", 0), Policy::Steer),
            (owner("rootlessport", 1000), Policy::Steer),
            (owner("mine", Owner::ANY_UID), Policy::Pass),
            (owner("other", 0), Policy::Steer),
        ];
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|(owner, policy)| (owner, OwnerPolicy::new(policy))).collect();
        assert_eq!(config.owner_policies(), expected);
        assert_eq!(keys, [(6, 22), (6, 8000), (6, 8001), (17, 22), (17, 53)]);
    }

    #[test]
    fn the_example_names_every_key_with_its_default() {
        let example = include_str!("../../contrib/wsl-mirror.toml");
        assert_eq!(Config::parse(example).unwrap(), Config::default());
        let keys: Vec<_> = example.parse::<toml::Table>().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["default", "delivery", "exempt", "hook", "interface", "log", "mark", "owners"]);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_line_column_and_the_nearest_known_key() {
        assert_eq!(
            error("mark = 0x1000\nexemt = [22]\n"),
            "line 2, column 1: there is no key \"exemt\"; the nearest is `exempt`"
        );
    }

    #[test]
    fn what_is_no_toml_is_an_error_with_line_and_column() {
        assert!(error("mark = \n").contains("line 1, column 8"), "{}", error("mark = \n"));
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
    fn what_is_built_in_about_an_owner_can_be_overruled() {
        let text = "owners = [{ name = \"docker-proxy\", policy = \"pass\" }]";
        let owners = Config::parse(text).unwrap().owner_policies();
        let pass = OwnerPolicy::new(Policy::Pass);
        assert_eq!(owners.into_iter().collect::<Vec<_>>(), [(Owner::new(b"docker-proxy", 0), pass)]);
    }

    #[test]
    fn a_bad_owner_is_an_error_with_line_and_column() {
        for (text, place) in [
            ("owners = [{ name = \"\", policy = \"steer\" }]", "line 1, column 20"),
            ("owners = [{ name = \"a-name-of-16-byte\", policy = \"steer\" }]", "line 1, column 20"),
            ("owners = [{ name = \"a\", uid = -1, policy = \"steer\" }]", "line 1, column 31"),
            ("owners = [{ name = \"a\", uid = 4294967295, policy = \"steer\" }]", "line 1, column 31"),
            ("owners = [{ name = \"a\", uid = \"root\", policy = \"steer\" }]", "line 1, column 31"),
            ("owners = [{ name = \"a\" }]", "line 1, column 11"),
            ("owners = [{ name = \"a\", policy = \"direct\" }]", "line 1, column 34"),
            ("owners = [{ nam = \"a\", policy = \"pass\" }]", "line 1, column 13"),
            (
                "owners = [{ name = \"a\", policy = \"pass\" }, { name = \"a\", policy = \"steer\" }]",
                "line 1, column 10",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_an_error() {
        assert!(error("interface = \"a/b\"").contains("line 1, column 13"));
    }
}
