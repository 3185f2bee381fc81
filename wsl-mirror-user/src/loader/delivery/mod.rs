//! Delivery by `lo`: what a packet that is redirected there needs so that it is not lost.
//!
//! A redirected packet has left `loopback0` for good: whatever then stands in its way costs it its life. So it is
//! only redirected where everything is in order: the policy rule that keeps it from table 127, the two sysctls that
//! let it in, and nothing on the machine that gives our mark to replies, which would then stay here. What is not in
//! order is said, and the program takes the plain way.
//!
//! All of this belongs to the network namespace, which all distributions share; a distribution that is terminated
//! takes its pins along and leaves this. So each load and unload goes by what it finds: the rule is known by its
//! protocol number, the old values of the sysctls by a name of `lo` ([`record`]).

pub mod record;
pub mod rule;
pub mod sysctls;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;

use self::record::{LO, Lo, Record};
use self::rule::Rule;
use self::sysctls::{SWITCHES, Switch, Sysctls};
use crate::config::DeliveryChoice;
use crate::host::firewall::Firewall;
use crate::host::marks::MarkUse;

/// What a switch is set to.
const ON: i32 = 1;

/// What there is of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The interface `lo`, and the record.
    pub lo: Lo,
    /// The sysctls.
    pub sysctls: Sysctls,
    /// The policy rules, in order.
    pub rules: Vec<Rule>,
}

impl Machine {
    /// Reads it.
    pub fn read() -> Result<Self> {
        Ok(Self { lo: record::read()?, sysctls: Sysctls::read()?, rules: rule::read()? })
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The machine, or why it cannot be read.
    pub machine: Result<Machine, String>,
    /// The packet filters. Large; who stays reads them once and shares them.
    pub firewall: Arc<Firewall>,
    /// Whether another distribution has a program of ours on an interface: it needs what is here as we do.
    pub has_others: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { machine: Ok(Machine::default()), firewall: Arc::default(), has_others: false }
    }
}

/// Why a packet that is redirected to `lo` would be lost, or a reply to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// The machine cannot be read.
    Unreadable(String),
    /// `lo` is down.
    LoIsDown,
    /// The reverse path filter of `lo`.
    RpFilter(i32),
    /// A sysctl that gives answers the mark of what they answer.
    CopiesMark(&'static str),
    /// A rule that gives replies our bits.
    Restored(String),
    /// A policy rule that comes first.
    Taken(String),
    /// A record that we do not understand.
    UnknownRecord(String),
    /// There is no rule of ours.
    NoRule(u32),
    /// A switch is off.
    Off(Switch),
    /// A switch is off and cannot be switched on.
    ReadOnly(Switch),
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => f.write_str(why),
            Self::LoIsDown => f.write_str("lo is down (`ip link set lo up`)"),
            Self::RpFilter(value) => write!(
                f,
                "the reverse path filter is strict for lo: the larger of net.ipv4.conf.all.rp_filter and \
                 net.ipv4.conf.lo.rp_filter is {value}; 0 and 2 will do"
            ),
            Self::CopiesMark(sysctl) => {
                write!(f, "net.ipv4.{sysctl} is on: replies would carry our mark, and not leave the machine")
            }
            Self::Restored(rule) => {
                write!(f, "a rule may give replies our mark, and they would not leave the machine: {rule}")
            }
            Self::Taken(rule) => {
                write!(f, "a policy rule comes before ours and may take its packets: {rule}")
            }
            Self::UnknownRecord(name) => write!(
                f,
                "lo has the alternative name {name}, which this release of wsl-mirror does not understand: use the \
                 one that made it, or take the name away (`ip link property del dev lo altname {name}`)"
            ),
            Self::NoRule(mark) => write!(f, "the policy rule `{}` is missing", Rule::ours(*mark)),
            Self::Off(switch) => write!(f, "net.ipv4.conf.lo.{} is 0", switch.name()),
            Self::ReadOnly(switch) => {
                write!(f, "net.ipv4.conf.lo.{} is 0 and cannot be written", switch.name())
            }
        }
    }
}

