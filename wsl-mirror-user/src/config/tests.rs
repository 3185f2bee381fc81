use wsl_mirror_core::abi::{Path, Protocol};

use super::*;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
}

#[test]
fn every_key_is_understood() {
    let config = Config::parse(
        "interface = \"lo9\"\nalias = \"127.1.2.3\"\nsource_alias = \"192.0.0.9\"\nmark = 0x3000\ndefault = \"pass\"\n\
         path = \"proxy\"\nlinux_clients = \"off\"\nkeep_on_lo = \"off\"\nexempt = [22, \"53/udp\", \"8000-8001/tcp\"]\n\
         hook = \"cls_bpf\"\nlog = \"debug\"\n\
         owners = [{ name = \"rootlessport\", uid = 1000, policy = \"steer\" }, \
         { name = \"mine\", uid = \"any\", policy = \"pass\" }, { name = \"other\", policy = \"steer\" }]\n\
         [ports]\n8080 = { path = \"direct\" }\n\"53/tcp\" = { policy = \"steer\", path = \"auto\" }\n\
         5004 = { windows_never_sends = true }\n",
    )
    .unwrap();
    assert_eq!(config.interface, "lo9");
    assert_eq!((config.alias, config.mark), (Ipv4Addr::new(127, 1, 2, 3), 0x3000));
    assert_eq!(Policy::from(config.default), Policy::Pass);
    assert_eq!(config.source_alias, Ipv4Addr::new(192, 0, 0, 9));
    assert_eq!(config.path, PathChoice::Proxy);
    assert_eq!((config.linux_clients, config.keep_on_lo), (Switch::Off, Switch::Off));
    assert_eq!(config.hook, HookChoice::ClsBpf);
    assert_eq!(config.log, LogLevel::Debug);
    let policies = config.port_policies().into_iter();
    let policies: Vec<_> = policies.map(|(key, written)| (key.protocol, key.port, written)).collect();
    let owner = |name: &str, uid| Owner::new(name.as_bytes(), uid);
    let expected = [
        (owner("docker-proxy", 0), Policy::Steer),
        (owner("rootlessport", 1000), Policy::Steer),
        (owner("mine", Owner::ANY_UID), Policy::Pass),
        (owner("other", 0), Policy::Steer),
    ];
    let expected: BTreeMap<_, _> =
        expected.into_iter().map(|(owner, policy)| (owner, OwnerPolicy::new(policy))).collect();
    assert_eq!(config.owner_policies(), expected);
    let written = |protocol, port, policy: Policy, path: Path| {
        (protocol, port, PortPolicy { cli: 0, config: policy as u8, path: path as u8, flags: 0 })
    };
    let never_sent =
        |(protocol, port, written)| (protocol, port, PortPolicy { flags: PortPolicy::NEVER_SENT, ..written });
    let expected = [
        written(6, 22, Policy::Pass, Path::Unset),
        written(6, 53, Policy::Steer, Path::Auto),
        written(6, 8000, Policy::Pass, Path::Unset),
        written(6, 8001, Policy::Pass, Path::Unset),
        written(6, 8080, Policy::Unset, Path::Direct),
        written(17, 22, Policy::Pass, Path::Unset),
        never_sent(written(17, 53, Policy::Pass, Path::Unset)),
        never_sent(written(17, 68, Policy::Unset, Path::Unset)),
        never_sent(written(17, 5004, Policy::Unset, Path::Unset)),
        written(17, 8080, Policy::Unset, Path::Direct),
    ];
    assert_eq!(policies, expected);
}

#[test]
fn the_example_names_every_key_with_its_default() {
    let example = include_str!("../../../contrib/wsl-mirror.toml");
    assert_eq!(Config::parse(example).unwrap(), Config::default());
    let keys: Vec<_> = example.parse::<toml::Table>().unwrap().keys().cloned().collect();
    let mut known = problems::KEYS;
    known.sort_unstable();
    assert_eq!(keys, known);
}

#[test]
fn an_unknown_key_is_an_error_with_place_and_nearest_key() {
    assert_eq!(
        error("mark = 0x1000\nexemt = [22]\n"),
        "line 2, column 1: there is no key \"exemt\"; the nearest is `exempt`"
    );
}

#[test]
fn invalid_toml_is_an_error_with_line_and_column() {
    assert!(error("mark = \n").contains("line 1, column 8"), "{}", error("mark = \n"));
}

#[test]
fn a_bad_port_is_an_error_with_line_and_column() {
    for (text, place) in [
        ("exempt = [\n  22,\n  \"80800\",\n]", "line 3, column 3"),
        ("exempt = [0]", "line 1, column 11"),
        ("exempt = [22, -5]", "line 1, column 15"),
        ("exempt = [22, 70000]", "line 1, column 15"),
        ("exempt = [\"80/sctp\"]", "line 1, column 11"),
    ] {
        let error = error(text);
        assert!(error.contains(place), "{text}: {error}");
    }
}

