//! What a user of the shell tells its Windows while it runs: `windows refuse 8080`, `windows network anew`.

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use xtask::shell::{Garble, Part, Port, PortRange};

/// Tell the shell's Windows how to misbehave; any other word is a program that runs on Windows
#[derive(Parser, Debug)]
#[command(name = "windows", no_binary_name = true, bin_name = "windows")]
struct Line {
    #[command(subcommand)]
    order: Order,
}

/// A change of how Windows behaves.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Refuse the guest's binds in these ranges and in no others; in none without a range
    Refuse { ranges: Vec<PortRange> },
    /// A program on Windows has these ports: their binds are refused
    #[command(arg_required_else_help = true)]
    Take { ports: Vec<Port> },
    /// The program on Windows has given these ports up
    #[command(arg_required_else_help = true)]
    GiveBack { ports: Vec<Port> },
    /// The Hyper-V firewall drops what goes to the guest on these ports
    #[command(arg_required_else_help = true)]
    Block { ports: Vec<Port> },
    /// The Hyper-V firewall lets these ports pass again
    #[command(arg_required_else_help = true)]
    Unblock { ports: Vec<Port> },
    /// The Hyper-V firewall drops what the guest sends to these ports
    #[command(arg_required_else_help = true)]
    BlockOutbound { ports: Vec<Port> },
    /// The Hyper-V firewall lets the guest send to these ports again
    #[command(arg_required_else_help = true)]
    UnblockOutbound { ports: Vec<Port> },
    /// Garble the destination ports of TCP packets: `syn,syn-ack,rst`, `syn:100` for a tenth, `off`
    Garble { kinds: Garble },
    /// Windows forgets what it knows of the guest
    #[command(subcommand)]
    Forget(Forgotten),
    /// Change the mirrored network
    #[command(subcommand)]
    Network(Change),
    /// Count the packets that Windows has dropped and garbled
    Dropped,
}

/// What Windows forgets.
#[derive(Subcommand, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// Every flow
    Flows,
    /// Every bind and every flow
    Binds,
}

/// A change of the mirrored network.
#[derive(Subcommand, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Other NICs, addresses and ports, and every bind forgotten
    Anew,
    /// Take a part away
    HalfMade { part: Part },
    /// Give a part back
    Complete { part: Part },
}

impl Order {
    /// The order, or the text for a person that typed something else, and whether it is an error.
    pub(crate) fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, (String, bool)> {
        Line::try_parse_from(words).map(|line| line.order).map_err(|error| {
            let is_help = error.kind() == ErrorKind::DisplayHelp;
            (error.to_string(), !is_help)
        })
    }

    /// The words with which an order begins; a program on Windows is called by any other.
    pub(crate) fn words() -> Vec<String> {
        let line = Line::command();
        let orders = line.get_subcommands().map(|order| order.get_name().to_owned());
        orders.chain(["help".to_owned()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use xtask::shell::{Packet, Protocol};

    use super::*;

    fn parse(line: &str) -> Result<Order, (String, bool)> {
        Order::parse(line.split_whitespace())
    }

    #[test]
    fn an_order_is_parsed_from_words() {
        let tcp = |number| Port { number, protocol: Protocol::Tcp };
        let udp = |number| Port { number, protocol: Protocol::Udp };
        for (line, order) in [
            ("refuse 8080", Order::Refuse { ranges: vec![PortRange(8080..=8080)] }),
            (
                "refuse 49152-65535 80",
                Order::Refuse { ranges: vec![PortRange(49_152..=65_535), PortRange(80..=80)] },
            ),
            ("refuse", Order::Refuse { ranges: Vec::new() }),
            ("take 80 53/udp", Order::Take { ports: vec![tcp(80), udp(53)] }),
            ("give-back 80", Order::GiveBack { ports: vec![tcp(80)] }),
            ("block 80", Order::Block { ports: vec![tcp(80)] }),
            ("unblock 80/udp", Order::Unblock { ports: vec![udp(80)] }),
            ("block-outbound 80", Order::BlockOutbound { ports: vec![tcp(80)] }),
            ("unblock-outbound 80", Order::UnblockOutbound { ports: vec![tcp(80)] }),
            ("garble syn:5", Order::Garble { kinds: Garble { kinds: vec![Packet::Syn], per_mille: 5 } }),
            ("garble off", Order::Garble { kinds: Garble::default() }),
            ("forget flows", Order::Forget(Forgotten::Flows)),
            ("forget binds", Order::Forget(Forgotten::Binds)),
            ("network anew", Order::Network(Change::Anew)),
            ("network half-made no-table-127", Order::Network(Change::HalfMade { part: Part::NoTable127 })),
            ("network complete eth0-down", Order::Network(Change::Complete { part: Part::Eth0Down })),
            ("dropped", Order::Dropped),
        ] {
            assert_eq!(parse(line), Ok(order), "{line}");
        }
    }

    #[test]
    fn a_wrong_order_is_an_error_and_help_is_none() {
        for wrong in ["", "refuse http", "take", "garble fin", "network", "network half-made lo", "curl"] {
            let (text, is_error) = parse(wrong).unwrap_err();
            assert!(is_error && !text.is_empty(), "{wrong}: {text}");
        }
        let (text, is_error) = parse("help").unwrap_err();
        assert!(!is_error && text.contains("network"), "{text}");
    }

    #[test]
    fn every_order_begins_with_a_word_of_the_list() {
        let words = Order::words();
        for word in ["refuse", "give-back", "network", "help"] {
            assert!(words.iter().any(|known| known == word), "{word}: {words:?}");
        }
        assert!(!words.iter().any(|word| word == "busybox"));
    }
}
