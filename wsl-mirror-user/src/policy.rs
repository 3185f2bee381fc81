//! Ports as people write them, and what is written about them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use wsl_mirror_core::abi::{PortKey, PortPolicy, Protocol};

/// `PORT[-PORT][/tcp|/udp]`: ports of one protocol, or of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    ports: RangeInclusive<u16>,
    protocol: Option<Protocol>,
}

impl PortSpec {
    /// Each port of it.
    pub fn keys(&self) -> impl Iterator<Item = PortKey> + '_ {
        Protocol::ALL
            .into_iter()
            .filter(|protocol| self.includes(*protocol))
            .flat_map(|protocol| self.ports.clone().map(move |port| PortKey::new(protocol, port)))
    }

    /// The ports that both name.
    pub fn shared_with(&self, other: &Self) -> Option<Self> {
        let protocol = match (self.protocol, other.protocol) {
            (Some(one), Some(other)) if one != other => return None,
            (one, other) => one.or(other),
        };
        let first = *self.ports.start().max(other.ports.start());
        let last = *self.ports.end().min(other.ports.end());
        (first <= last).then_some(Self { ports: first..=last, protocol })
    }

    /// Whether it names ports of this protocol.
    pub fn includes(&self, protocol: Protocol) -> bool {
        self.protocol.is_none_or(|named| named == protocol)
    }

    /// One port of both protocols.
    pub fn single(port: u16) -> Option<Self> {
        (port != 0).then_some(Self { ports: port..=port, protocol: None })
    }
}

/// Why a text is no [`PortSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPort(String);

impl fmt::Display for BadPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadPort {}

/// What a port may look like, for messages.
pub const SYNTAX: &str = "PORT[-PORT][/tcp|/udp] with ports from 1 to 65535";

impl FromStr for PortSpec {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        let bad = |what: String| BadPort(format!("{what}; expected {SYNTAX}"));
        let (ports, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((ports, "tcp")) => (ports, Some(Protocol::Tcp)),
            Some((ports, "udp")) => (ports, Some(Protocol::Udp)),
            Some((_, other)) => return Err(bad(format!("{other:?} is no protocol"))),
        };
        let port = |text: &str| {
            // `parse` would also take "+80".
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(bad(format!("{text:?} is no port")));
            }
            match text.parse() {
                Ok(0) | Err(_) => Err(bad(format!("{text} is no port"))),
                Ok(port) => Ok(port),
            }
        };
        let ports = match ports.split_once('-') {
            None => {
                let port = port(ports)?;
                port..=port
            }
            Some((from, to)) => port(from)?..=port(to)?,
        };
        if ports.is_empty() {
            return Err(bad(format!("{}-{} ends before it begins", ports.start(), ports.end())));
        }
        Ok(Self { ports, protocol })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ports.start())?;
        if self.ports.start() != self.ports.end() {
            write!(f, "-{}", self.ports.end())?;
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{}", protocol.name()),
            None => Ok(()),
        }
    }
}

/// The entries that say something about policy or path, without their flags: `policy set` does not write those, and they
/// part no neighbours.
pub fn without_flags(entries: BTreeMap<PortKey, PortPolicy>) -> BTreeMap<PortKey, PortPolicy> {
    let entries = entries.into_iter().map(|(key, written)| (key, PortPolicy { flags: 0, ..written }));
    entries.filter(|(_, written)| *written != PortPolicy::default()).collect()
}

/// Consecutive ports of one protocol about which the same is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange<T> {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// First and last port.
    pub ports: RangeInclusive<u16>,
    /// What is written.
    pub written: T,
}

impl<T> PortRange<T> {
    /// The range as [`PortSpec`] would write it.
    pub fn spec(&self) -> PortSpec {
        PortSpec { ports: self.ports.clone(), protocol: Some(self.protocol) }
    }
}

