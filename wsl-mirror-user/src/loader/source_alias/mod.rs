//! The source alias' route and policy route rules. Direct flows come from that address inside Linux, and the containers'
//! replies go back to it, out on the interface to Windows.
//!
//! They live in the network namespace, which outlives every distribution: each carries our protocol number. A load of
//! any distribution goes on with what fits, and removes what does not.

mod change;
mod objects;
#[cfg(test)]
pub mod tests;

use std::net::Ipv4Addr;

use anyhow::Result;

use super::instances::Instance;
use crate::host::interface;
use crate::host::routing::{self, Route, Routing, Rule};

pub use self::change::{Change, remove_all};
pub use self::objects::{PROTOCOL, TABLE, leads_to_windows};

/// The prefix length of half a default route, of which VPNs make two (`redirect-gateway def1`).
const HALF_A_DEFAULT: u8 = 1;

/// The source alias, and what there is of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceAlias {
    address: Ipv4Addr,
    /// The name of the interface to Windows.
    interface: String,
    /// Its index; 0 if there is none.
    ifindex: u32,
    /// Where the interface's packets for Windows' 127.0.0.1 go.
    gateway: Option<Ipv4Addr>,
    /// The rules with our protocol number, in the kernel's order.
    rules: Vec<Rule>,
    /// The routes with our protocol number.
    routes: Vec<Route>,
    /// What somebody else does with the address, in words.
    used_by: Option<String>,
    /// Whether another distribution looks after these rules and routes.
    is_anothers: bool,
}

impl Default for SourceAlias {
    fn default() -> Self {
        Self::of(&Routing::default(), Ipv4Addr::UNSPECIFIED, "", 0, &[])
    }
}

impl SourceAlias {
    /// Finds what there is of it. `others` are the programs of other distributions.
    pub fn find(
        routing: &Routing,
        address: Ipv4Addr,
        interface: &str,
        ifindex: u32,
        others: &[Instance],
    ) -> Self {
        Self::of(routing, address, interface, ifindex, &interfaces_of(others))
    }

    fn of(
        routing: &Routing,
        address: Ipv4Addr,
        interface: &str,
        ifindex: u32,
        steered_by_others: &[(u32, String)],
    ) -> Self {
        let (rules, routes) = ours(routing);
        let gateway = objects::gateway(&routing.routes, ifindex);
        Self {
            address,
            interface: interface.to_owned(),
            ifindex,
            gateway,
            is_anothers: is_anothers(&rules, &routes, steered_by_others),
            rules,
            routes,
            used_by: used_by(routing, address, gateway),
        }
    }

    /// The steps towards what the configuration says.
    pub fn changes(&self) -> Vec<Change> {
        match (&self.used_by, self.gateway) {
            _ if self.is_anothers => Vec::new(),
            // Its other user would lose packets to our rules.
            (Some(_), _) => removal(&self.rules, &self.routes),
            (None, None) => [removal(&self.unfit_rules(), &[]), removal(&[], &self.routes)].concat(),
            (None, Some(gateway)) => [self.rule_changes(), self.route_changes(gateway)].concat(),
        }
    }

    /// What somebody else does with the address.
    pub fn used_by(&self) -> Option<&str> {
        self.used_by.as_deref()
    }

    /// Why no direct flow can begin even once the changes are made.
    pub fn obstacle(&self) -> Option<String> {
        let Self { address, interface, .. } = self;
        if let Some(used_by) = &self.used_by {
            return Some(format!("the source alias {address} (`source_alias`) is in use: {used_by}"));
        }
        if self.is_anothers {
            return Some(
                "another distribution's wsl-mirror looks after the source alias' route and rules".into(),
            );
        }
        self.gateway.is_none().then(|| {
            format!(
                "table {TABLE} has no route to 127.0.0.1 by {interface} (the link is down, or WSL is not in mirrored mode)"
            )
        })
    }

    /// The address.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Whether its route is there.
    pub fn has_route(&self) -> bool {
        self.gateway.is_some_and(|gateway| self.routes.iter().any(|route| self.is_route(route, gateway)))
    }

    /// Whether its rules are there, in their order.
    pub fn has_rules(&self) -> bool {
        self.kept_rules().iter().all(Option::is_some)
    }

    /// Of each rule, which one of [`Self::rules`] is it. The last one counts: the kernel deletes the first of equal ones.
    ///
    /// The first two are of one priority: the kernel asks the older one first. So the blackhole counts behind the goto only.
    fn kept_rules(&self) -> [Option<usize>; 3] {
        let [goto, from, to] = objects::rules(self.address, &self.interface)
            .map(|wanted| self.rules.iter().rposition(|rule| *rule == wanted));
        [goto, from.filter(|from| goto.is_some_and(|goto| goto < *from)), to]
    }

