//! What the machine's packet filters say of carried flows. Read, never written.

mod iptables;
mod leased;
mod linux_access;
mod marks;
mod nft;
mod obstacles;
mod packet;
mod path;
mod publications;
mod ruleset;

use std::ops::RangeInclusive;

use super::tool::{self, Unread};

pub use iptables::parse as parse_iptables;
pub use linux_access::{Access, LinuxAccess, Translated};
pub use nft::parse as parse_nft;
pub use obstacles::Obstacle;
pub use publications::Publications;
pub use ruleset::*;

/// The interface of Windows' packets by its name in engines' own rules (moby's `iptabler/wsl2.go`).
const INTERFACE: &str = "loopback0";

/// What was read, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Everything that was understood.
    pub ruleset: Ruleset,
    /// Whether the kernel has NAT's hooks: as long as a nat chain exists.
    pub nat: Hooks,
    /// Whether the kernel has conntrack's hooks: as long as a rule exists that needs them.
    pub conntrack: Hooks,
    /// What could not be read, one sentence each: what it says is not known.
    pub unread: Vec<String>,
    /// Whether a part of it is unknown because reading it has failed: another time it may be read. What nobody is
    /// installed for that could read it is not meant.
    pub has_gaps: bool,
}

/// Whether the kernel has hooks of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hooks {
    /// Nobody needs them.
    Absent,
    /// Somebody does.
    Present,
    /// Nobody could be asked. WSL's own tables need both kinds.
    #[default]
    Unknown,
}

impl Firewall {
    /// Whether to go by this from now on, and no more by what was read before.
    pub const fn supersedes(&self, older: &Self) -> bool {
        !self.has_gaps || older.has_gaps
    }

    /// What keeps the kernel from translating packets of flows that are carried on this interface to this alias.
    pub fn obstacles(&self, interface: &str, alias: [u8; 4]) -> Vec<Obstacle> {
        let mut obstacles = obstacles::of_rules(&self.ruleset, interface, alias);
        if self.nat == Hooks::Absent {
            obstacles.insert(0, Obstacle::NoNat);
        } else if self.conntrack == Hooks::Absent {
            obstacles.insert(0, Obstacle::NoConntrack);
        }
        obstacles
    }

    /// The publications of container engines, and the drops of their own rules.
    pub fn publications(&self) -> Publications {
        Publications::of(&self.ruleset, INTERFACE)
    }

    /// The block of ports that Windows has leased to Linux' clients, as far as WSL's own chain tells.
    pub fn leased_ports(&self) -> Option<RangeInclusive<u16>> {
        leased::block(&self.ruleset)
    }

    /// The bits of marks that rules name.
    pub fn mark_bits(&self) -> u32 {
        let rules = self.ruleset.chains.iter().flat_map(|chain| &chain.rules);
        rules.fold(0, |bits, rule| bits | rule.mark_bits)
    }

    /// The rules that may keep Linux' own clients from a port.
    pub fn linux_access(&self) -> LinuxAccess {
        LinuxAccess::of(self)
    }
}

/// Reads what can be read.
pub fn read() -> Firewall {
    let (nft, iptables_nft, legacy) = std::thread::scope(|scope| {
        let nft = scope.spawn(|| tool::run("nft", &["-n", "-j", "list", "ruleset"]));
        let legacy = scope.spawn(read_legacy);
        let iptables_nft = read_iptables_nft();
        let gone = || Err(Unread::Failed("the thread that reads it broke off".into()));
        (nft.join().unwrap_or_else(|_| gone()), iptables_nft, legacy.join().unwrap_or_else(|_| gone()))
    });
    put_together(nft, iptables_nft, legacy, &legacy_tables())
}

/// Whether there are tables of the older `iptables`, whose changes nothing tells of.
pub fn has_legacy_tables() -> bool {
    !legacy_tables().is_empty()
}

/// The names of the older `iptables`' tables, as its saving program has them.
fn legacy_tables() -> Vec<String> {
    // There is no such file without the kernel's module.
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    tables.lines().map(str::to_owned).collect()
}

/// What `iptables-nft` has made, in its own words: nft shows parts of it as `xt` and nothing more.
fn read_iptables_nft() -> Result<String, Unread> {
    first_of(&[("iptables-nft-save", &[]), ("xtables-nft-multi", &["iptables-save"]), ("iptables-save", &[])])
}

/// What the older `iptables` has made. Only asked if there are such tables: it must not make any.
fn read_legacy() -> Result<String, Unread> {
    if !has_legacy_tables() {
        return Ok(String::new());
    }
    first_of(&[
        ("iptables-legacy-save", &[]),
        ("xtables-legacy-multi", &["iptables-save"]),
        ("iptables-save", &[]),
    ])
}

/// The output of the first of these programs that is installed.
fn first_of(programs: &[(&str, &[&str])]) -> Result<String, Unread> {
    let found = programs.iter().find(|(program, _)| tool::find(program).is_some());
    found.map_or(Err(Unread::NotInstalled), |(program, arguments)| tool::run(program, arguments))
}