#[test]
fn a_mark_with_too_many_bits_is_an_error() {
    for text in ["mark = 0xffffffff", "mark = -1", "mark = 0x1_0000_0000", "mark = 0x1ff", "mark = \"auto\""]
    {
        assert!(error(text).contains("line 1, column 8"), "{text}: {}", error(text));
    }
    assert_eq!(Config::parse("mark = 0xff").unwrap().mark, 0xff);
    assert_eq!(Config::parse("mark = 0").unwrap().mark, 0, "none");
}

#[test]
fn an_alias_that_is_not_only_this_machines_is_an_error() {
    for (alias, why) in [
        ("127.0.0.1", "tells carried flows from all others"),
        ("192.0.0.8", "only an address of 127.0.0.0/8"),
        ("128.0.0.1", "only an address of 127.0.0.0/8"),
        ("127.0.0", "no IPv4 address"),
        ("::1", "no IPv4 address"),
        ("localhost", "no IPv4 address"),
    ] {
        let error = error(&format!("alias = \"{alias}\""));
        assert!(error.contains("line 1, column 9") && error.contains(why), "{alias}: {error}");
    }
    assert!(error("alias = 2130706433").contains("line 1, column 9"));
    for alias in ["127.0.0.0", "127.0.0.2", "127.255.255.255"] {
        let config = Config::parse(&format!("alias = \"{alias}\"")).unwrap();
        assert_eq!(config.alias.to_string(), alias);
    }
}

#[test]
fn a_source_alias_that_no_machine_may_have_is_an_error() {
    for (alias, why) in [
        ("127.119.0.1", "containers cannot answer"),
        ("0.0.0.0", "no machine may have"),
        ("0.1.2.3", "no machine may have"),
        ("224.0.0.1", "no address of a single machine"),
        ("255.255.255.255", "no address of a single machine"),
        ("192.0.0.8/32", "no IPv4 address"),
        ("::1", "no IPv4 address"),
    ] {
        let error = error(&format!("source_alias = \"{alias}\""));
        assert!(error.contains("line 1, column 16") && error.contains(why), "{alias}: {error}");
    }
    assert!(error("source_alias = 3").contains("line 1, column 16"));
}

#[test]
fn clients_of_linux_are_switched_by_two_words() {
    for key in ["linux_clients", "keep_on_lo"] {
        let error = error(&format!("{key} = \"on\""));
        let place = format!("line 1, column {}", key.len() + 4);
        assert!(error.contains(&place) && error.contains("expected `auto` or `off`"), "{error}");
    }
    let config = Config::parse("linux_clients = \"off\"\nkeep_on_lo = \"auto\"").unwrap();
    assert_eq!((config.linux_clients, config.keep_on_lo), (Switch::Off, Switch::Auto));
}

#[test]
fn ports_that_windows_never_sends_are_built_in() {
    let policies = Config::default().port_policies();
    let ports: Vec<_> = policies.iter().map(|(key, written)| (key.protocol, key.port, *written)).collect();
    let never_sent = PortPolicy { flags: PortPolicy::NEVER_SENT, ..PortPolicy::default() };
    assert_eq!(ports, [(17, 53, never_sent), (17, 68, never_sent)]);
}

#[test]
fn an_unknown_path_is_an_error_with_line_and_column() {
    let error = error("path = \"fast\"");
    assert!(error.contains("line 1, column 8") && error.contains("expected one of `auto`"), "{error}");
}

#[test]
fn a_bad_entry_of_ports_is_an_error_with_line_and_column() {
    for (text, place, why) in [
        ("[ports]\n80800 = { path = \"auto\" }", "line 2, column 1", "80800 is no port"),
        ("[ports]\n\"80/sctp\" = { path = \"auto\" }", "line 2, column 1", "\"sctp\" is no protocol"),
        (
            "ports = { 1 = { path = \"auto\" }, x = { path = \"auto\" } }",
            "line 1, column 34",
            "\"x\" is no port",
        ),
        ("[ports]\n80 = {}", "line 2, column 6", "needs `policy`, `path` or `windows_never_sends"),
        ("[ports]\n80 = { windows_never_sends = false }", "line 2, column 6", "needs `policy`, `path` or"),
        ("[ports]\n\"80/tcp\" = { windows_never_sends = true }", "line 2, column 12", "is for UDP"),
        ("[ports]\n80 = { windows_never_sends = \"yes\" }", "line 2, column 30", "expected a boolean"),
        ("[ports]\n80 = \"pass\"", "line 2, column 6", "string"),
        ("[ports]\n80 = { policy = \"auto\" }", "line 2, column 17", "expected one of `pass`"),
        ("[ports]\n80 = { path = \"steer\" }", "line 2, column 15", "expected one of `auto`"),
        ("[ports]\n80 = { pth = \"auto\" }", "line 2, column 8", "the nearest is `path`"),
        ("ports = [80]", "line 1, column 9", "a table with keys like PORT"),
    ] {
        let error = error(text);
        assert!(error.contains(place) && error.contains(why), "{text}: {error}");
    }
}

