//! Ports, as a person types them.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use anyhow::{Context as _, Error, Result, ensure};

/// A range of ports: `49152-65535`, or one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        ensure!(first <= last, "{first} is above {last}");
        Ok(Self(first..=last))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of one protocol: `8080`, which is TCP, or `8080/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The number.
    pub number: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl FromStr for Port {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (port, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((port, "udp")) => (port, Protocol::Udp),
            Some((_, other)) => anyhow::bail!("{other:?} is neither tcp nor udp"),
        };
        Ok(Self { number: number(port)?, protocol })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", self.number)
    }
}

fn number(text: &str) -> Result<u16> {
    let number = text.parse().with_context(|| format!("{text:?} is no port"))?;
    ensure!(number != 0, "port 0 is no port");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_ports_or_one() {
        let parse = |text: &str| text.parse::<PortRange>().map(|range| range.0).map_err(|e| format!("{e:#}"));
        assert_eq!(parse("49152-65535"), Ok(49_152..=65_535));
        assert_eq!(parse("8080"), Ok(8080..=8080));
        assert_eq!(parse("9-8"), Err("9 is above 8".to_owned()));
        for wrong in ["", "-", "0", "1-", "65536", "1-2-3", "http"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_is_tcp_unless_it_says_udp() {
        let parse = |text: &str| text.parse::<Port>().map(|port| port.to_string()).ok();
        assert_eq!(parse("53"), Some("53/tcp".to_owned()));
        assert_eq!(parse("53/tcp"), Some("53/tcp".to_owned()));
        assert_eq!(parse("53/udp"), Some("53/udp".to_owned()));
        for wrong in ["", "/udp", "53/sctp", "53/", "0", "53/tcp/tcp/udp"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
