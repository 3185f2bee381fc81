//! A packet's way through the chains before conntrack, as far as one can tell from the rules.

use std::collections::BTreeSet;

use wsl_mirror_core::abi::{PortRule, Protocol};

use super::ruleset::{Chain, Condition, Drop, Rule, Ruleset, Sense, Verdict};

/// Conntrack's own priority (`NF_IP_PRI_CONNTRACK`): what comes before it meets packets that have no entry yet.
const CONNTRACK: i64 = -200;
/// How deep chains may jump (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;
/// How many rules are looked at in all: chains that jump to one another in every rule double the way each time.
const STEPS: u64 = 20_000_000;
/// 127.0.0.1.
const LOOPBACK: u32 = 0x7f00_0001;

/// An interface that no rule has heard of.
const ANOTHER: &str = "~";

/// The ports of 127.0.0.1 whose packets are dropped if they come in on `interface`, and not on `lo`.
pub fn drops(ruleset: &Ruleset, interface: &str) -> Vec<Drop> {
    let early: Vec<&Chain> = ruleset
        .chains
        .iter()
        .filter(|chain| chain.sees_ipv4)
        .filter(|chain| {
            chain.base.as_ref().is_some_and(|base| base.hook == "prerouting" && base.priority < CONNTRACK)
        })
        .collect();
    let reached = early.iter().map(|chain| chain.table.as_str()).collect::<BTreeSet<_>>();
    // Between two of these ports all are treated alike.
    let mut edges = BTreeSet::from([1]);
    for condition in ruleset
        .chains
        .iter()
        .filter(|chain| reached.contains(chain.table.as_str()))
        .flat_map(|chain| &chain.rules)
        .flat_map(|rule| &rule.conditions)
    {
        if let Condition::DestinationPort(ports, _) = condition {
            edges.extend(ports.iter().map(|range| u32::from(*range.start()).max(1)));
            edges.extend(ports.iter().map(|range| u32::from(*range.end()) + 1));
        }
    }
    let mut walk = Walk { ruleset, steps: STEPS };
    let mut drops: Vec<Drop> = Vec::new();
    for protocol in Protocol::ALL {
        let mut starts = edges.iter().copied().peekable();
        while let Some(start) = starts.next() {
            let end = starts.peek().map_or(u32::from(u16::MAX), |next| next - 1);
            let (Ok(start), Ok(end)) = (u16::try_from(start), u16::try_from(end)) else { continue };
            let packet = |interface| Packet { interface, protocol: protocol as u8, port: start };
            let Some(by) = early.iter().find_map(|chain| walk.dropped_by(chain, packet(interface))) else {
                continue;
            };
            if early.iter().any(|chain| walk.dropped_by(chain, packet("lo")).is_some()) {
                continue;
            }
            let is_everywhere = early.iter().any(|chain| walk.dropped_by(chain, packet(ANOTHER)).is_some());
            let rule = if is_everywhere { PortRule::NotOnLo } else { PortRule::Closed };
            match drops.last_mut() {
                Some(last)
                    if last.protocol == protocol
                        && last.rule == rule
                        && last.by == by
                        && u32::from(*last.ports.end()) + 1 == u32::from(start) =>
                {
                    last.ports = *last.ports.start()..=end;
                }
                _ => drops.push(Drop { protocol, ports: start..=end, rule, by: by.to_owned() }),
            }
        }
    }
    drops
}

/// The first packet of a flow to 127.0.0.1.
#[derive(Clone, Copy)]
struct Packet<'a> {
    interface: &'a str,
    protocol: u8,
    port: u16,
}

/// Where a packet is after a chain.
enum After<'a> {
    /// It may be through with the base chain.
    Through,
    /// It is gone, for sure.
    Dropped(&'a str),
    /// It may be at the end of the chain; if it is not, it is gone.
    Back,
}

/// Whether a rule, or a condition of it, is for a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Applies {
    No,
    Maybe,
    Yes,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    steps: u64,
}

