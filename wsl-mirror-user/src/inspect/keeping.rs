//! Whether connections within Linux stay on `lo`.

use wsl_mirror_core::abi::Settings;

use crate::agent::lock;
use crate::config::Switch;
use crate::host::firewall::Firewall;
use crate::host::routing::Routing;
use crate::loader::instances::Instance;
use crate::loader::local_rules::{Conditions, Filters, Follower, Kept, LocalRules, Obstacle};

/// Whether they stay there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// They do.
    OnLo(Kept),
    /// They go by Windows; why.
    ByWindows(String),
}

impl Keeping {
    /// Finds it out.
    pub fn find(settings: &Settings, routing: &Routing, firewall: &Firewall, others: &[Instance]) -> Self {
        let follower = if lock::holder().is_some() { Follower::Agent } else { Follower::Nobody };
        let conditions = Conditions {
            // The agent's configuration is not known here. What it says shows in `SETTINGS`.
            switch: Switch::Auto,
            carried_mark: settings.mark,
            interface: settings.interface_name(),
            ifindex: settings.ifindex,
            filters: Filters::from(firewall),
            follower,
        };
        Self::of(&LocalRules::find(routing, &conditions, others), settings.lo_mark)
    }

    fn of(rules: &LocalRules, lo_mark: u32) -> Self {
        let is_done = rules.changes().is_empty();
        match (rules.kept(), rules.obstacle()) {
            (Some(kept), _) if is_done && lo_mark == kept.bit => Self::OnLo(kept.clone()),
            (Some(_), _) if lo_mark == 0 => Self::ByWindows(Obstacle::SwitchedOff.to_string()),
            (Some(_), _) => {
                Self::ByWindows("the policy route rules do not fit; the agent is about to change them".into())
            }
            (None, Some(obstacle)) if is_done => Self::ByWindows(obstacle.to_string()),
            (None, Some(obstacle)) => Self::ByWindows(format!(
                "{obstacle}; its policy route rules are left, and `wsl-mirror load` or `unload` removes them"
            )),
            (None, None) => {
                Self::ByWindows("another distribution's wsl-mirror looks after the policy route rules".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::local_rules::tests as rules;

    #[test]
    fn connections_stay_on_lo_by_rules_and_mark() {
        assert_eq!(
            Keeping::of(&rules::complete(), 0x40),
            Keeping::OnLo(rules::complete().kept().unwrap().clone())
        );
        let why = |rules: &LocalRules, lo_mark| match Keeping::of(rules, lo_mark) {
            Keeping::ByWindows(why) => why,
            Keeping::OnLo(kept) => panic!("{kept:?}"),
        };
        assert!(why(&rules::fresh(), 0).contains("keep_on_lo = \"off\""));
        assert!(why(&rules::moved(), 0x40).contains("do not fit"));
        assert!(why(&rules::unknown(), 0x40).contains("WSLPOSTROUTING"));
        let left = why(&rules::of_load(Follower::Nobody), 0x40);
        assert!(left.contains("`wsl-mirror run`") && left.contains("are left"), "{left}");
    }
}
