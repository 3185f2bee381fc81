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
        "interface = \"lo9\"\nalias = \"127.1.2.3\"\nmark = 0x3000\ndefault = \"pass\"\nexempt = [22, \"53/udp\", \"8000-8001/tcp\"]\n\
         hook = \"cls_bpf\"\nlog = \"debug\"\n\
         owners = [{ name = \"rootlessport\", uid = 1000, policy = \"steer\" }, \
         { name = \"mine\", uid = \"any\", policy = \"pass\" }, { name = \"other\", policy = \"steer\" }]\n",
    )
    .unwrap();
    assert_eq!(config.interface, "lo9");
    assert_eq!((config.alias, config.mark), (Ipv4Addr::new(127, 1, 2, 3), 0x3000));
    assert_eq!(Policy::from(config.default), Policy::Pass);
    assert_eq!(config.hook, HookChoice::ClsBpf);
    assert_eq!(config.log, LogLevel::Debug);
    let keys: Vec<_> = config.exempt_keys().iter().map(|key| (key.protocol, key.port)).collect();
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
    assert_eq!(keys, [(6, 22), (6, 8000), (6, 8001), (17, 22), (17, 53)]);
}

#[test]
fn the_example_names_every_key_with_its_default() {
    let example = include_str!("../../../contrib/wsl-mirror.toml");
    assert_eq!(Config::parse(example).unwrap(), Config::default());
    let keys: Vec<_> = example.parse::<toml::Table>().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["alias", "default", "exempt", "hook", "interface", "log", "mark", "owners"]);
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
