use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 73, 152);
const IFINDEX: u32 = 7;

/// A route by somebody else.
fn route(destination: [u8; 4], length: u8, table: u32) -> Route {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination.into(), length);
    Route(builder.table_id(table).output_interface(IFINDEX).gateway(GATEWAY).build())
}

/// WSL's own route.
fn windows() -> Route {
    route([127, 0, 0, 1], 32, 127)
}

/// WSL's state, and ours.
fn routing() -> Routing {
    Routing {
        rules: objects::rules(ADDRESS, "loopback0").to_vec(),
        routes: vec![windows(), route([0; 4], 0, 254), objects::route(ADDRESS, GATEWAY, IFINDEX)],
        addresses: vec![(Ipv4Addr::LOCALHOST, 1)],
    }
}

fn of(routing: &Routing) -> SourceAlias {
    SourceAlias::of(routing, ADDRESS, "loopback0", IFINDEX, &[])
}

fn with(change: impl FnOnce(&mut Routing)) -> SourceAlias {
    let mut routing = routing();
    change(&mut routing);
    of(&routing)
}

/// Everything is there.
pub fn complete() -> SourceAlias {
    of(&routing())
}

/// The route is gone: the link was down and up, and WSL has put its own back.
pub fn without_route() -> SourceAlias {
    with(|routing| drop(routing.routes.pop()))
}

/// Nothing is there, and nothing can be: the machine is not mirrored.
pub fn without_gateway() -> SourceAlias {
    of(&Routing::default())
}

/// Nothing is there yet.
pub fn fresh() -> SourceAlias {
    of(&Routing { routes: vec![windows()], ..Routing::default() })
}

/// Another program uses the address.
pub fn used() -> SourceAlias {
    with(|routing| routing.routes.push(route([192, 0, 0, 0], 24, 254)))
}

fn words(alias: &SourceAlias) -> Vec<String> {
    alias.changes().iter().map(ToString::to_string).collect()
}

#[test]
fn a_first_load_adds_rules_before_the_route() {
    assert_eq!(
        words(&fresh()),
        [
            "add the policy route rule `pref 0 from 192.0.0.8 iif loopback0 goto 1`",
            "add the policy route rule `pref 0 from 192.0.0.8 blackhole`",
            "add the policy route rule `pref 2 to 192.0.0.8 blackhole`",
            "add the route `192.0.0.8/32 via 169.254.73.152 table 127`",
        ]
    );
    assert!(!fresh().has_rules() && !fresh().has_route() && fresh().obstacle().is_none());
}

#[test]
fn a_second_load_changes_nothing() {
    assert_eq!(complete().changes(), []);
    assert!(complete().has_rules() && complete().has_route() && complete().obstacle().is_none());
}

/// What the kernel adds to a rule when it lists it.
#[test]
fn a_rule_is_the_same_as_the_kernel_tells_it() {
    let told = |rule: &Rule| {
        let mut message: RuleMessage = rule.message().clone();
        message.header.flags = RuleFlags::Unresolved | RuleFlags::IifDetached;
        message.header.table = 254;
        message.attributes.insert(0, RuleAttribute::Table(254));
        message.attributes.push(RuleAttribute::SuppressPrefixLen(u32::MAX));
        message.attributes.push(RuleAttribute::Priority(0));
        message.attributes.reverse();
        Rule::new(message)
    };
    let wanted = objects::rules(ADDRESS, "loopback0");
    assert_eq!(wanted.each_ref().map(told)[..2], wanted[..2], "the third one has another priority");
    let changed = |change: fn(&mut RuleMessage)| {
        let mut message = wanted[1].message().clone();
        change(&mut message);
        Rule::new(message)
    };
    for other in [
        changed(|message| message.header.flags = RuleFlags::Invert),
        changed(|message| message.header.action = RuleAction::Prohibit),
        changed(|message| message.attributes.push(RuleAttribute::FwMark(1))),
        changed(|message| message.attributes.push(RuleAttribute::Priority(1))),
    ] {
        assert_ne!(other, wanted[1]);
    }
}

#[test]
fn without_a_gateway_nothing_is_added() {
    let alias = without_gateway();
    assert_eq!(alias.changes(), []);
    let why = alias.obstacle().unwrap();
    assert!(why.starts_with("table 127 has no route to 127.0.0.1 by loopback0"), "{why}");
    // The rules keep forged packets out of flows that go on once the link is up again.
    let link_down = with(|routing| routing.routes.clear());
    assert_eq!(link_down.changes(), []);
    assert!(link_down.has_rules() && !link_down.has_route());
    // The gateway of another interface is none.
    assert!(SourceAlias::of(&routing(), ADDRESS, "eth0", 8, &[]).obstacle().is_some());
}

#[test]
fn a_route_that_a_link_took_away_is_added_alone() {
    assert_eq!(words(&without_route()), ["add the route `192.0.0.8/32 via 169.254.73.152 table 127`"]);
}

#[test]
fn a_route_by_an_older_gateway_or_interface_is_replaced() {
    for old in [
        objects::route(ADDRESS, Ipv4Addr::new(169, 254, 73, 249), IFINDEX),
        objects::route(ADDRESS, GATEWAY, 6),
        objects::route(Ipv4Addr::new(192, 0, 2, 1), GATEWAY, IFINDEX),
    ] {
        let alias = with(|routing| routing.routes[2] = old.clone());
        let new = objects::route(ADDRESS, GATEWAY, IFINDEX);
        assert_eq!(alias.changes(), [Change::RemoveRoute(old), Change::AddRoute(new)]);
    }
}