/// A change to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Record what the switches are.
    Record(Record),
    /// Switch on what was this before.
    SwitchOn(Switch, i32),
    /// Add the rule for these bits.
    AddRule(u32),
    /// Remove the rules for these bits.
    RemoveRule(u32),
    /// Put a switch back.
    PutBack(Switch, i32),
    /// Erase the record.
    Erase(Record),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(record) => write!(f, "record what will have to be put back: name lo also {record}"),
            Self::SwitchOn(switch, old) => {
                write!(f, "set net.ipv4.conf.lo.{} to {ON} (it is {old})", switch.name())
            }
            Self::AddRule(mark) => write!(f, "add the policy rule `{}`", Rule::ours(*mark)),
            Self::RemoveRule(mark) => write!(f, "remove the policy rule `{}`", Rule::ours(*mark)),
            Self::PutBack(switch, old) => write!(f, "put net.ipv4.conf.lo.{} back to {old}", switch.name()),
            Self::Erase(record) => write!(f, "erase the record: take the name {record} from lo"),
        }
    }
}

impl Change {
    /// Carries it out.
    pub fn carry_out(self) -> Result<()> {
        match self {
            Self::Record(record) => record::write(record),
            Self::SwitchOn(switch, _) => switch.set(ON),
            Self::AddRule(mark) => rule::add(mark),
            Self::RemoveRule(mark) => rule::remove(mark),
            Self::PutBack(switch, old) => switch.set(old),
            Self::Erase(record) => record::erase(record),
        }
    }

    /// What undoes it; nothing for what cleans up.
    pub fn undo(self) -> Option<Self> {
        match self {
            Self::Record(record) => Some(Self::Erase(record)),
            Self::SwitchOn(switch, old) => Some(Self::PutBack(switch, old)),
            Self::AddRule(mark) => Some(Self::RemoveRule(mark)),
            Self::RemoveRule(_) | Self::PutBack(..) | Self::Erase(_) => None,
        }
    }
}

/// What has to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The index of `lo` for `SETTINGS`, 0 for the plain way only.
    pub lo_ifindex: u32,
    /// Before `SETTINGS` is written.
    pub before: Vec<Change>,
    /// When nothing is redirected any more in the old way.
    pub after: Vec<Change>,
}

/// Computes it, for these bits of the mark.
pub fn plan(state: &State, choice: DeliveryChoice, mark: u32) -> Plan {
    let Ok(machine) = &state.machine else { return Plan::default() };
    if choice == DeliveryChoice::Plain || !state.obstacles(mark).is_empty() {
        return Plan { after: state.teardown(), ..Plan::default() };
    }
    let mut before = Vec::new();
    if machine.lo.record.is_none() {
        before.push(Change::Record(Record::new(SWITCHES.map(|switch| machine.sysctls.switch(switch).lo))));
    }
    for switch in SWITCHES {
        let old = machine.sysctls.switch(switch).lo;
        if old != ON && !machine.sysctls.is_read_only(switch) {
            before.push(Change::SwitchOn(switch, old));
        }
    }
    if !machine.rules.iter().any(|rule| rule.is_wanted(mark)) {
        // At another place it would be in the way of a second one.
        if machine.rules.iter().any(|rule| rule.our_mark() == Some(mark)) {
            before.push(Change::RemoveRule(mark));
        }
        before.push(Change::AddRule(mark));
    }
    let others = our_marks(machine).into_iter().filter(|other| *other != mark && !state.has_others);
    Plan { lo_ifindex: LO, before, after: others.map(Change::RemoveRule).collect() }
}

fn our_marks(machine: &Machine) -> BTreeSet<u32> {
    machine.rules.iter().filter_map(Rule::our_mark).collect()
}