    fn rule_changes(&self) -> Vec<Change> {
        let kept = self.kept_rules();
        let missing = objects::rules(self.address, &self.interface).into_iter().zip(kept);
        let missing = missing.filter(|(_, kept)| kept.is_none()).map(|(rule, _)| Change::AddRule(rule));
        let excess = self.rules.iter().enumerate().filter(|(index, _)| !kept.contains(&Some(*index)));
        // The new ones first: a second blackhole stands behind the goto before the one in front of it goes.
        missing.chain(excess.map(|(_, rule)| Change::RemoveRule(rule.clone()))).collect()
    }

    /// The rules that no [`objects::rules`] are.
    fn unfit_rules(&self) -> Vec<Rule> {
        let fit = objects::rules(self.address, &self.interface);
        self.rules.iter().filter(|rule| !fit.contains(rule)).cloned().collect()
    }

    fn route_changes(&self, gateway: Ipv4Addr) -> Vec<Change> {
        let kept = self.routes.iter().position(|route| self.is_route(route, gateway));
        let excess = self.routes.iter().enumerate().filter(|(index, _)| Some(*index) != kept);
        let mut changes: Vec<_> = excess.map(|(_, route)| Change::RemoveRoute(route.clone())).collect();
        if kept.is_none() {
            changes.push(Change::AddRoute(objects::route(self.address, gateway, self.ifindex)));
        }
        changes
    }

    fn is_route(&self, route: &Route, gateway: Ipv4Addr) -> bool {
        objects::is_same(route, &objects::route(self.address, gateway, self.ifindex))
    }
}

/// Everything that is asked of rules and routes, for those who make them up.
#[cfg(any(test, feature = "fuzzing"))]
pub fn look_at(routing: &Routing) {
    let address = Ipv4Addr::from(wsl_mirror_core::abi::DEFAULT_SOURCE_ALIAS);
    let alias = SourceAlias::of(routing, address, "loopback0", 1, &[]);
    let changes = alias.changes();
    let _ = (alias.obstacle(), changes.iter().map(ToString::to_string).collect::<String>());
}

/// Removes every rule and route with our protocol number, unless another distribution looks after them. An error does not
/// stop it. Gives whether there were any.
pub fn remove(others: &[Instance]) -> Result<bool> {
    let (rules, routes) = ours(&routing::read()?);
    if is_anothers(&rules, &routes, &interfaces_of(others)) {
        return Ok(false);
    }
    remove_all(&removal(&rules, &routes))
}

/// The route goes first: no direct flow begins without it.
fn removal(rules: &[Rule], routes: &[Route]) -> Vec<Change> {
    let routes = routes.iter().cloned().map(Change::RemoveRoute);
    routes.chain(rules.iter().rev().cloned().map(Change::RemoveRule)).collect()
}

/// The rules and routes with our protocol number. Rules for packets to 127.0.0.1 are those of `local_rules`.
fn ours(routing: &Routing) -> (Vec<Rule>, Vec<Route>) {
    let rules = routing
        .rules
        .iter()
        .filter(|rule| rule.protocol() == Some(PROTOCOL) && rule.delivers_to() != Some(Ipv4Addr::LOCALHOST));
    let routes = routing.routes.iter().filter(|route| route.protocol() == PROTOCOL);
    (rules.cloned().collect(), routes.cloned().collect())
}

/// Whether another distribution steers an interface that a rule or a route of ours names.
fn is_anothers(rules: &[Rule], routes: &[Route], steered_by_others: &[(u32, String)]) -> bool {
    steered_by_others.iter().any(|(index, name)| {
        rules.iter().any(|rule| rule.interface() == Some(name))
            || routes.iter().any(|route| route.interface() == Some(*index))
    })
}

fn interfaces_of(others: &[Instance]) -> Vec<(u32, String)> {
    others.iter().filter_map(|other| Some((other.ifindex, interface::name(other.ifindex)?))).collect()
}

/// What somebody else does with the address. A default route covers every address, and does not count.
fn used_by(routing: &Routing, address: Ipv4Addr, gateway: Option<Ipv4Addr>) -> Option<String> {
    if let Some((_, index)) = routing.addresses.iter().find(|(used, _)| *used == address) {
        let name = interface::name(*index).unwrap_or_else(|| format!("interface {index}"));
        return Some(format!("it is an address of {name}"));
    }
    if gateway == Some(address) {
        return Some(format!("it is the gateway of table {TABLE}"));
    }
    let route = routing.routes.iter().find(|route| {
        route.protocol() != PROTOCOL && route.covers(address) && route.destination().1 > HALF_A_DEFAULT
    })?;
    Some(format!("the route `{route}` covers it"))
}
