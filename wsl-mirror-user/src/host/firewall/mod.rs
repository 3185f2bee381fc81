//! What the machine's packet filters say: which bits of the mark they use, which ports they drop unless a packet
//! comes in on `lo`, and whether they copy marks onto replies. Read, never written.

mod iptables;
mod nft;
mod ruleset;
mod walk;

use super::marks::MarkUse;
use super::tool::{self, Unread};

pub use iptables::parse as parse_iptables;
pub use nft::parse as parse_nft;
pub use ruleset::*;

/// What was read, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Everything that was understood.
    pub ruleset: Ruleset,
    /// What could not be read, one sentence each: what it says is not known.
    pub unread: Vec<String>,
    /// Whether a part of it is unknown because reading it has failed: another time it may be read. What nobody is
    /// installed for that could read it is not meant.
    pub has_gaps: bool,
}

impl Firewall {
    /// Whether to go by this from now on, and no more by what was read before.
    pub const fn supersedes(&self, older: &Self) -> bool {
        !self.has_gaps || older.has_gaps
    }

    /// Every use of a bit of the mark by somebody else.
    pub fn marks(&self) -> Vec<MarkUse> {
        let rules = self.ruleset.chains.iter().flat_map(|chain| &chain.rules);
        let by_rules = rules
            .filter(|rule| rule.mark_bits != 0 && !rule.is_about_us)
            .map(|rule| MarkUse { bits: rule.mark_bits, by: rule.text.clone() });
        by_rules.chain(self.ruleset.marks.iter().cloned()).collect()
    }

    /// The rules through which the packets of local processes come and which give a packet bits of conntrack's
    /// mark: replies could get ours by them.
    pub fn restores(&self, mark: u32) -> Vec<&str> {
        self.ruleset
            .reached_from("output")
            .iter()
            .filter(|chain| chain.sees_ipv4)
            .flat_map(|chain| &chain.rules)
            .filter(|rule| rule.restored_bits & mark != 0)
            .map(|rule| rule.text.as_str())
            .collect()
    }

