//! Obstacles: what keeps the kernel from translating a carried flow's packets.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::ptr;

use wsl_mirror_core::abi::Protocol;

use super::packet::{Applies, Flow, Goes, Packet, all_apply};
use super::ruleset::{Chain, Effect, Ruleset, Verdict};

/// Conntrack's own priority (`NF_IP_PRI_CONNTRACK`). Of two hooks with one priority the kernel calls the newer one first.
const CONNTRACK: i64 = -200;

/// Why no flow can be carried on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// No table has a nat chain: NAT's hooks are missing.
    NoNat,
    /// No rule needs conntrack: its hooks are missing.
    NoConntrack,
    /// This rule takes packets of carried flows out of conntrack.
    Untracked(String),
    /// This rule puts packets of carried flows into a conntrack zone of their own.
    Zone(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNat => f.write_str(
                "no table has a nat chain, so the kernel translates no packet (`nft flush ruleset` also removes WSL's \
                 own chains: `wsl --shutdown` in Windows restores them, or restart the container engine)",
            ),
            Self::NoConntrack => f.write_str(
                "no rule needs conntrack, so the kernel tracks no packet (`nft flush ruleset` also removes WSL's own \
                 rules: `wsl --shutdown` in Windows restores them, or restart the container engine)",
            ),
            Self::Untracked(rule) => write!(
                f,
                "a rule keeps packets of carried flows out of conntrack; exclude what comes in or leaves by loopback0 \
                 from it: {rule}"
            ),
            Self::Zone(rule) => write!(
                f,
                "a rule puts packets of carried flows into a conntrack zone; exclude what comes in or leaves by \
                 loopback0 from it: {rule}"
            ),
        }
    }
}

/// The first rule of each kind that may take a carried flow's packet from its conntrack entry.
pub fn of_rules(ruleset: &Ruleset, interface: &str, alias: [u8; 4]) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let places = ruleset.places();
    for protocol in Protocol::ALL {
        for packet in carried(interface, alias, protocol) {
            let entered = |chain: &&Chain| {
                chain.sees_ipv4
                    && chain
                        .base
                        .as_ref()
                        .is_some_and(|base| base.hook == packet.hook && base.priority <= CONNTRACK)
            };
            let mut walk =
                Walk { ruleset, places: &places, packet, passages: HashMap::new(), found: Vec::new() };
            for chain in ruleset.chains.iter().filter(entered) {
                walk.go(chain);
            }
            found.extend(walk.found);
        }
    }
    let first = |effect| found.iter().find(|(kind, _)| *kind == effect).map(|(_, text)| (*text).to_owned());
    let untracked = first(Effect::Untracks).map(Obstacle::Untracked);
    untracked.into_iter().chain(first(Effect::Zones).map(Obstacle::Zone)).collect()
}

/// A packet from Windows behind the ingress program, and a reply of the listener.
///
/// Packets of direct flows are left out: a rule may untrack the source alias or a bridge, and leave steered flows alone. The
/// direct flow then stays unanswered, which the ingress program notices.
fn carried(interface: &str, alias: [u8; 4], protocol: Protocol) -> [Packet<'_>; 2] {
    let localhost = u32::from(Ipv4Addr::LOCALHOST);
    let steered = Packet {
        hook: "prerouting",
        in_interface: Some(interface),
        out_interface: None,
        source: localhost,
        destination: u32::from_be_bytes(alias),
        protocol: protocol as u8,
        port: None,
        goes: Goes::Here,
        flow: Flow::Any,
    };
    let reply = Packet {
        hook: "output",
        in_interface: None,
        out_interface: Some(interface),
        destination: localhost,
        ..steered
    };
    [steered, reply]
}

/// Where a packet is after a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    /// It may be at the end of the chain.
    Back,
    /// It is through with the base chain, for sure.
    Ended,
}

/// A packet's way through the chains.
struct Walk<'a> {
    ruleset: &'a Ruleset,
    places: &'a HashMap<(&'a str, &'a str), usize>,
    packet: Packet<'a>,
    /// Chains that were walked. The same packet has the same way through a chain each time.
    passages: HashMap<*const Chain, Passage>,
    found: Vec<(Effect, &'a str)>,
}