impl<'a> Walk<'a> {
    /// The rule of a base chain's that drops the packet for sure.
    fn dropped_by(&mut self, chain: &'a Chain, packet: Packet<'_>) -> Option<&'a str> {
        match self.go(chain, packet, 0) {
            After::Dropped(by) => Some(by),
            After::Back if chain.base.as_ref().is_some_and(|base| base.drops) => Some(&chain.name),
            After::Back | After::Through => None,
        }
    }

    fn go(&mut self, chain: &'a Chain, packet: Packet<'_>, depth: usize) -> After<'a> {
        // Whether it may be back already, by a rule that may be for it or not.
        let mut may_be_back = false;
        for rule in &chain.rules {
            self.steps = self.steps.saturating_sub(1);
            if self.steps == 0 || depth > DEEPEST {
                return After::Through;
            }
            let applies = rule.applies(packet);
            if applies == Applies::No {
                continue;
            }
            let (after, comes_back) = match &rule.verdict {
                Verdict::Continue => continue,
                Verdict::Accept => (After::Through, false),
                Verdict::Drop => (After::Dropped(&rule.text), false),
                Verdict::Return => (After::Back, false),
                Verdict::Jump(name) | Verdict::Goto(name) => {
                    let Some(target) = self.ruleset.chain(&chain.table, name) else { continue };
                    (self.go(target, packet, depth + 1), matches!(rule.verdict, Verdict::Jump(_)))
                }
            };
            match after {
                // What may be let through is not dropped for sure, whatever comes next.
                After::Through => return After::Through,
                // What is dropped now and then is no port that has to be delivered in another way, but what goes
                // on from here may be dropped for sure by another rule.
                After::Dropped(_) if applies == Applies::Maybe => {}
                After::Dropped(_) if may_be_back => return After::Back,
                After::Dropped(by) => return After::Dropped(by),
                After::Back if comes_back => {}
                After::Back if applies == Applies::Maybe => may_be_back = true,
                After::Back => return After::Back,
            }
        }
        After::Back
    }
}

impl Rule {
    fn applies(&self, packet: Packet<'_>) -> Applies {
        let mut applies = Applies::Yes;
        for condition in &self.conditions {
            match condition.applies(packet) {
                Applies::Yes => {}
                Applies::No => return Applies::No,
                Applies::Maybe => applies = Applies::Maybe,
            }
        }
        applies
    }
}

impl Condition {
    fn applies(&self, packet: Packet<'_>) -> Applies {
        let (found, sense) = match self {
            Self::Interface(names, sense) => {
                (names.iter().any(|name| matches(name, packet.interface)), sense)
            }
            Self::Destination(addresses, sense) | Self::Source(addresses, sense) => {
                (addresses.iter().any(|range| range.contains(&LOOPBACK)), sense)
            }
            Self::Protocol(protocols, sense) => (protocols.contains(&packet.protocol), sense),
            Self::DestinationPort(ports, sense) => {
                (ports.iter().any(|range| range.contains(&packet.port)), sense)
            }
            Self::Unknown => return Applies::Maybe,
        };
        if found == (*sense == Sense::Is) { Applies::Yes } else { Applies::No }
    }
}