/// What each of the three says, as one. Pure.
fn put_together(
    nft: Result<String, Unread>,
    iptables_nft: Result<String, Unread>,
    legacy: Result<String, Unread>,
    legacy_tables: &[String],
) -> Firewall {
    let mut firewall = Firewall::default();
    let mut ruleset = Ruleset::default();
    let nft_is_there = !matches!(nft, Err(Unread::NotInstalled));
    match nft.map(|text| parse_nft(&text)) {
        Ok(Ok(of_nft)) => {
            ruleset = of_nft;
            firewall.nat = Hooks::Absent;
            firewall.conntrack = Hooks::Absent;
        }
        Ok(Err(why)) | Err(Unread::Failed(why)) => {
            firewall.unread.push(format!("nftables: {why}"));
            firewall.has_gaps = true;
        }
        Err(Unread::NotInstalled) => {}
    }
    let iptables_nft = match iptables_nft {
        // Plain `iptables-save` may be the older one, which is read elsewhere.
        Ok(text) if !text.trim().is_empty() && !iptables::is_of_nft(&text) => Err(Unread::NotInstalled),
        read => read,
    };
    let mut iptables_nft_failed = false;
    match iptables_nft.map(|text| parse_iptables(&text, "iptables-nft")) {
        Ok(Ok(of_iptables)) => fill_in(&mut ruleset, of_iptables.chains),
        Ok(Err(why)) | Err(Unread::Failed(why)) => {
            firewall.unread.push(format!("iptables-nft: {why}"));
            iptables_nft_failed = true;
        }
        Err(Unread::NotInstalled) if !nft_is_there => {
            firewall.unread.push("nftables: neither nft nor iptables-nft-save is installed".into());
        }
        Err(Unread::NotInstalled) => {}
    }
    let mut chains = ruleset.chains;
    let untranslated =
        chains.iter().find(|chain| chain.sees_ipv4 && chain.rules.iter().any(|rule| rule.has_xt));
    if let Some(chain) = untranslated {
        firewall.unread.push(format!(
            "{}: rules that iptables-nft made and nft does not translate; iptables-nft-save, which does, is not \
             installed or has failed",
            chain.table
        ));
    }
    // Where nft is there and translates everything, it is not needed.
    firewall.has_gaps |= iptables_nft_failed && (untranslated.is_some() || !nft_is_there);
    let legacy = match legacy {
        Ok(text) if iptables::is_of_nft(&text) => Err(Unread::NotInstalled),
        read => read,
    };
    match legacy.map(|text| parse_iptables(&text, "iptables-legacy")) {
        Ok(Ok(of_iptables)) => chains.extend(of_iptables.chains),
        Ok(Err(why)) | Err(Unread::Failed(why)) => {
            firewall.unread.push(format!("iptables-legacy: {why}"));
            firewall.has_gaps = true;
            firewall.conntrack = Hooks::Unknown;
        }
        Err(Unread::NotInstalled) => {
            let why = "iptables-legacy: it has tables, but iptables-legacy-save is not installed";
            firewall.unread.push(why.into());
            firewall.conntrack = Hooks::Unknown;
        }
    }
    let is_nat = |chain: &Chain| chain.base.as_ref().is_some_and(|base| base.kind == Kind::Nat);
    let of_ipv4 = || chains.iter().filter(|chain| chain.sees_ipv4);
    // The kernel hooks the older kind's whole table at once, and lists it as soon as it exists.
    if of_ipv4().any(is_nat) || legacy_tables.iter().any(|table| table == "nat") {
        firewall.nat = Hooks::Present;
    }
    // A rule counts wherever it is, also where no packet comes by.
    if of_ipv4().flat_map(|chain| &chain.rules).any(|rule| rule.needs_conntrack) {
        firewall.conntrack = Hooks::Present;
    }
    firewall.ruleset = Ruleset { chains };
    firewall
}

/// Puts what `iptables-nft-save` says of a chain in the place of what nft says of it, where nft does not translate
/// every rule. Elsewhere nft is the better witness: it knows all that a rule may be made of.
fn fill_in(ruleset: &mut Ruleset, from_iptables: Vec<Chain>) {
    let mut missing = Vec::new();
    let mut untranslated = Vec::new();
    let places = ruleset.places();
    for other in from_iptables {
        let table = other.table.replace("iptables-nft ", "nft ip ");
        match places.get(&(table.as_str(), other.name.as_str())) {
            Some(at) => untranslated.push((*at, other.rules)),
            None => missing.push(Chain { table, ..other }),
        }
    }
    for (at, rules) in untranslated {
        if let Some(chain) =
            ruleset.chains.get_mut(at).filter(|chain| chain.rules.iter().any(|rule| rule.has_xt))
        {
            chain.rules = rules;
        }
    }
    ruleset.chains.extend(missing);
}

#[cfg(test)]
mod tests;