impl<'a> Walk<'a> {
    fn go(&mut self, chain: &'a Chain) -> Passage {
        if let Some(known) = self.passages.get(&ptr::from_ref(chain)) {
            return *known;
        }
        // For a chain that jumps back to itself, which the kernel refuses.
        self.passages.insert(ptr::from_ref(chain), Passage::Back);
        let passage = self.walk(chain);
        self.passages.insert(ptr::from_ref(chain), passage);
        passage
    }

    fn walk(&mut self, chain: &'a Chain) -> Passage {
        for rule in &chain.rules {
            let applies = all_apply(&rule.conditions, self.packet);
            if applies == Applies::No {
                continue;
            }
            self.found.extend(rule.effect.map(|effect| (effect, rule.text.as_str())));
            let is_certain = applies == Applies::Yes;
            match &rule.verdict {
                Verdict::End | Verdict::Drop | Verdict::Queue if is_certain => return Passage::Ended,
                Verdict::Return if is_certain => return Passage::Back,
                Verdict::Continue | Verdict::End | Verdict::Drop | Verdict::Queue | Verdict::Return => {}
                Verdict::Jump(name) | Verdict::Goto(name) => {
                    let place = self.places.get(&(chain.table.as_str(), name.as_str()));
                    let Some(target) = place.and_then(|at| self.ruleset.chains.get(*at)) else { continue };
                    let passage = self.go(target);
                    let leaves = passage == Passage::Ended || matches!(rule.verdict, Verdict::Goto(_));
                    if is_certain && leaves {
                        return passage;
                    }
                }
            }
        }
        Passage::Back
    }
}

#[cfg(test)]
mod tests {
    use super::super::ruleset::{Base, Condition, Kind, Policy, Rule, Sense};
    use super::*;

    fn chain(name: &str, hook: Option<&str>, rules: Vec<Rule>) -> Chain {
        let base = hook.map(|hook| Base {
            hook: hook.into(),
            priority: -300,
            kind: Kind::Filter,
            policy: Policy::Accept,
        });
        Chain { table: "t".into(), name: name.into(), sees_ipv4: true, base, rules }
    }

    fn notrack(conditions: Vec<Condition>) -> Rule {
        Rule { conditions, effect: Some(Effect::Untracks), text: "the rule".into(), ..Rule::default() }
    }

    fn then(conditions: Vec<Condition>, verdict: Verdict) -> Rule {
        Rule { conditions, verdict, ..Rule::default() }
    }

    fn is_in_the_way(chains: Vec<Chain>) -> bool {
        let found = of_rules(&Ruleset { chains }, "loopback0", [127, 119, 0, 1]);
        assert!(found.is_empty() || found == [Obstacle::Untracked("the rule".into())], "{found:?}");
        !found.is_empty()
    }

    fn by(hook: &str, condition: Condition) -> bool {
        is_in_the_way(vec![chain("a", Some(hook), vec![notrack(vec![condition])])])
    }

    #[test]
    fn a_rule_for_every_packet_is_in_the_way_on_both_hooks() {
        for hook in ["prerouting", "output"] {
            assert!(is_in_the_way(vec![chain("a", Some(hook), vec![notrack(vec![])])]), "{hook}");
            assert!(by(hook, Condition::Unknown), "{hook}");
        }
        assert!(!is_in_the_way(vec![chain("a", Some("forward"), vec![notrack(vec![])])]));
        assert!(!is_in_the_way(vec![chain("a", None, vec![notrack(vec![])])]));
    }