impl State {
    /// What stands in the way, whatever a load does.
    pub fn obstacles(&self, mark: u32) -> Vec<Objection> {
        let machine = match &self.machine {
            Ok(machine) => machine,
            Err(why) => return vec![Objection::Unreadable(why.clone())],
        };
        let mut objections = Vec::new();
        if !machine.lo.is_up {
            objections.push(Objection::LoIsDown);
        }
        let rp_filter = machine.sysctls.rp_filter.all.max(machine.sysctls.rp_filter.lo);
        // Loosely (2), the source only has to be reachable by any interface, and 127.0.0.1 is, by table 127 (seen on
        // 6.1 and 6.18). systemd sets 2 for every interface unless told otherwise.
        if rp_filter == 1 {
            objections.push(Objection::RpFilter(rp_filter));
        }
        let copies = [
            ("tcp_fwmark_accept", machine.sysctls.tcp_fwmark_accept),
            ("fwmark_reflect", machine.sysctls.fwmark_reflect),
        ];
        objections.extend(copies.iter().filter(|copy| copy.1 != 0).map(|copy| Objection::CopiesMark(copy.0)));
        objections
            .extend(self.firewall.restores(mark).into_iter().map(|rule| Objection::Restored(rule.into())));
        objections
            .extend(rule::taken_by(&machine.rules, mark).map(|rule| Objection::Taken(rule.to_string())));
        let is_stuck =
            |switch: &Switch| machine.sysctls.is_off(*switch) && machine.sysctls.is_read_only(*switch);
        objections.extend(SWITCHES.into_iter().filter(is_stuck).map(Objection::ReadOnly));
        objections.extend(machine.lo.unknown.clone().map(Objection::UnknownRecord));
        objections
    }

    /// What a load would make, and is not there.
    pub fn missing(&self, mark: u32) -> Vec<Objection> {
        let Ok(machine) = &self.machine else { return Vec::new() };
        let mut objections = Vec::new();
        if !machine.rules.iter().any(|rule| rule.is_wanted(mark)) {
            objections.push(Objection::NoRule(mark));
        }
        let is_off =
            |switch: &Switch| machine.sysctls.is_off(*switch) && !machine.sysctls.is_read_only(*switch);
        objections.extend(SWITCHES.into_iter().filter(is_off).map(Objection::Off));
        objections
    }

    /// Takes away everything that any load has made, unless another distribution still needs it.
    pub fn teardown(&self) -> Vec<Change> {
        match &self.machine {
            Ok(machine) if !self.has_others => teardown(machine),
            _ => Vec::new(),
        }
    }

    /// Who else uses bits of the mark.
    pub fn marks(&self) -> Vec<MarkUse> {
        let mut marks =
            self.machine.as_ref().map_or_else(|_| Vec::new(), |machine| rule::marks(&machine.rules));
        marks.extend(self.firewall.marks());
        marks
    }
}

/// Takes away everything that any load has made. A switch that is not as we set it was set by somebody else since, and
/// stays; that somebody has set it to the same value as we cannot be seen.
pub fn teardown(machine: &Machine) -> Vec<Change> {
    let mut changes: Vec<_> = our_marks(machine).into_iter().map(Change::RemoveRule).collect();
    if let Some(record) = machine.lo.record {
        for switch in SWITCHES {
            let (now, old) = (machine.sysctls.switch(switch).lo, record.value(switch));
            if now == ON && old != ON {
                changes.push(Change::PutBack(switch, old));
            }
        }
        // Last: until then a load or unload that is killed can be repeated.
        changes.push(Change::Erase(record));
    }
    changes
}

#[cfg(test)]
pub mod tests {
    use super::rule::tests::rule;
    use super::*;
    use crate::host::firewall::{self, Base, Chain, Ruleset};

    const MARK: u32 = 0x1000;

    /// A machine on which nothing stands in the way.
    pub fn ready() -> State {
        let lo = Lo { is_up: true, ..Lo::default() };
        State { machine: Ok(Machine { lo, ..Machine::default() }), ..State::default() }
    }

    /// The same after a load.
    pub fn loaded() -> State {
        let mut state = ready();
        let machine = state.machine.as_mut().unwrap();
        machine.lo.record = Some(Record::new([0, 0]));
        for switch in &mut machine.sysctls.switches {
            switch.lo = ON;
        }
        machine.rules = vec![Rule::ours(MARK)];
        state
    }