    /// The ports of 127.0.0.1 whose packets are dropped before conntrack if they come in on this interface, and
    /// not if they come in on `lo`.
    pub fn drops(&self, interface: &str) -> Vec<Drop> {
        walk::drops(&self.ruleset, interface)
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
    put_together(nft, iptables_nft, legacy)
}

/// Whether there are tables of the older `iptables`, whose changes nothing tells of.
pub fn has_legacy_tables() -> bool {
    // There is no such file without the kernel's module.
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    !tables.trim().is_empty()
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
) -> Firewall {
    let mut firewall = Firewall::default();
    let mut chains = Vec::new();
    let nft_is_there = !matches!(nft, Err(Unread::NotInstalled));
    match nft.map(|text| parse_nft(&text)) {
        Ok(Ok(ruleset)) => {
            chains = ruleset.chains;
            firewall.ruleset.marks = ruleset.marks;
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
        Ok(Ok(ruleset)) => fill_in(&mut chains, ruleset.chains),
        Ok(Err(why)) | Err(Unread::Failed(why)) => {
            firewall.unread.push(format!("iptables-nft: {why}"));
            iptables_nft_failed = true;
        }
        Err(Unread::NotInstalled) if !nft_is_there => {
            firewall.unread.push("nftables: neither nft nor iptables-nft-save is installed".into());
        }
        Err(Unread::NotInstalled) => {}
    }
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
        Ok(Ok(ruleset)) => chains.extend(ruleset.chains),
        Ok(Err(why)) | Err(Unread::Failed(why)) => {
            firewall.unread.push(format!("iptables-legacy: {why}"));
            firewall.has_gaps = true;
        }
        Err(Unread::NotInstalled) => firewall
            .unread
            .push("iptables-legacy: it has tables, but iptables-legacy-save is not installed".into()),
    }
    firewall.ruleset.chains = chains;
    firewall
}

/// Puts what `iptables-nft-save` says of a chain in the place of what nft says of it, where nft does not translate
/// every rule. Elsewhere nft is the better witness: it knows all that a rule may be made of.
fn fill_in(chains: &mut Vec<Chain>, from_iptables: Vec<Chain>) {
    for other in from_iptables {
        let table = other.table.replace("iptables-nft ", "nft ip ");
        match chains.iter_mut().find(|chain| chain.table == table && chain.name == other.name) {
            Some(chain) if chain.rules.iter().any(|rule| rule.has_xt) => chain.rules = other.rules,
            Some(_) => {}
            None => chains.push(Chain { table, ..other }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! sample {
        ($name:literal) => {
            Ok(include_str!(concat!("samples/", $name)).to_owned())
        };
    }

    fn nothing() -> Result<String, Unread> {
        Err(Unread::NotInstalled)
    }

    fn dropped(firewall: &Firewall) -> Vec<String> {
        let text = |drop: &Drop| match drop.ports.clone().into_inner() {
            (first, last) if first == last => format!("{first}/{}", drop.protocol.name()),
            (first, last) => format!("{first}-{last}/{}", drop.protocol.name()),
        };
        firewall.drops("loopback0").iter().map(text).collect()
    }

    fn bits(firewall: &Firewall) -> u32 {
        firewall.marks().iter().fold(0, |bits, used| bits | used.bits)
    }

    #[test]
    fn docker_28_drops_its_loopback_ports_whichever_iptables_it_uses() {
        let all = ["8080/tcp", "5353/udp", "8081/udp"];
        for (what, firewall) in [
            ("nft", put_together(sample!("docker28.json"), nothing(), Ok(String::new()))),
            ("iptables-nft", put_together(nothing(), sample!("docker28.save"), Ok(String::new()))),
            ("both", put_together(sample!("docker28.json"), sample!("docker28.save"), Ok(String::new()))),
            ("legacy", put_together(sample!("wsl.json"), nothing(), sample!("docker28-legacy.save"))),
        ] {
            assert_eq!(dropped(&firewall), all, "{what}");
            assert!(firewall.unread.iter().all(|why| why.contains("rules that iptables-nft made")), "{what}");
        }
    }

    #[test]
    fn the_rule_that_drops_is_named() {
        let firewall = put_together(nothing(), sample!("docker28.save"), Ok(String::new()));
        let by = |port| {
            firewall.drops("loopback0").into_iter().find(|drop| drop.ports.contains(&port)).unwrap().by
        };
        assert_eq!(
            by(5353),
            "iptables-nft raw: -A PREROUTING -d 127.0.0.1/32 ! -i lo -p udp -m udp --dport 5353 -j DROP"
        );
        let firewall = put_together(sample!("docker28.json"), nothing(), Ok(String::new()));
        assert_eq!(firewall.drops("loopback0")[0].by, "nft ip raw: chain PREROUTING handle 2");
    }

    #[test]
    fn docker_28_that_has_seen_wsl_accepts_them_before_it_would_drop_them() {
        for firewall in [
            put_together(sample!("docker28-wsl.json"), sample!("docker28-wsl.save"), Ok(String::new())),
            put_together(sample!("docker28-wsl.json"), nothing(), Ok(String::new())),
            put_together(sample!("wsl.json"), nothing(), sample!("docker28-wsl-legacy.save")),
        ] {
            assert_eq!(dropped(&firewall), [""; 0]);
            // On another interface than the one that is accepted they are dropped.
            assert_eq!(firewall.drops("loopback1").len(), 3);
        }
    }

    #[test]
    fn drops_of_native_nftables_are_found_through_sets_maps_and_jumps() {
        let firewall = put_together(sample!("native.json"), nothing(), Ok(String::new()));
        assert_eq!(
            dropped(&firewall),
            [
                "7000-7001/tcp",
                "7200/tcp",
                "7300-7301/tcp",
                "7500/tcp",
                "7100-7110/udp",
                "7200/udp",
                "7300-7301/udp",
                "7401-7402/udp"
            ]
        );
    }

    #[test]
    fn wsl_itself_uses_the_lowest_bit() {
        let firewall = put_together(sample!("wsl.json"), nothing(), Ok(String::new()));
        assert_eq!(bits(&firewall), 1);
        assert_eq!(firewall.marks()[0].by, "nft ip filter: chain WSLOUTPUT handle 2");
        assert_eq!(firewall.unread, [""; 0]);
    }

    #[test]
    fn marks_of_iptables_are_read_from_whichever_program_has_them_in_full() {
        let expected = 0x00ff_0000 | 0x4000 | 0xca6c | 0xf00 | 0x100;
        for firewall in [
            put_together(sample!("marks-xt.json"), sample!("marks-nft.save"), Ok(String::new())),
            put_together(nothing(), nothing(), sample!("marks-legacy.save")),
        ] {
            assert_eq!(bits(&firewall), expected, "{:#x?}", firewall.marks());
            assert_eq!(firewall.restores(0x1000), [""; 0], "not of replies");
            assert_eq!(firewall.restores(0x0008_0000).len(), 1);
        }
        // nft alone does not show them all, and that is said.
        let firewall = put_together(sample!("marks-xt.json"), nothing(), Ok(String::new()));
        assert!(firewall.unread[0].contains("iptables-nft-save"), "{:?}", firewall.unread);
    }

    #[test]
    fn marks_of_native_nftables_are_found_in_matches_changes_sets_and_maps() {
        let firewall = put_together(sample!("native.json"), nothing(), Ok(String::new()));
        let expected =
            0x8 | 0x6000 | 0x3_0000 | 0x300 | 0x40_0000 | 0x80_0000 | 0x0300_0000 | 0x60 | 0x80 | 0xff0;
        assert_eq!(bits(&firewall), expected, "{:#x?}", firewall.marks());
        assert_eq!(firewall.restores(0x1000), ["nft inet guard: chain sub handle 25"]);
        let both = ["nft inet guard: chain out handle 26", "nft inet guard: chain sub handle 25"];
        assert_eq!(firewall.restores(0x20), both);
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_rest_is_used() {
        let failed = || Err(Unread::Failed("it failed".into()));
        let firewall = put_together(failed(), failed(), sample!("docker28-legacy.save"));
        assert_eq!(firewall.unread, ["nftables: it failed", "iptables-nft: it failed"]);
        assert_eq!(firewall.drops("loopback0").len(), 3);
        let firewall = put_together(Ok("{".into()), nothing(), nothing());
        assert_eq!(firewall.unread.len(), 2, "{:?}", firewall.unread);
        assert_eq!(put_together(sample!("wsl.json"), nothing(), Ok(String::new())).unread, [""; 0]);
        assert_eq!(put_together(nothing(), nothing(), Ok(String::new())).unread.len(), 1);
    }

    #[test]
    fn what_failed_leaves_a_gap_and_what_is_not_installed_does_not() {
        let failed = || Err(Unread::Failed("it failed".into()));
        let none = || Ok(String::new());
        for (nft, iptables_nft, legacy) in [
            (failed(), sample!("docker28.save"), none()),
            (nothing(), failed(), none()),
            (sample!("docker28.json"), failed(), none()),
            (sample!("wsl.json"), nothing(), failed()),
            (Ok("{".into()), nothing(), none()),
        ] {
            let what = format!("{nft:?} {iptables_nft:?} {legacy:?}");
            assert!(put_together(nft, iptables_nft, legacy).has_gaps, "{what}");
        }
        for (nft, iptables_nft, legacy) in [
            (nothing(), nothing(), nothing()),
            (sample!("docker28.json"), nothing(), none()),
            // Every rule of this one is nft's own.
            (sample!("wsl.json"), failed(), none()),
        ] {
            assert!(!put_together(nft, iptables_nft, legacy).has_gaps);
        }
    }

    #[test]
    fn a_reading_that_failed_does_not_supersede_one_that_succeeded() {
        let good = || put_together(sample!("docker28.json"), sample!("docker28.save"), Ok(String::new()));
        let failed = || put_together(Err(Unread::Failed("slow".into())), nothing(), Ok(String::new()));
        let other = || put_together(sample!("wsl.json"), nothing(), Ok(String::new()));
        assert!(!failed().supersedes(&good()));
        assert!(
            other().supersedes(&good()) && other().supersedes(&failed()) && failed().supersedes(&failed())
        );
    }

    #[test]
    fn plain_iptables_save_is_taken_for_what_it_is() {
        let legacy = || sample!("docker28-legacy.save");
        let firewall = put_together(sample!("wsl.json"), legacy(), legacy());
        assert!(firewall.drops("loopback0").iter().all(|drop| drop.by.starts_with("iptables-legacy")));
        assert_eq!(firewall.unread, [""; 0]);
    }
}