fn matches(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => pattern == interface,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::firewall::Base;

    fn chain(name: &str, base: bool, rules: Vec<Rule>) -> Chain {
        let base = base.then(|| Base { hook: "prerouting".into(), priority: -300, drops: false });
        Chain { table: "t".into(), name: name.into(), sees_ipv4: true, base, rules }
    }

    fn not_on_lo(verdict: Verdict) -> Rule {
        Rule {
            conditions: vec![Condition::Interface(vec!["lo".into()], Sense::IsNot)],
            verdict,
            text: "rule".into(),
            ..Rule::default()
        }
    }

    fn walked(chains: Vec<Chain>) -> Vec<Drop> {
        drops(&Ruleset { chains, marks: Vec::new() }, "loopback0")
    }

    #[test]
    fn a_drop_of_every_port_is_one_range_a_protocol() {
        let drops = walked(vec![chain("a", true, vec![not_on_lo(Verdict::Drop)])]);
        assert_eq!(
            drops.iter().map(|drop| drop.ports.clone()).collect::<Vec<_>>(),
            [1..=u16::MAX, 1..=u16::MAX]
        );
    }

    #[test]
    fn a_drop_on_lo_too_is_not_helped_by_lo() {
        let everywhere = Rule { verdict: Verdict::Drop, ..Rule::default() };
        assert_eq!(walked(vec![chain("a", true, vec![everywhere, not_on_lo(Verdict::Drop)])]), []);
    }

    #[test]
    fn a_drop_on_this_interface_alone_is_closed() {
        let with = |interface: &str| {
            let conditions = vec![Condition::Interface(vec![interface.into()], Sense::Is)];
            let rule = Rule { conditions, verdict: Verdict::Drop, ..Rule::default() };
            let drops = walked(vec![chain("a", true, vec![rule])]);
            drops.into_iter().map(|drop| drop.rule).collect::<Vec<_>>()
        };
        assert_eq!(with("loopback0"), [PortRule::Closed; 2]);
        assert_eq!(with("loop*"), [PortRule::Closed; 2]);
        assert_eq!(with("eth0"), []);
        let drops = walked(vec![chain("a", true, vec![not_on_lo(Verdict::Drop)])]);
        assert_eq!(drops[0].rule, PortRule::NotOnLo);
    }

    #[test]
    fn a_chain_of_another_hook_does_not_matter() {
        assert_eq!(walked(vec![chain("a", false, vec![not_on_lo(Verdict::Drop)])]), []);
        let mut late = chain("a", true, vec![not_on_lo(Verdict::Drop)]);
        late.base.as_mut().unwrap().priority = -150;
        assert_eq!(walked(vec![late]), []);
    }

    #[test]
    fn goto_and_return_end_the_chain_that_they_stand_in() {
        let goto = || not_on_lo(Verdict::Goto("empty".into()));
        let with = |first| {
            walked(vec![
                chain("a", true, vec![first, not_on_lo(Verdict::Drop)]),
                chain("empty", false, vec![]),
            ])
        };
        assert_eq!(with(goto()), []);
        assert_eq!(with(not_on_lo(Verdict::Return)), []);
        assert_eq!(with(not_on_lo(Verdict::Jump("empty".into()))).len(), 2);
        assert_eq!(with(not_on_lo(Verdict::Jump("nowhere".into()))).len(), 2);
    }

    /// A rule that may be for a packet or not.
    fn perhaps(verdict: Verdict) -> Rule {
        Rule { conditions: vec![Condition::Unknown], verdict, ..Rule::default() }
    }

    #[test]
    fn a_possible_accept_before_the_drop_hides_it() {
        let with = |first| walked(vec![chain("a", true, vec![first, not_on_lo(Verdict::Drop)])]);
        assert_eq!(with(perhaps(Verdict::Accept)), []);
        assert_eq!(with(perhaps(Verdict::Return)), []);
        // One that may drop it, or has no verdict, changes nothing.
        assert_eq!(with(perhaps(Verdict::Drop)).len(), 2);
        assert_eq!(with(perhaps(Verdict::Continue)).len(), 2);
        // Nor does one that is for another packet.
        let elsewhere = Condition::Interface(vec!["eth0".into()], Sense::Is);
        let mut first = perhaps(Verdict::Accept);
        first.conditions.push(elsewhere);
        assert_eq!(with(first).len(), 2);

        let on_lo = Rule {
            conditions: vec![Condition::Interface(vec!["lo".into()], Sense::Is)],
            verdict: Verdict::Accept,
            ..Rule::default()
        };
        let by_policy = |first| {
            let mut chain = chain("a", true, vec![first, on_lo.clone()]);
            chain.base.as_mut().unwrap().drops = true;
            walked(vec![chain])
        };
        assert_eq!(by_policy(perhaps(Verdict::Accept)), []);
        assert_eq!(by_policy(perhaps(Verdict::Return)).len(), 2, "back is where the policy is");
    }

    #[test]
    fn a_chain_that_may_be_jumped_to_counts_for_what_it_may_do() {
        let with = |first: Rule, there: Vec<Rule>| {
            let rules = vec![first, not_on_lo(Verdict::Drop)];
            walked(vec![chain("a", true, rules), chain("there", false, there)]).len()
        };
        let jump = || perhaps(Verdict::Jump("there".into()));
        let goto = || perhaps(Verdict::Goto("there".into()));
        for (there, after_jump, after_goto) in [
            (Verdict::Accept, 0, 0),
            (Verdict::Return, 2, 0),
            (Verdict::Continue, 2, 0),
            (Verdict::Drop, 2, 2),
        ] {
            assert_eq!(with(jump(), vec![not_on_lo(there.clone())]), after_jump, "{there:?}");
            assert_eq!(with(goto(), vec![not_on_lo(there.clone())]), after_goto, "{there:?}");
        }
        let there = || vec![perhaps(Verdict::Return), not_on_lo(Verdict::Drop)];
        let alone = |first| walked(vec![chain("a", true, vec![first]), chain("there", false, there())]);
        assert_eq!(alone(not_on_lo(Verdict::Jump("there".into()))), []);
        assert_eq!(
            with(not_on_lo(Verdict::Jump("there".into())), there()),
            2,
            "whoever comes back is dropped"
        );
    }

    #[test]
    fn chains_that_jump_in_circles_come_to_an_end() {
        let jump = |name: &str| not_on_lo(Verdict::Jump(name.into()));
        assert_eq!(walked(vec![chain("a", true, vec![jump("a"), not_on_lo(Verdict::Drop)])]), []);
        let mut chains: Vec<_> = (0..16)
            .map(|n| chain(&n.to_string(), false, (0..4).map(|_| jump(&(n + 1).to_string())).collect()))
            .collect();
        chains.push(chain("a", true, vec![jump("0")]));
        assert_eq!(walked(chains), []);
    }
}
