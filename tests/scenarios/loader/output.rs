//! What people and programs read.

use std::collections::BTreeSet;

use serde_json::Value;
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, STEER, config, ok, refused, sh, status, wrapped},
    loopback, pins, servers, tcp,
};

use crate::bpf;

/// A guest with something to show.
#[track_caller]
fn shown() -> Lab {
    let lab = Lab::builder().build().or_panic();
    let path = config(&lab, &format!("exempt = [\"8300-8309/tcp\"]\n{STEER}"));
    ok(&lab, &["load", "--config", &path]);
    ok(&lab, &["exempt", "add", "8300/tcp", "53/udp"]);
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    assert_eq!(tcp::Client::new(lab.windows(), loopback(8100)).echo(b"hello"), Ok(b"hello".to_vec()));
    lab
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[test]
fn json_has_the_documented_shape() {
    let lab = Lab::builder().build().unwrap();
    assert_eq!(status(&lab), (serde_json::json!({"loaded": false, "steering": false}), 3));
    refused(&lab, &["exempt", "list", "--json"], 3);

    let lab = shown();
    let hook = if bpf::has_tcx(&lab) { "tcx" } else { "cls_bpf" };
    let (status, code) = status(&lab);
    assert_eq!(code, 0);
    let all = [
        "loaded",
        "steering",
        "attachment",
        "interface",
        "ifindex",
        "networking",
        "hook",
        "program",
        "alias",
        "source_alias",
        "carrying",
        "keep_on_lo",
        "linux_clients",
        "mark",
        "default_policy",
        "path",
        "owners",
        "exempt_ports",
        "policies",
        "targets",
        "direct_without_target",
        "verdicts",
        "ports",
    ];
    assert_eq!(keys(&status), BTreeSet::from(all));
    assert_eq!(
        (&status["interface"], &status["hook"], &status["mark"]),
        (&"loopback0".into(), &hook.into(), &128.into())
    );
    assert_eq!(status["alias"], "127.119.0.1");
    let source = serde_json::json!({"address": "192.0.0.8", "route": true, "rules": true, "obstacle": null});
    assert_eq!((&status["source_alias"], &status["path"]), (&source, &"auto".into()));
    assert_eq!(status["carrying"], serde_json::json!({"state": "on", "obstacles": [], "unread": []}));
    let clients = &status["linux_clients"];
    assert_eq!((&clients["state"], &clients["udp_hooks"]), (&"translated".into(), &false.into()));
    assert_eq!(clients["outcomes"][0], serde_json::json!({"outcome": "translated", "count": 0}));
    let verdicts: BTreeSet<_> =
        status["verdicts"].as_array().unwrap().iter().filter_map(|entry| entry["verdict"].as_str()).collect();
    assert_eq!(verdicts, BTreeSet::from(["direct", "drop", "failed", "pass", "steer"]));
    let proxy = serde_json::json!({"name": "docker-proxy", "uid": 0, "policy": "steer"});
    assert_eq!(status["owners"], Value::from(vec![proxy]));
    assert_eq!((&status["exempt_ports"], &status["policies"]), (&11.into(), &11.into()));
    assert_eq!(keys(&status["verdicts"][0]), BTreeSet::from(["verdict", "reason", "packets"]));
    assert_eq!(status["verdicts"][0]["reason"], "steer_new");
    assert_eq!(status["verdicts"][0]["packets"], 1);
    let port = &status["ports"][0];
    let fields = [
        "port",
        "protocol",
        "steered_flows",
        "steered_packets",
        "direct_flows",
        "direct_packets",
        "passed_packets",
        "failed_packets",
    ];
    assert_eq!(keys(port), BTreeSet::from(fields));
    assert_eq!(
        (&port["port"], &port["protocol"], &port["steered_flows"]),
        (&8100.into(), &"tcp".into(), &1.into())
    );

    // The program as bpftool names it.
    let program = sh(&lab, &format!("bpftool -j prog show pinned {}", pins::path("program")));
    let program: Value = serde_json::from_str(&program).unwrap();
    for field in ["id", "name", "tag"] {
        assert_eq!(status["program"][field], program[field], "{field}");
    }

    let list: Value = serde_json::from_str(&ok(&lab, &["exempt", "list", "--json"]).stdout).unwrap();
    let entry = |first: u16, last: u16, protocol, cli, config| {
        serde_json::json!({
            "first_port": first, "last_port": last, "protocol": protocol, "policy": "pass", "cli": cli,
            "config": config,
        })
    };
    let expected = [
        entry(8300, 8300, "tcp", "pass", "pass"),
        entry(8301, 8309, "tcp", "unset", "pass"),
        entry(53, 53, "udp", "pass", "unset"),
    ];
    assert_eq!(list, Value::from(expected.to_vec()));
}

#[test]
fn text_is_aligned_and_coloured_only_on_a_terminal() {
    let lab = shown();
    let list = ok(&lab, &["exempt", "list"]).stdout;
    let expected = "port           policy  command line  configuration\n\
                    8300/tcp       pass    pass          pass\n\
                    8301-8309/tcp  pass    unset         pass\n\
                    53/udp         pass    pass          unset\n";
    assert_eq!(list, expected);
    let text = ok(&lab, &["status"]).stdout;
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(text.starts_with("steering loopback0 (index "), "{text}");
    assert!(text.contains("\nexempt   11 ports"), "{text}");
    // Numbers stand below the end of their heading, texts below its beginning.
    let lines: Vec<&str> = text.lines().collect();
    let heading = lines.iter().position(|line| line.starts_with("reason")).expect("no table");
    let (end, meaning) = (lines[heading].find("packets"), lines[heading].find("meaning"));
    let (end, meaning) = (end.expect("no packets") + "packets".len(), meaning.expect("no meaning"));
    let rows: Vec<_> = lines[heading + 1..].iter().take_while(|line| !line.is_empty()).collect();
    assert!(rows.len() >= 2, "{text}");
    for row in rows {
        assert!(row.as_bytes()[end - 1].is_ascii_digit(), "{text}");
        assert_eq!(&row[end..meaning], "  ", "{text}");
        assert_ne!(row.as_bytes()[meaning], b' ', "{text}");
    }

    let on_terminal = |environment: &str| -> String {
        let script = format!("exec script -qec \"{environment} $0 $*\" /dev/null");
        wrapped(&lab, &["sh", "-c", &script], &["status"]).success().unwrap().stdout
    };
    assert!(
        on_terminal("env TERM=xterm").starts_with("\x1b[1m\x1b[32msteering\x1b[0m "),
        "{:?}",
        on_terminal("")
    );
    assert!(!on_terminal("env NO_COLOR=1").contains('\x1b'));
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let lab = shown();
    for arguments in
        [["status"].as_slice(), &["status", "--json"], &["exempt", "list"], &["load", "--dry-run"]]
    {
        // The reader is gone before the first byte is written, for sure.
        let script = "{ sleep 0.1; \"$0\" \"$@\"; echo \"code $?\" >&2; } | true";
        let finished = wrapped(&lab, &["sh", "-c", script], arguments).success().unwrap();
        assert!(finished.stderr == "code 0\n", "{finished}");
    }
}

#[test]
fn the_help_names_every_exit_code() {
    let lab = Lab::builder().build().unwrap();
    let help = ok(&lab, &["--help"]).stdout;
    for code in 0..=19 {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))),
            "{code}: {help}"
        );
    }
}
