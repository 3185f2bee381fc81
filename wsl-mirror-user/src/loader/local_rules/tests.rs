use std::net::Ipv4Addr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use wsl_mirror_core::abi::Hook;

use super::*;
use crate::host::routing::Route;
use crate::loader::attachments::Direction;
use crate::loader::source_alias::SourceAlias;

const IFINDEX: u32 = 7;
const BLOCK: RangeInclusive<u16> = 44620..=48715;

/// WSL's own route.
fn windows() -> Route {
    let builder =
        RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(Ipv4Addr::LOCALHOST, 32).table_id(127);
    Route(builder.output_interface(IFINDEX).gateway(Ipv4Addr::new(169, 254, 73, 152)).build())
}

fn routing(rules: &[Rule]) -> Routing {
    Routing { rules: rules.to_vec(), routes: vec![windows()], addresses: Vec::new() }
}

fn conditions() -> Conditions<'static> {
    Conditions {
        switch: Switch::Auto,
        carried_mark: 0x80,
        interface: "loopback0",
        ifindex: IFINDEX,
        filters: Filters { leased: Some(BLOCK), mark_bits: 0 },
        follower: Follower::Agent,
    }
}

fn with(rules: &[Rule], change: impl FnOnce(&mut Conditions<'_>)) -> LocalRules {
    let mut conditions = conditions();
    change(&mut conditions);
    LocalRules::of(&routing(rules), &conditions, &[])
}

fn complete_rules() -> Vec<Rule> {
    objects::rules(&BLOCK, 0x40).to_vec()
}

/// Everything is there.
pub fn complete() -> LocalRules {
    with(&complete_rules(), |_| {})
}

/// Nothing is there yet.
pub fn fresh() -> LocalRules {
    with(&[], |_| {})
}

/// The block has moved.
pub fn moved() -> LocalRules {
    with(&complete_rules(), |conditions| conditions.filters.leased = Some(50000..=54095))
}

/// Which block it is, is not known any more.
pub fn unknown() -> LocalRules {
    with(&complete_rules(), |conditions| conditions.filters.leased = None)
}

/// `load`, beside an agent or without one.
pub fn of_load(follower: Follower) -> LocalRules {
    with(&complete_rules(), |conditions| conditions.follower = follower)
}

fn words(rules: &LocalRules) -> Vec<String> {
    rules.changes().iter().map(ToString::to_string).collect()
}

/// A policy route rule of somebody else's that goes by a mark.
fn marked(value: u32, mask: u32) -> Rule {
    let mut message = RuleMessage::default();
    message.attributes = vec![RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)];
    Rule::new(message)
}

#[test]
fn a_first_run_adds_the_three_rules() {
    assert_eq!(
        words(&fresh()),
        [
            "add the policy route rule `pref 0 to 127.0.0.1 fwmark 0x40/0x40 lookup local`",
            "add the policy route rule `pref 0 to 127.0.0.1 ipproto udp dport 44620-48715 lookup local`",
            "add the policy route rule `pref 0 to 127.0.0.1 ipproto tcp dport 44620-48715 lookup local`",
        ]
    );
    assert_eq!(fresh().lo_mark(0), 0x40);
}

#[test]
fn a_restart_changes_nothing() {
    assert_eq!(complete().changes(), []);
    assert_eq!(complete().lo_mark(0x40), 0x40);
    assert_eq!(complete().kept(), Some(&Kept { ports: BLOCK, bit: 0x40 }));
}

/// What the kernel adds to a rule when it lists it (`fib_nl_fill_rule`).
#[test]
fn a_rule_is_the_same_as_the_kernel_tells_it() {
    for rule in complete_rules() {
        let mut message = rule.message().clone();
        message.header.flags = RuleFlags::Unresolved;
        message.attributes.insert(0, RuleAttribute::SuppressPrefixLen(u32::MAX));
        message.attributes.push(RuleAttribute::Priority(0));
        message.attributes.reverse();
        assert_eq!(Rule::new(message), rule);
    }
}

#[test]
fn a_block_that_moves_takes_its_rules_along_first() {
    let words = words(&moved());
    assert_eq!(words.len(), 4, "{words:?}");
    assert!(words[..2].iter().all(|step| step.starts_with("remove ") && step.contains("dport 44620-48715")));
    assert!(words[2..].iter().all(|step| step.starts_with("add ") && step.contains("dport 50000-54095")));
    assert_eq!(moved().lo_mark(0x40), 0x40, "the bit of the rules that stay");
}

