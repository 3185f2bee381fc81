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
    let by =
        |port| firewall.drops("loopback0").into_iter().find(|drop| drop.ports.contains(&port)).unwrap().by;
    assert_eq!(
        by(5353),
        "iptables-nft raw: -A PREROUTING -d 127.0.0.1/32 ! -i lo -p udp -m udp --dport 5353 -j DROP"
    );
    let firewall = put_together(sample!("docker28.json"), nothing(), Ok(String::new()));
    assert_eq!(firewall.drops("loopback0")[0].by, "nft ip raw: chain PREROUTING handle 2");
}

#[test]
fn docker_28_in_wsl_accepts_them_before_its_drop() {
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
fn drops_of_nftables_are_found_through_sets_maps_and_jumps() {
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
fn marks_of_iptables_come_from_the_program_that_has_all() {
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
fn marks_of_nftables_are_found_in_rules_sets_and_maps() {
    let firewall = put_together(sample!("native.json"), nothing(), Ok(String::new()));
    let expected =
        0x8 | 0x6000 | 0x3_0000 | 0x300 | 0x40_0000 | 0x80_0000 | 0x0300_0000 | 0x60 | 0x80 | 0xff0;
    assert_eq!(bits(&firewall), expected, "{:#x?}", firewall.marks());
    assert_eq!(firewall.restores(0x1000), ["nft inet guard: chain sub handle 25"]);
    let both = ["nft inet guard: chain out handle 26", "nft inet guard: chain sub handle 25"];
    assert_eq!(firewall.restores(0x20), both);
}

#[test]
fn unreadable_filters_are_named_and_the_rest_is_used() {
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
fn a_failure_leaves_a_gap_and_a_missing_program_does_not() {
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
fn a_failed_reading_does_not_supersede_a_good_one() {
    let good = || put_together(sample!("docker28.json"), sample!("docker28.save"), Ok(String::new()));
    let failed = || put_together(Err(Unread::Failed("slow".into())), nothing(), Ok(String::new()));
    let other = || put_together(sample!("wsl.json"), nothing(), Ok(String::new()));
    assert!(!failed().supersedes(&good()));
    assert!(other().supersedes(&good()) && other().supersedes(&failed()) && failed().supersedes(&failed()));
}

#[test]
fn plain_iptables_save_is_attributed_by_its_header() {
    let legacy = || sample!("docker28-legacy.save");
    let firewall = put_together(sample!("wsl.json"), legacy(), legacy());
    assert!(firewall.drops("loopback0").iter().all(|drop| drop.by.starts_with("iptables-legacy")));
    assert_eq!(firewall.unread, [""; 0]);
}