    #[test]
    fn a_rule_for_other_packets_is_not_in_the_way() {
        use Condition::{Destination, InInterface, OutInterface, Protocol, Source};
        let names = |name: &str| vec![name.to_owned()];
        let address = |last: [u8; 4]| vec![u32::from_be_bytes(last)..=u32::from_be_bytes(last)];
        let loopback = || vec![0x7f00_0000..=0x7fff_ffff];
        for (hook, condition, expected) in [
            ("prerouting", InInterface(names("loopback0"), Sense::Is), true),
            ("prerouting", InInterface(names("loop*"), Sense::Is), true),
            ("prerouting", InInterface(names("lo"), Sense::IsNot), true),
            ("prerouting", InInterface(names("lo"), Sense::Is), false),
            ("prerouting", InInterface(names("loopback0"), Sense::IsNot), false),
            ("prerouting", OutInterface(names("loopback0"), Sense::IsNot), false),
            ("output", OutInterface(names("loopback0"), Sense::Is), true),
            ("output", OutInterface(names("lo"), Sense::Is), false),
            ("output", InInterface(names("lo"), Sense::IsNot), false),
            ("prerouting", Destination(loopback(), Sense::Is), true),
            ("prerouting", Destination(address([127, 119, 0, 1]), Sense::Is), true),
            ("prerouting", Destination(address([127, 0, 0, 1]), Sense::Is), false),
            ("output", Destination(address([127, 0, 0, 1]), Sense::Is), true),
            ("output", Source(loopback(), Sense::Is), true),
            ("prerouting", Protocol(vec![17], Sense::Is), true),
            ("prerouting", Protocol(vec![6, 17], Sense::IsNot), false),
        ] {
            assert_eq!(by(hook, condition.clone()), expected, "{hook} {condition:?}");
        }
    }

    #[test]
    fn a_rule_for_direct_flows_alone_is_not_in_the_way() {
        let address = |address: [u8; 4]| vec![u32::from_be_bytes(address)..=u32::from_be_bytes(address)];
        for condition in [
            Condition::Source(address([192, 0, 0, 8]), Sense::Is),
            Condition::Source(vec![0x7f00_0000..=0x7fff_ffff], Sense::IsNot),
            Condition::InInterface(vec!["docker0".to_owned()], Sense::Is),
        ] {
            assert!(!by("prerouting", condition.clone()), "{condition:?}");
        }
    }

    #[test]
    fn a_chain_behind_conntrack_is_not_in_the_way() {
        let mut late = chain("a", Some("prerouting"), vec![notrack(vec![])]);
        late.base.as_mut().unwrap().priority = -199;
        assert!(!is_in_the_way(vec![late.clone()]));
        late.base.as_mut().unwrap().priority = -200;
        assert!(is_in_the_way(vec![late.clone()]), "the newer one of two comes first");
        late.sees_ipv4 = false;
        assert!(!is_in_the_way(vec![late]));
    }

    #[test]
    fn only_a_certain_verdict_before_the_rule_hides_it() {
        let with = |first: Rule| {
            is_in_the_way(vec![
                chain("a", Some("prerouting"), vec![first, notrack(vec![])]),
                chain("ends", None, vec![then(vec![], Verdict::End)]),
                chain("empty", None, vec![]),
            ])
        };
        let jump = |name: &str| Verdict::Jump(name.into());
        for (verdict, hides) in [
            (Verdict::End, true),
            (Verdict::Return, true),
            (Verdict::Continue, false),
            (jump("ends"), true),
            (jump("empty"), false),
            (jump("nowhere"), false),
            (Verdict::Goto("empty".into()), true),
        ] {
            assert_eq!(with(then(vec![], verdict.clone())), !hides, "{verdict:?}");
            assert!(with(then(vec![Condition::Unknown], verdict.clone())), "perhaps {verdict:?}");
        }
    }

    #[test]
    fn a_rule_that_is_jumped_to_is_found() {
        let jump = then(vec![Condition::Unknown], Verdict::Jump("there".into()));
        let chains =
            vec![chain("a", Some("output"), vec![jump]), chain("there", None, vec![notrack(vec![])])];
        assert!(is_in_the_way(chains));
    }

    #[test]
    fn chains_that_jump_in_circles_come_to_an_end() {
        let jump = |name: &str| then(vec![], Verdict::Jump(name.into()));
        let circle = vec![chain("a", Some("prerouting"), vec![jump("a"), notrack(vec![])])];
        assert!(is_in_the_way(circle));
        let mut chains: Vec<_> = (0..60)
            .map(|n| chain(&n.to_string(), None, (0..4).map(|_| jump(&(n + 1).to_string())).collect()))
            .collect();
        chains.push(chain("a", Some("prerouting"), vec![jump("0")]));
        assert!(!is_in_the_way(chains));
    }
}
