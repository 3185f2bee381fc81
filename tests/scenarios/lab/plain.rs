//! The benchmarks' yardstick: a larger block of leased ports, and a machine without WSL's routing.

use wsl_mirror_lab::{Lab, checks::HELLO, loopback, nat, servers, tcp};

#[test]
fn windows_leases_the_block_that_it_is_told() {
    let lab = Lab::builder().leases(20_000..=20_999).build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let client = tcp::Client::new(lab.guest(), loopback(8100));
    let mut stream = client.connect().unwrap();
    let port = stream.local_addr().unwrap().port();
    assert!((20_000..=20_999).contains(&port), "{port}");
    // By Windows, which would keep the replies to a port of its own.
    assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()));
    let rules = lab.guest().run("nft", ["list chain ip nat WSLPOSTROUTING"]).unwrap().stdout;
    assert!(rules.contains("masquerade to :20000-20999"), "{rules}");
}

#[test]
fn a_machine_with_a_plain_lo_has_wsls_rules_and_not_its_routing() {
    let lab = Lab::builder().build().unwrap();
    let plain = lab.plain_lo().unwrap();
    let _server = servers::tcp_echo(&plain, loopback(8100)).unwrap();
    let mut stream = tcp::Client::new(&plain, loopback(8100)).connect().unwrap();
    assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()));
    let port = stream.local_addr().unwrap().port();
    assert!(lab.leased().contains(&port), "{port}");
    let tracked = nat::conntrack_with(&plain, &["tcp", "dport=8100"]).unwrap();
    assert_eq!(tracked.len(), 1, "conntrack sees it as in the guest: {tracked:?}");
    let rules = |namespace: &wsl_mirror_lab::Namespace| {
        let text = namespace.run("nft", ["--stateless", "list", "ruleset"]).unwrap().stdout;
        text.replace("counter", "")
    };
    assert_eq!(rules(&plain), rules(lab.guest()));
}
