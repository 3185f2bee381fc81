//! How a lab's Windows misbehaves from the start: options of `shell` and of `vm --shell`.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Error, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::port::{Port, PortRange};

/// The heading of these options in a help text.
const HEADING: &str = "Windows in the shell";

/// Options that say how Windows starts. `windows help` in the shell shows the switches that work while it runs.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = HEADING)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch on the command line")]
pub struct Switches {
    /// Windows refuses the guest's binds in these ranges: 49152-65535 from WSL 2.8.7 to 2.9.4
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    pub refuse_binds: Vec<PortRange>,
    /// Programs on Windows have these ports: Windows refuses the guest's binds
    #[arg(long, value_name = "PORT[/udp]", value_delimiter = ',')]
    pub take: Vec<Port>,
    /// The Hyper-V firewall drops what goes to the guest on these ports
    #[arg(long, value_name = "PORT[/udp]", value_delimiter = ',')]
    pub block: Vec<Port>,
    /// WSL's ignoredPorts: Windows does not hear of binds of these ports
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub ignored_ports: Vec<u16>,
    /// WSL's hostAddressLoopback: the LAN address leads to the guest, from Windows and from Linux
    #[arg(long)]
    pub host_address_loopback: bool,
    /// A neighbour on the LAN: in the shell, `neighbour COMMAND` runs there
    #[arg(long)]
    pub neighbour: bool,
    /// Garble the destination ports of these TCP packets, of all or of so many in a thousand
    #[arg(long, value_name = "syn,syn-ack,rst[:PER_MILLE]")]
    pub garble: Option<Garble>,
    /// A part of the network is missing
    #[arg(long, value_name = "PART")]
    pub half_made: Option<Part>,
    /// Windows refuses IPv6 connections to localhost at once, instead of losing them
    #[arg(long)]
    pub refuse_ipv6: bool,
    /// Windows accepts no connections to a port that was just released
    #[arg(long)]
    pub no_ghosts: bool,
    /// When Windows gives up a port that no socket of the guest holds; 60 on WSL
    #[arg(long, value_name = "SECONDS")]
    pub give_up_after: Option<u64>,
}

impl Switches {
    /// The command line that parses to these switches.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut value = |name: &str, text: String| arguments.push(format!("--{name}={text}"));
        self.refuse_binds.iter().for_each(|range| value("refuse-binds", range.to_string()));
        self.take.iter().for_each(|port| value("take", port.to_string()));
        self.block.iter().for_each(|port| value("block", port.to_string()));
        self.ignored_ports.iter().for_each(|port| value("ignored-ports", port.to_string()));
        self.garble.iter().for_each(|garble| value("garble", garble.to_string()));
        self.half_made.iter().for_each(|part| value("half-made", value_name(part)));
        self.give_up_after.iter().for_each(|seconds| value("give-up-after", seconds.to_string()));
        let flags = [
            (self.host_address_loopback, "--host-address-loopback"),
            (self.neighbour, "--neighbour"),
            (self.refuse_ipv6, "--refuse-ipv6"),
            (self.no_ghosts, "--no-ghosts"),
        ];
        arguments.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()));
        arguments
    }
}

/// A part of a mirrored network that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The guest has no loopback0
    NoLoopback0,
    /// eth0 is down
    Eth0Down,
    /// Table 127 is empty
    #[value(name = "no-table-127")]
    NoTable127,
    /// loopback0 has no neighbour entry of the gateway
    NoNeighbour,
}

/// A kind of TCP packets whose destination port Windows may garble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Packet {
    /// SYN without ACK
    Syn,
    /// SYN with ACK
    SynAck,
    /// RST
    Rst,
}

/// Which packets Windows garbles: `syn,rst`, `syn:100` for a tenth, `off` for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garble {
    /// Packets of these kinds.
    pub kinds: Vec<Packet>,
    /// How many of a thousand.
    pub per_mille: u32,
}

impl FromStr for Garble {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "off" {
            return Ok(Self::default());
        }
        let (kinds, share) = text.split_once(':').unwrap_or((text, "1000"));
        let per_mille = share.parse().with_context(|| format!("{share:?} is no share of a thousand"))?;
        ensure!((1..=1000).contains(&per_mille), "{share} is no share of a thousand");
        let kind = |name: &str| match Packet::from_str(name, false) {
            Ok(kind) => Ok(kind),
            Err(_) => bail!("{name:?} is neither syn, syn-ack nor rst"),
        };
        Ok(Self { kinds: kinds.split(',').map(kind).collect::<Result<_>>()?, per_mille })
    }
}

impl fmt::Display for Garble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kinds.is_empty() {
            return f.write_str("off");
        }
        let kinds: Vec<_> = self.kinds.iter().map(value_name).collect();
        write!(f, "{}:{}", kinds.join(","), self.per_mille)
    }
}

fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        switches: Switches,
    }

    fn parse(arguments: &[&str]) -> Result<Switches, String> {
        let line = Line::try_parse_from(["shell"].iter().chain(arguments));
        line.map(|line| line.switches).map_err(|error| error.to_string())
    }

    #[test]
    fn every_switch_is_passed_on() {
        let all = [
            "--refuse-binds=49152-65535,8080",
            "--take=80,53/udp",
            "--block=81",
            "--ignored-ports=53,54",
            "--host-address-loopback",
            "--neighbour",
            "--garble=syn,syn-ack,rst:100",
            "--half-made=no-table-127",
            "--refuse-ipv6",
            "--no-ghosts",
            "--give-up-after=3",
        ];
        let switches = parse(&all).unwrap();
        assert_eq!(switches.garble.as_ref().unwrap().per_mille, 100);
        assert_eq!(switches.half_made, Some(Part::NoTable127));
        let passed = switches.arguments();
        assert_eq!(parse(&passed.iter().map(String::as_str).collect::<Vec<_>>()), Ok(switches));
        assert_eq!(Switches::default().arguments(), Vec::<String>::new());
        assert_eq!(parse(&[]), Ok(Switches::default()));
    }

    #[test]
    fn garbling_names_kinds_and_a_share() {
        let parse = |text: &str| text.parse::<Garble>().map(|garble| garble.to_string()).ok();
        assert_eq!(parse("syn,rst"), Some("syn,rst:1000".to_owned()));
        assert_eq!(parse("syn-ack:1"), Some("syn-ack:1".to_owned()));
        assert_eq!(parse("off"), Some("off".to_owned()));
        for wrong in ["", "fin", "syn,", "syn:0", "syn:1001", "syn:x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_switch_is_refused_before_anything_starts() {
        for wrong in [["--half-made=loopback"], ["--refuse-binds=9-8"], ["--take=http"], ["--garble=fin"]] {
            let error = parse(&wrong).unwrap_err();
            assert!(error.contains("invalid value"), "{error}");
        }
    }
}
