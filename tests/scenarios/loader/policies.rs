//! `wsl-mirror policy` and `[ports]` of the configuration.

use serde_json::{Value, json};
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, config, load_with, ok, refused, status},
};

use crate::guest::exempt_ports;

const PORTS: &str = "path = \"proxy\"\nexempt = [\"8300/tcp\"]\n[ports]\n\"8301-8302/tcp\" = { path = \"direct\" }\n\
                     \"8302/udp\" = { policy = \"steer\", path = \"auto\" }\n";

/// `policy list --json`.
#[track_caller]
fn list(lab: &Lab) -> Value {
    serde_json::from_str(&ok(lab, &["policy", "list", "--json"]).stdout).or_panic()
}

fn entry(ports: [u16; 2], protocol: &str, policy: [&str; 3], path: &str) -> Value {
    let [first, last] = ports;
    let [policy, cli, config] = policy;
    json!({
        "first_port": first, "last_port": last, "protocol": protocol, "policy": policy, "cli": cli, "config": config,
        "path": path,
    })
}

#[test]
fn a_list_shows_who_wrote_which_policy_and_path() {
    let lab = Lab::builder().build().unwrap();
    load_with(&lab, PORTS);
    assert_eq!(status(&lab).0["path"], "proxy");
    ok(&lab, &["policy", "set", "8300/tcp", "8302/udp", "direct"]);
    ok(&lab, &["policy", "set", "8400", "pass"]);
    let expected = [
        entry([8300, 8300], "tcp", ["direct", "direct", "pass"], "unset"),
        entry([8301, 8302], "tcp", ["unset", "unset", "unset"], "direct"),
        entry([8400, 8400], "tcp", ["pass", "pass", "unset"], "unset"),
        entry([8302, 8302], "udp", ["direct", "direct", "steer"], "auto"),
        entry([8400, 8400], "udp", ["pass", "pass", "unset"], "unset"),
    ];
    assert_eq!(list(&lab), Value::from(expected.to_vec()));
    let text = "port           policy  command line  configuration  path\n\
                8300/tcp       direct  direct        pass           unset\n\
                8301-8302/tcp  unset   unset         unset          direct\n\
                8400/tcp       pass    pass          unset          unset\n\
                8302/udp       direct  direct        steer          auto\n\
                8400/udp       pass    pass          unset          unset\n";
    assert_eq!(ok(&lab, &["policy", "list"]).stdout, text);
    assert_eq!(exempt_ports(&lab), ["8400/tcp", "8400/udp"]);
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\npath     proxy\n"), "{text}");
    assert!(
        text.contains("\nexempt   2 ports (")
            && text.contains("\npolicies direct: 2 ports, a path of their own: 3 ports ("),
        "{text}"
    );
}

#[test]
fn policies_of_the_command_line_survive_loads_until_unset() {
    let lab = Lab::builder().build().unwrap();
    load_with(&lab, PORTS);
    ok(&lab, &["policy", "set", "8300-8301/tcp", "steer"]);
    load_with(&lab, "exempt = [\"8301/tcp\"]\n");
    let expected = [
        entry([8300, 8300], "tcp", ["steer", "steer", "unset"], "unset"),
        entry([8301, 8301], "tcp", ["steer", "steer", "pass"], "unset"),
    ];
    assert_eq!(list(&lab), Value::from(expected.to_vec()));
    let unset = ok(&lab, &["policy", "unset", "8300-8301/tcp"]);
    assert_eq!(unset.stderr, "wsl-mirror: 8301/tcp still has the policy pass, by the configuration file\n");
    assert_eq!(list(&lab), json!([entry([8301, 8301], "tcp", ["pass", "unset", "pass"], "unset")]));
    load_with(&lab, "");
    assert_eq!(list(&lab), json!([]));
    assert_eq!(ok(&lab, &["policy", "list"]).stdout, "");
}

#[test]
fn exempt_is_the_short_form_of_pass() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    ok(&lab, &["policy", "set", "8300/tcp", "direct"]);
    ok(&lab, &["policy", "set", "8301/tcp", "pass"]);
    assert_eq!(exempt_ports(&lab), ["8301/tcp"]);
    // `del` takes back exemptions, and nothing else.
    ok(&lab, &["exempt", "del", "8300-8301/tcp"]);
    assert_eq!(list(&lab), json!([entry([8300, 8300], "tcp", ["direct", "direct", "unset"], "unset")]));
    ok(&lab, &["exempt", "add", "8300/tcp"]);
    assert_eq!(list(&lab), json!([entry([8300, 8300], "tcp", ["pass", "pass", "unset"], "unset")]));
    ok(&lab, &["policy", "unset", "8300/tcp"]);
    assert_eq!(list(&lab), json!([]));
}

#[test]
fn a_policy_that_cannot_be_written_is_refused() {
    let lab = Lab::builder().build().unwrap();
    for arguments in
        [["policy", "list"].as_slice(), &["policy", "set", "80", "direct"], &["policy", "unset", "80"]]
    {
        let said = refused(&lab, arguments, 3);
        assert!(said.contains("nothing is loaded") && said.contains("`[ports]`"), "{said}");
    }
    ok(&lab, &["load"]);
    for arguments in [
        ["policy", "set", "80"].as_slice(),
        &["policy", "set", "direct"],
        &["policy", "set", "80", "auto"],
        &["policy", "set", "80/sctp", "pass"],
        &["policy", "unset"],
        &["policy", "unset", "80", "direct"],
    ] {
        refused(&lab, arguments, 2);
    }
    assert_eq!(list(&lab), json!([]));
    let both = config(&lab, "exempt = [80]\n[ports]\n\"80/tcp\" = { policy = \"direct\" }\n");
    let said = refused(&lab, &["load", "--config", &both], 6);
    assert!(said.contains("80/tcp in `[ports]`") && said.contains("80 in `exempt`"), "{said}");
}