#[test]
fn rules_go_where_they_cannot_be_right() {
    for (obstacle, change) in [
        (Obstacle::NoBlock, (|conditions| conditions.filters.leased = None) as fn(&mut Conditions<'_>)),
        (Obstacle::SwitchedOff, |conditions| conditions.switch = Switch::Off),
        (Obstacle::NoAgent, |conditions| conditions.follower = Follower::Nobody),
        (Obstacle::NoWindows("loopback0".into()), |conditions| conditions.ifindex = 0),
        (Obstacle::NoWindows("loopback0".into()), |conditions| conditions.ifindex = IFINDEX + 1),
        (Obstacle::NoBit, |conditions| conditions.filters.mark_bits = u32::MAX),
    ] {
        let rules = with(&complete_rules(), change);
        assert_eq!(rules.obstacle(), Some(&obstacle));
        assert_eq!(rules.changes(), removal(&complete_rules()), "{obstacle}");
        assert_eq!(rules.lo_mark(0x40), 0);
    }
    let without_route = Routing { routes: Vec::new(), ..routing(&complete_rules()) };
    let rules = LocalRules::of(&without_route, &conditions(), &[]);
    assert_eq!(rules.changes(), removal(&complete_rules()), "table 127 is empty");
}

#[test]
fn load_beside_an_agent_leaves_its_rules_alone() {
    for rules in [complete_rules(), Vec::new()] {
        let rules = with(&rules, |conditions| conditions.follower = Follower::AgentBesideUs);
        assert_eq!((rules.changes(), rules.lo_mark(0x20)), (Vec::new(), 0x20));
    }
}

#[test]
fn another_distributions_rules_are_left_alone() {
    let of = |index| LocalRules::of(&routing(&complete_rules()), &conditions(), &[index]);
    assert_eq!((of(IFINDEX).changes(), of(IFINDEX).lo_mark(0x40)), (Vec::new(), 0));
    assert!(of(IFINDEX).are_anothers());
    assert_eq!(of(IFINDEX + 1), complete(), "that one steers another interface");
    let program = Instance { ifindex: IFINDEX, direction: Direction::Ingress, hook: Hook::Tcx, program: 9 };
    assert!(LocalRules::find(&routing(&[]), &conditions(), &[program]).are_anothers());
}

#[test]
fn any_mix_of_rules_comes_to_the_three() {
    let old = objects::rules(&(1024..=5119), 0x20);
    let kinds = [complete_rules(), old.to_vec()].concat();
    for mix in 0..kinds.len().pow(4) {
        let mut rules: Vec<Rule> =
            (0_u32..4).map(|place| kinds[mix / kinds.len().pow(place) % kinds.len()].clone()).collect();
        let live = rules.iter().find_map(Rule::mark).map_or(0x40, |(bit, _)| bit);
        for change in with(&rules, |_| {}).changes() {
            match change {
                Change::AddRule(rule) => rules.push(rule),
                Change::RemoveRule(rule) => {
                    // The kernel deletes the first of equal ones.
                    let at = rules.iter().position(|other| *other == rule).expect("no such rule");
                    rules.remove(at);
                }
                other => panic!("{other}"),
            }
        }
        assert_eq!(rules.len(), 3, "{rules:?}");
        assert!(objects::rules(&BLOCK, live).iter().all(|rule| rules.contains(rule)), "{rules:?}");
    }
}

#[test]
fn the_bit_is_one_that_nobody_else_uses() {
    let bit =
        |rules: &[Rule], change: fn(&mut Conditions<'_>)| with(rules, change).kept().map(|kept| kept.bit);
    assert_eq!(bit(&[], |_| {}), Some(0x40));
    assert_eq!(bit(&[], |conditions| conditions.carried_mark = 0xc0), Some(0x20));
    assert_eq!(bit(&[], |conditions| conditions.filters.mark_bits = 0x60), Some(0x10));
    assert_eq!(bit(&[marked(0x40, 0x40)], |_| {}), Some(0x20));
    assert_eq!(bit(&[marked(0, 0x70)], |_| {}), Some(0x8), "a rule for marks without the bit");
    assert_eq!(bit(&[marked(0xca6c, u32::MAX)], |_| {}), Some(0x10), "WireGuard's rule is for one mark");
    let live = objects::rules(&BLOCK, 0x10);
    assert_eq!(bit(&live, |_| {}), Some(0x10), "it stays");
    assert_eq!(bit(&[&live[..], &[marked(0x10, 0x10)]].concat(), |_| {}), Some(0x40));
}

#[test]
fn a_rules_range_ends_before_the_last_port() {
    let rules = objects::rules(&(61440..=65535), 0x40);
    assert!(rules[1].to_string().contains("dport 61440-65534"), "{}", rules[1]);
}

/// Both kinds carry our protocol number.
#[test]
fn the_source_alias_does_not_take_them_for_its_own() {
    let address = Ipv4Addr::from(wsl_mirror_core::abi::DEFAULT_SOURCE_ALIAS);
    let alias = |rules: &[Rule]| SourceAlias::find(&routing(rules), address, "loopback0", IFINDEX, &[]);
    assert_eq!(alias(&complete_rules()), alias(&[]));
    let of_alias: Vec<Rule> = alias(&[])
        .changes()
        .into_iter()
        .filter_map(|change| match change {
            Change::AddRule(rule) => Some(rule),
            _ => None,
        })
        .collect();
    assert_eq!(of_alias.len(), 3);
    assert_eq!(with(&of_alias, |_| {}), fresh());
}