/// Joins neighbours about which the same is written. Keys that are no port of TCP or UDP are left out.
pub fn ranges<T: PartialEq + Clone>(entries: impl IntoIterator<Item = (PortKey, T)>) -> Vec<PortRange<T>> {
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    let mut ranges: Vec<PortRange<T>> = Vec::new();
    for (key, written) in entries {
        let Some(protocol) = Protocol::from_number(key.protocol) else { continue };
        match ranges.last_mut() {
            Some(last)
                if last.protocol == protocol
                    && last.written == written
                    && last.ports.end().checked_add(1) == Some(key.port) =>
            {
                last.ports = *last.ports.start()..=key.port;
            }
            _ => ranges.push(PortRange { protocol, ports: key.port..=key.port, written }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PortSpec, String> {
        text.parse().map_err(|error: BadPort| error.to_string())
    }

    #[test]
    fn a_port_stands_for_both_protocols_unless_one_is_named() {
        let keys = |text| parse(text).unwrap().keys().map(|key| (key.protocol, key.port)).collect::<Vec<_>>();
        assert_eq!(keys("8080"), [(6, 8080), (17, 8080)]);
        assert_eq!(keys("53/udp"), [(17, 53)]);
        assert_eq!(keys("8080-8082/tcp"), [(6, 8080), (6, 8081), (6, 8082)]);
        assert_eq!(keys("1-65535").len(), 2 * 65535);
        assert_eq!(keys("65535/tcp"), [(6, 65535)]);
    }

    #[test]
    fn an_invalid_port_is_refused_with_the_syntax() {
        for text in [
            "", "0", "65536", "-1", "+80", "80-", "-80", "90-80", "80/sctp", "80/", "http", " 80", "80 ",
            "0-5",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(SYNTAX), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_port_is_shown_as_it_is_written() {
        for text in ["8080", "53/udp", "8080-8090/tcp", "1-65535"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn ports_are_shared_where_numbers_and_protocol_are() {
        let shared = |one, other| {
            let both = [(one, other), (other, one)]
                .map(|(one, other)| parse(one).unwrap().shared_with(&parse(other).unwrap()));
            assert_eq!(both[0], both[1], "{one} {other}");
            both[0].as_ref().map(ToString::to_string)
        };
        assert_eq!(shared("8080", "8080/tcp").as_deref(), Some("8080/tcp"));
        assert_eq!(shared("1-100", "90-65535").as_deref(), Some("90-100"));
        assert_eq!(shared("1-65535/udp", "53").as_deref(), Some("53/udp"));
        assert_eq!(shared("53/udp", "53/tcp"), None);
        assert_eq!(shared("1-9", "10-11"), None);
    }

    #[test]
    fn flags_are_no_policy_and_part_no_neighbours() {
        let key = |port| PortKey::new(Protocol::Udp, port);
        let never_sent = PortPolicy { flags: PortPolicy::NEVER_SENT, ..PortPolicy::default() };
        let exempt = PortPolicy { cli: 1, ..PortPolicy::default() };
        let both = PortPolicy { cli: 1, ..never_sent };
        let entries = without_flags([(key(52), exempt), (key(53), both), (key(68), never_sent)].into());
        let shown: Vec<_> = ranges(entries).iter().map(|range| range.spec().to_string()).collect();
        assert_eq!(shown, ["52-53/udp"]);
    }

    #[test]
    fn neighbours_are_joined_only_if_they_are_alike() {
        let tcp = |port, written| (PortKey::new(Protocol::Tcp, port), written);
        let udp = |port, written| (PortKey::new(Protocol::Udp, port), written);
        let joined =
            ranges([tcp(82, 'a'), tcp(80, 'a'), tcp(81, 'a'), tcp(83, 'b'), udp(84, 'b'), tcp(65535, 'b')]);
        let shown: Vec<_> = joined.iter().map(|range| (range.spec().to_string(), range.written)).collect();
        let expected = [("80-82/tcp", 'a'), ("83/tcp", 'b'), ("65535/tcp", 'b'), ("84/udp", 'b')]
            .map(|(s, w)| (s.to_owned(), w));
        assert_eq!(shown, expected);
    }
}
