//! What has to change in the maps.

use std::collections::{BTreeMap, BTreeSet};

use wsl_mirror_core::abi::{Owner, OwnerPolicy, Policy, PortKey, PortPolicy, PortRule};

use crate::loader::state::State;
use crate::loader::step::{OwnerChange, PolicyChange, RuleChange, Step};

/// What has to change so that the `config` field of every port is what the file says, and nothing else.
pub fn policy_changes(
    there: &BTreeMap<PortKey, PortPolicy>,
    exempt: &BTreeSet<PortKey>,
) -> Vec<PolicyChange> {
    let known = there.keys().copied().chain(exempt.iter().copied()).collect::<BTreeSet<_>>();
    known
        .into_iter()
        .filter_map(|key| {
            let old = there.get(&key).copied().unwrap_or_default();
            let config = if exempt.contains(&key) { Policy::Pass } else { Policy::Unset };
            let new = PortPolicy { config: config as u8, ..old };
            (new != old).then_some(PolicyChange { key, old, new })
        })
        .collect()
}

/// What has to change so that `PORT_DELIVERY` says what the machine's rules do. What some of them said before, which could
/// not be read now, is left.
pub fn rule_changes(state: &State) -> Option<Step> {
    let drops = state.delivery.firewall.drops(&state.interface.name);
    let expected: BTreeMap<PortKey, PortRule> = drops
        .iter()
        .flat_map(|drop| drop.ports.clone().map(|port| (PortKey::new(drop.protocol, port), drop.rule)))
        .filter(|(key, _)| key.is_valid())
        .collect();
    let known = state.rules.keys().chain(expected.keys()).copied().collect::<BTreeSet<_>>();
    let changes: Vec<_> = known
        .into_iter()
        .map(|key| RuleChange { key, old: state.rules.get(&key).copied(), new: expected.get(&key).copied() })
        .filter(|change| change.old != change.new)
        .filter(|change| change.new.is_some() || !state.delivery.firewall.has_gaps)
        .collect();
    (!changes.is_empty()).then_some(Step::WriteRules(changes))
}

/// What has to change so that `OWNERS` says this, and nothing else.
pub fn owner_changes(
    there: &BTreeMap<Owner, OwnerPolicy>,
    expected: &BTreeMap<Owner, OwnerPolicy>,
) -> Vec<OwnerChange> {
    let known = there.keys().chain(expected.keys()).copied().collect::<BTreeSet<_>>();
    known
        .into_iter()
        .map(|owner| OwnerChange {
            owner,
            old: there.get(&owner).copied(),
            new: expected.get(&owner).copied(),
        })
        .filter(|change| change.old != change.new)
        .collect()
}
