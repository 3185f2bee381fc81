//! What has to change in the maps.

use std::collections::{BTreeMap, BTreeSet};

use wsl_mirror_core::abi::{Owner, OwnerPolicy, Policy, PortKey, PortPolicy};

use crate::loader::step::{OwnerChange, PolicyChange};

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