    fn with(mut state: State, change: impl FnOnce(&mut Machine)) -> State {
        change(state.machine.as_mut().unwrap());
        state
    }

    fn auto(state: &State) -> Plan {
        plan(state, DeliveryChoice::Auto, MARK)
    }

    #[test]
    fn what_will_be_changed_is_recorded_first_and_the_rule_comes_last() {
        let record = Record::new([0, 0]);
        let expected = [
            Change::Record(record),
            Change::SwitchOn(Switch::RouteLocalnet, 0),
            Change::SwitchOn(Switch::AcceptLocal, 0),
            Change::AddRule(MARK),
        ];
        assert_eq!(auto(&ready()), Plan { lo_ifindex: LO, before: expected.to_vec(), after: vec![] });
        let undone: Vec<_> = expected.into_iter().rev().filter_map(Change::undo).collect();
        assert_eq!(undone.last(), Some(&Change::Erase(record)));
    }

    #[test]
    fn a_second_load_changes_nothing() {
        assert_eq!(auto(&loaded()), Plan { lo_ifindex: LO, ..Plan::default() });
    }

    #[test]
    fn what_was_on_before_stays_on() {
        let state = with(ready(), |machine| machine.sysctls.switches[0].lo = 1);
        let plan = auto(&state);
        assert_eq!(plan.before[0], Change::Record(Record::new([1, 0])));
        assert!(
            !plan.before.iter().any(|change| matches!(change, Change::SwitchOn(Switch::RouteLocalnet, _)))
        );
        let state = with(loaded(), |machine| machine.lo.record = Some(Record::new([1, 0])));
        let expected = [
            Change::RemoveRule(MARK),
            Change::PutBack(Switch::AcceptLocal, 0),
            Change::Erase(Record::new([1, 0])),
        ];
        assert_eq!(state.teardown(), expected);
    }

    #[test]
    fn the_first_record_is_kept_whatever_the_switches_are_now() {
        let state = with(loaded(), |machine| machine.sysctls.switches[1].lo = 0);
        assert_eq!(auto(&state).before, [Change::SwitchOn(Switch::AcceptLocal, 0)]);
    }

    #[test]
    fn what_somebody_else_has_changed_is_not_put_back() {
        let state = with(loaded(), |machine| machine.sysctls.switches[0].lo = 2);
        let expected = [
            Change::RemoveRule(MARK),
            Change::PutBack(Switch::AcceptLocal, 0),
            Change::Erase(Record::new([0, 0])),
        ];
        assert_eq!(state.teardown(), expected);
    }

    #[test]
    fn rules_for_other_bits_go_once_nothing_is_redirected_with_them() {
        let state = with(loaded(), |machine| machine.rules.insert(0, Rule::ours(0x80)));
        assert_eq!(auto(&state).after, [Change::RemoveRule(0x80)]);
        let shared = State { has_others: true, ..state.clone() };
        assert_eq!(auto(&shared).after, [], "another distribution may use it");
        assert_eq!(state.teardown()[..2], [Change::RemoveRule(0x80), Change::RemoveRule(MARK)]);
        assert_eq!(shared.teardown(), []);
    }