#[test]
fn entries_that_contradict_each_other_are_both_named() {
    let text = "[ports]\n\"80-90/tcp\" = { policy = \"steer\" }\n\"90\" = { policy = \"direct\" }\n\
                85 = { policy = \"pass\", path = \"auto\" }\n\"85/udp\" = { path = \"proxy\" }\n";
    assert_eq!(
        error(text),
        "\n  line 3, column 1: 90 in `[ports]` says policy \"direct\" of port 90/tcp, and 80-90/tcp in `[ports]` says \
         \"steer\"\n  line 4, column 1: 85 in `[ports]` says policy \"pass\" of port 85/tcp, and 80-90/tcp in \
         `[ports]` says \"steer\"\n  line 5, column 1: 85/udp in `[ports]` says path \"proxy\" of port 85/udp, and 85 in \
         `[ports]` says \"auto\""
    );
    assert_eq!(
        error("exempt = [22, \"8000-8100\"]\n[ports]\n\"8080/tcp\" = { policy = \"steer\" }\n"),
        "line 3, column 1: 8080/tcp in `[ports]` says policy \"steer\" of port 8080/tcp, and 8000-8100 in `exempt` \
         says \"pass\""
    );
}

#[test]
fn entries_may_overlap_where_they_agree() {
    let text = "exempt = [8080]\n[ports]\n\"8000-9000\" = { path = \"direct\" }\n\"8080/tcp\" = { policy = \"pass\" }\n\
                \"8090\" = { policy = \"steer\", path = \"direct\" }\n\"8081/udp\" = { policy = \"direct\" }\n";
    let policies = Config::parse(text).unwrap().port_policies();
    let written = |protocol, port| {
        let written = policies[&PortKey::new(protocol, port)];
        (written.effective(), written.path())
    };
    assert_eq!(written(Protocol::Tcp, 8080), (Policy::Pass, Path::Direct));
    assert_eq!(written(Protocol::Udp, 8081), (Policy::Direct, Path::Direct));
    assert_eq!(written(Protocol::Tcp, 8081), (Policy::Unset, Path::Direct));
    assert_eq!(written(Protocol::Udp, 8090), (Policy::Steer, Path::Direct));
}

#[test]
fn the_examples_of_ports_are_valid() {
    let example = include_str!("../../../contrib/wsl-mirror.toml");
    let (_, ports) = example.split_once("\n[ports]\n").unwrap();
    let config = Config::parse(&format!("[ports]\n{}", ports.replace("# ", ""))).unwrap();
    assert_eq!(config.ports.len(), 4);
}

#[test]
fn the_key_of_an_older_mechanism_is_unknown() {
    assert!(error("delivery = \"auto\"").contains("there is no key \"delivery\""));
}

#[test]
fn a_built_in_owner_can_be_overruled() {
    let text = "owners = [{ name = \"docker-proxy\", policy = \"pass\" }]";
    let owners = Config::parse(text).unwrap().owner_policies();
    let pass = OwnerPolicy::new(Policy::Pass);
    assert_eq!(owners.into_iter().collect::<Vec<_>>(), [(Owner::new(b"docker-proxy", 0), pass)]);
}

#[test]
fn a_bad_owner_is_an_error_with_line_and_column() {
    for (text, place) in [
        ("owners = [{ name = \"\", policy = \"steer\" }]", "line 1, column 20"),
        ("owners = [{ name = \"a-name-of-16-byte\", policy = \"steer\" }]", "line 1, column 20"),
        ("owners = [{ name = \"a\", uid = -1, policy = \"steer\" }]", "line 1, column 31"),
        ("owners = [{ name = \"a\", uid = 4294967295, policy = \"steer\" }]", "line 1, column 31"),
        ("owners = [{ name = \"a\", uid = \"root\", policy = \"steer\" }]", "line 1, column 31"),
        ("owners = [{ name = \"a\" }]", "line 1, column 11"),
        ("owners = [{ name = \"a\", policy = \"direct\" }]", "line 1, column 34"),
        ("owners = [{ nam = \"a\", policy = \"pass\" }]", "line 1, column 13"),
        (
            "owners = [{ name = \"a\", policy = \"pass\" }, { name = \"a\", policy = \"steer\" }]",
            "line 1, column 10",
        ),
    ] {
        let error = error(text);
        assert!(error.contains(place), "{text}: {error}");
    }
}

#[test]
fn a_name_that_no_interface_can_have_is_an_error() {
    assert!(error("interface = \"a/b\"").contains("line 1, column 13"));
}
