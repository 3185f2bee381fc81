//! What has to change in the maps.

use std::collections::{BTreeMap, BTreeSet};

use wsl_mirror_core::abi::{Owner, OwnerPolicy, PortKey, PortPolicy};

use crate::loader::step::{OwnerChange, PolicyChange};

/// What has to change so that the file's fields of every port are what the file says, and nothing else.
pub fn policy_changes(
    there: &BTreeMap<PortKey, PortPolicy>,
    file: &BTreeMap<PortKey, PortPolicy>,
) -> Vec<PolicyChange> {
    let known = there.keys().chain(file.keys()).copied().collect::<BTreeSet<_>>();
    known
        .into_iter()
        .filter_map(|key| {
            let old = there.get(&key).copied().unwrap_or_default();
            let PortPolicy { config, path, flags, .. } = file.get(&key).copied().unwrap_or_default();
            let new = PortPolicy { config, path, flags, ..old };
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