    #[test]
    fn each_obstacle_means_the_plain_way_and_takes_away_what_is_there() {
        type Breakage = (&'static str, fn(&mut Machine));
        let in_the_way: [Breakage; 8] = [
            ("lo is down", |machine| machine.lo.is_up = false),
            ("filter is strict for lo", |machine| machine.sysctls.rp_filter.lo = 1),
            ("filter is strict for lo", |machine| machine.sysctls.rp_filter.all = 1),
            ("tcp_fwmark_accept", |machine| machine.sysctls.tcp_fwmark_accept = 1),
            ("fwmark_reflect", |machine| machine.sysctls.fwmark_reflect = 1),
            ("comes before ours", |machine| machine.rules.insert(0, rule("", (0, 0), 99))),
            ("does not understand", |machine| machine.lo.unknown = Some("wsl-mirror,x=1".into())),
            ("cannot be written", |machine| {
                machine.sysctls.switches[0].lo = 0;
                machine.sysctls.read_only[0] = true;
            }),
        ];
        for (words, change) in in_the_way {
            let state = with(ready(), change);
            let objections = state.obstacles(MARK);
            assert!(objections.len() == 1 && objections[0].to_string().contains(words), "{objections:?}");
            assert_eq!(auto(&state), Plan::default(), "{words}");
            let state = with(loaded(), change);
            assert_eq!(auto(&state), Plan { after: state.teardown(), ..Plan::default() });
        }
        let unreadable = State { machine: Err("no".into()), ..State::default() };
        assert_eq!(auto(&unreadable), Plan::default());
        assert_eq!(unreadable.obstacles(MARK), [Objection::Unreadable("no".into())]);
    }

    #[test]
    fn a_rule_that_gives_replies_our_bits_is_an_obstacle() {
        let rule =
            firewall::Rule { restored_bits: 0xff00, text: "rule 7".into(), ..firewall::Rule::default() };
        let chain = |hook: &str| Chain {
            table: "t".into(),
            name: "c".into(),
            sees_ipv4: true,
            base: Some(Base { hook: hook.into(), priority: 0, drops: false }),
            rules: vec![rule.clone()],
        };
        let state = |hook| {
            let ruleset = Ruleset { chains: vec![chain(hook)], marks: vec![] };
            State { firewall: Firewall { ruleset, ..Firewall::default() }.into(), ..ready() }
        };
        assert_eq!(state("output").obstacles(MARK), [Objection::Restored("rule 7".into())]);
        assert_eq!(state("output").obstacles(0x1_0000), [], "not these bits");
        assert_eq!(state("prerouting").obstacles(MARK), [], "no reply comes through there");
    }

    #[test]
    fn what_is_missing_after_a_load_is_named() {
        assert_eq!(loaded().missing(MARK), []);
        let state = with(loaded(), |machine| {
            machine.rules.clear();
            machine.sysctls.switches[0].lo = 0;
        });
        let expected = [Objection::NoRule(MARK), Objection::Off(Switch::RouteLocalnet)];
        assert_eq!(state.missing(MARK), expected);
        let state = with(state, |machine| machine.sysctls.switches[0].all = 1);
        assert_eq!(state.missing(MARK), [Objection::NoRule(MARK)], "all counts too");
    }

    #[test]
    fn a_loose_reverse_path_filter_is_no_obstacle() {
        let state =
            with(loaded(), |machine| machine.sysctls.rp_filter = sysctls::PerInterface { all: 1, lo: 2 });
        assert_eq!(state.obstacles(MARK), [], "the larger one counts");
    }

    #[test]
    fn what_cannot_be_set_need_not_be_if_it_is_on_for_all() {
        let state = with(ready(), |machine| {
            machine.sysctls.switches[1].all = 1;
            machine.sysctls.read_only[1] = true;
        });
        let plan = auto(&state);
        assert_eq!((plan.lo_ifindex, plan.before.len()), (LO, 3), "{plan:?}");
        assert!(!plan.before.iter().any(|change| matches!(change, Change::SwitchOn(Switch::AcceptLocal, _))));
    }

    #[test]
    fn a_rule_at_the_wrong_place_is_made_anew() {
        let mut misplaced = loaded();
        misplaced.machine.as_mut().unwrap().rules = vec![rule::tests::at(9, Rule::ours(MARK))];
        assert_eq!(auto(&misplaced).before, [Change::RemoveRule(MARK), Change::AddRule(MARK)]);
    }

    #[test]
    fn plain_by_configuration_takes_everything_away() {
        let plan = plan(&loaded(), DeliveryChoice::Plain, MARK);
        assert_eq!((plan.lo_ifindex, plan.before.len()), (0, 0));
        assert_eq!(plan.after, loaded().teardown());
    }
}