#[test]
fn rules_of_another_source_alias_or_interface_are_removed() {
    let wanted = objects::rules(ADDRESS, "loopback0");
    for old in [
        objects::rules(Ipv4Addr::new(192, 0, 2, 1), "loopback0"),
        objects::rules(Ipv4Addr::new(192, 0, 2, 1), "eth9"),
    ] {
        let alias = with(|routing| routing.rules = old.to_vec());
        let added = wanted.iter().cloned().map(Change::AddRule);
        let removed = old.iter().cloned().map(Change::RemoveRule);
        assert_eq!(alias.changes(), added.chain(removed).collect::<Vec<_>>());
    }
    // Without a gateway they are removed, too.
    let old = objects::rules(Ipv4Addr::new(192, 0, 2, 1), "loopback0");
    let alias = of(&Routing { rules: old.to_vec(), ..Routing::default() });
    assert_eq!(alias.changes().len(), 3);
}

/// Plays the kernel: of one priority, the older rule comes first, and the first of two equal ones is deleted.
fn play(rules: &mut Vec<Rule>, change: &Change) {
    let priority = |rule: &Rule| rule.to_string().starts_with("pref 2");
    match change {
        Change::AddRule(rule) => {
            rules.push(rule.clone());
            rules.sort_by_key(priority);
        }
        Change::RemoveRule(rule) => {
            let at = rules.iter().position(|other| other == rule).expect("no such rule");
            rules.remove(at);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn any_mix_of_rules_comes_to_the_three_in_their_order() {
    let wanted = objects::rules(ADDRESS, "loopback0").to_vec();
    let stranger = objects::rules(ADDRESS, "eth9")[0].clone();
    let kinds = [&wanted[0], &wanted[1], &stranger];
    for mix in 0..3_u32.pow(4) {
        let mut first: Vec<Rule> =
            (0..4).map(|place| kinds[(mix / 3_u32.pow(place) % 3) as usize].clone()).collect();
        for length in 0..=first.len() {
            first.truncate(first.len() - usize::from(length > 0));
            let mut rules = [first.clone(), vec![wanted[2].clone(); length % 3]].concat();
            let alias = with(|routing| routing.rules.clone_from(&rules));
            for change in alias.changes() {
                play(&mut rules, &change);
            }
            assert_eq!(rules, wanted, "{first:?}");
        }
    }
}

/// Between two changes, a forged packet must meet the blackhole, if it did before.
#[test]
fn a_goto_that_is_gone_comes_back_without_a_gap() {
    let mut rules = objects::rules(ADDRESS, "loopback0")[1..].to_vec();
    let alias = with(|routing| routing.rules.clone_from(&rules));
    let blackhole = rules[0].clone();
    for change in alias.changes() {
        play(&mut rules, &change);
        assert!(rules.contains(&blackhole), "after {change}");
    }
    assert_eq!(rules, objects::rules(ADDRESS, "loopback0"));
}

#[test]
fn a_source_alias_in_others_use_is_named_and_given_up() {
    let words = |change: fn(&mut Routing)| {
        let alias = with(change);
        let removes = alias
            .changes()
            .iter()
            .all(|change| matches!(change, Change::RemoveRoute(_) | Change::RemoveRule(_)));
        assert!(removes && alias.changes().len() == 4, "{:?}", alias.changes());
        alias.used_by().unwrap().to_owned()
    };
    assert_eq!(
        words(|routing| routing.routes.push(route([192, 0, 0, 0], 28, 254))),
        "the route `192.0.0.0/28 via 169.254.73.152 table 254` covers it"
    );
    assert!(words(|routing| routing.routes.push(route([192, 0, 0, 8], 32, 127))).contains("table 127"));
    assert!(words(|routing| routing.routes.push(route([192, 0, 0, 0], 2, 51820))).contains("192.0.0.0/2"));
    assert_eq!(
        words(|routing| routing.addresses.push((ADDRESS, u32::MAX))),
        format!("it is an address of interface {}", u32::MAX)
    );
    let gateway = with(|routing| {
        routing.routes[0] = objects::route(Ipv4Addr::LOCALHOST, ADDRESS, IFINDEX);
        routing.routes[0].0.header.protocol = RouteProtocol::Kernel;
    });
    assert_eq!(gateway.used_by(), Some("it is the gateway of table 127"));
    assert!(used().obstacle().unwrap().contains("`source_alias`"));
}

#[test]
fn default_routes_and_routes_elsewhere_are_no_use() {
    for other in [
        route([0; 4], 0, 51820),
        route([128, 0, 0, 0], 1, 254),
        route([192, 0, 0, 0], 29, 254),
        route([192, 0, 0, 16], 28, 254),
    ] {
        let elsewhere = Ipv4Addr::new(192, 0, 0, 9);
        let routing = Routing { routes: vec![windows(), other], ..Routing::default() };
        assert_eq!(SourceAlias::of(&routing, elsewhere, "loopback0", IFINDEX, &[]).used_by(), None);
    }
}

#[test]
fn what_another_distribution_looks_after_is_left_alone() {
    let on = |index, name: &str| {
        let routing = Routing { rules: objects::rules(ADDRESS, "eth9").to_vec(), ..routing() };
        SourceAlias::of(&routing, ADDRESS, "loopback0", IFINDEX, &[(index, name.to_owned())])
    };
    assert_eq!(on(8, "eth9").changes(), []);
    assert!(on(8, "eth9").obstacle().unwrap().contains("another distribution"));
    assert_eq!(on(IFINDEX, "loopback0").changes(), [], "by its route");
    assert_ne!(on(10, "eth10").changes(), []);
}

#[test]
fn a_change_is_reversed_by_its_opposite() {
    for change in [complete(), fresh(), used()].iter().flat_map(SourceAlias::changes) {
        assert_ne!(change.clone().reversed(), change);
        assert_eq!(change.clone().reversed().reversed(), change);
    }
}
