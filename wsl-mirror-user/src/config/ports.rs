//! `[ports]`: policy and path of single ports.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use wsl_mirror_core::abi::{Path, Policy, PortKey, PortPolicy, Protocol};

use super::values::Port;
use crate::policy::{PortSpec, SYNTAX};

/// `policy` of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyChoice {
    /// Leave alone.
    Pass,
    /// Steer to the listener.
    Steer,
    /// Straight to the container.
    Direct,
}

impl From<PolicyChoice> for Policy {
    fn from(choice: PolicyChoice) -> Self {
        match choice {
            PolicyChoice::Pass => Self::Pass,
            PolicyChoice::Steer => Self::Steer,
            PolicyChoice::Direct => Self::Direct,
        }
    }
}

/// `path`, global and of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathChoice {
    /// To the proxy. Straight to the container where the engine's own rules would drop the flow.
    Auto,
    /// Straight to the container wherever it is known.
    Direct,
    /// Never straight to the container.
    Proxy,
}

impl From<PathChoice> for Path {
    fn from(choice: PathChoice) -> Self {
        match choice {
            PathChoice::Auto => Self::Auto,
            PathChoice::Direct => Self::Direct,
            PathChoice::Proxy => Self::Proxy,
        }
    }
}

/// An entry of `[ports]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRule {
    /// The ports that its key names.
    pub ports: PortSpec,
    /// Policy, path and what Windows does.
    pub choices: Choices,
}

/// The value of an entry of `[ports]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// What the ports get.
    #[serde(default)]
    pub policy: Option<PolicyChoice>,
    /// Which way their flows take.
    #[serde(default)]
    pub path: Option<PathChoice>,
    /// Whether Windows never sends the ports' datagrams to Linux.
    #[serde(default)]
    pub windows_never_sends: bool,
}

/// Reads the value of the entry about these ports.
struct Entry<'a>(&'a PortSpec);

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = Choices;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Choices, D::Error> {
        match Choices::deserialize(deserializer)? {
            Choices { policy: None, path: None, windows_never_sends: false } => {
                Err(de::Error::custom("the entry needs `policy`, `path` or `windows_never_sends = true`"))
            }
            // TCP connections stay on `lo` on any port.
            Choices { windows_never_sends: true, .. } if !self.0.includes(Protocol::Udp) => {
                Err(de::Error::custom("`windows_never_sends` is for UDP, and the entry names TCP alone"))
            }
            choices => Ok(choices),
        }
    }
}

/// A key.
struct Spec(PortSpec);

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Spec).map_err(de::Error::custom)
    }
}

/// Deserializes `ports`.
pub fn port_rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PortRule>, D::Error> {
    struct PortsVisitor;
    impl<'de> Visitor<'de> for PortsVisitor {
        type Value = Vec<PortRule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a table with keys like {SYNTAX}")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<PortRule>, A::Error> {
            let mut rules = Vec::new();
            while let Some(Spec(ports)) = map.next_key()? {
                let choices = map.next_value_seed(Entry(&ports))?;
                rules.push(PortRule { ports, choices });
            }
            Ok(rules)
        }
    }
    deserializer.deserialize_map(PortsVisitor)
}

/// UDP ports whose datagrams Windows never sends to Linux, without any word in `.wslconfig`: DNS, and DHCP's client.
const NEVER_SENT: [u16; 2] = [53, 68];

/// The file's fields of `PORT_POLICY`, by port, and what is built in of them. Contradictions were refused before.
pub fn policies(exempt: &[Port], rules: &[PortRule]) -> BTreeMap<PortKey, PortPolicy> {
    let mut policies: BTreeMap<PortKey, PortPolicy> = BTreeMap::new();
    for port in NEVER_SENT {
        policies.entry(PortKey::new(Protocol::Udp, port)).or_default().flags = PortPolicy::NEVER_SENT;
    }
    for key in exempt.iter().flat_map(|Port(spec)| spec.keys()) {
        policies.entry(key).or_default().config = Policy::Pass as u8;
    }
    for PortRule { ports, choices } in rules {
        for key in ports.keys() {
            let written = policies.entry(key).or_default();
            if let Some(policy) = choices.policy {
                written.config = Policy::from(policy) as u8;
            }
            if let Some(path) = choices.path {
                written.path = Path::from(path) as u8;
            }
            if choices.windows_never_sends && key.protocol == Protocol::Udp as u8 {
                written.flags = PortPolicy::NEVER_SENT;
            }
        }
    }
    policies.retain(|_, written| *written != PortPolicy::default());
    policies
}
