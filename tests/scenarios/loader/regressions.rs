//! What was once found broken, and stays mended.

use std::time::Duration;

use wsl_mirror_lab::{
    Lab,
    checks::{config, ok, refused, sh, status},
    pace, pins,
    process::Background,
};

use crate::{
    bpf,
    guest::{is_steered, published},
};

#[test]
fn a_steered_interface_that_is_renamed_is_still_known_and_unloaded() {
    for hook in ["tcx", "cls_bpf"] {
        let lab = Lab::builder().build().unwrap();
        if hook == "tcx" && !bpf::has_tcx(&lab) {
            continue;
        }
        let config = config(&lab, &format!("hook = \"{hook}\"\n"));
        ok(&lab, &["load", "--config", &config]);
        sh(&lab, "ip link set loopback0 down; ip link set loopback0 name lbx; ip link set lbx up");
        let (found, code) = status(&lab);
        assert!((&found["attachment"], code) == (&"alive".into(), 0), "{hook}: {found}");
        // Under the name that it has now, it is the same one.
        ok(&lab, &["load", "--config", &config, "--interface", "lbx"]);
        ok(&lab, &["unload"]);
        let left = sh(&lab, "tc filter show dev lbx ingress; tc qdisc show dev lbx clsact");
        assert!(left.is_empty(), "{hook}: {left}");
        assert!(bpf::tcx_on(lab.guest(), "lbx").is_empty(), "{hook}: a program is left");
    }
}

#[test]
fn exemptions_shown_to_a_slow_reader_keep_nobody_waiting() {
    const READS_AFTER: Duration = Duration::from_secs(5);
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    // No two neighbours, so that each has a line of its own: more than a pipe holds.
    let ports: Vec<String> = (0..3000).map(|n| format!("{}/tcp", 20_001 + 2 * n)).collect();
    let mut arguments = vec!["exempt", "add"];
    arguments.extend(ports.iter().map(String::as_str));
    ok(&lab, &arguments);

    let list = lab.wsl_mirror_command(&["exempt", "list"]).unwrap();
    let reads_after = pace::limit(READS_AFTER);
    let script = format!("'{}' exempt list | sleep {}", list.get_program().display(), reads_after.as_secs());
    let _pager = Background::spawn(lab.guest().command("sh").args(["-c", &script])).unwrap();
    // Until it writes into the full pipe.
    std::thread::sleep(Duration::from_millis(700));
    let took = ok(&lab, &["load"]).took;
    assert!(took < reads_after / 2, "load waited {took:?}");
}

#[test]
fn a_bpffs_that_became_read_only_is_not_taken_for_another_layout() {
    let lab = published();
    ok(&lab, &["load"]);
    sh(&lab, "mount -n -o remount,ro /sys/fs/bpf");
    for command in [["status"].as_slice(), &["load"], &["exempt", "list"]] {
        let said = refused(&lab, command, 16);
        assert!(said.contains("Read-only") && !said.contains("rm -r"), "{command:?}: {said}");
    }
    assert!(is_steered(&lab, 8080), "the steering goes on");
    sh(&lab, "mount -n -o remount,rw /sys/fs/bpf");
    ok(&lab, &["status"]);
}

#[test]
fn keys_that_are_no_port_are_shown_to_nobody() {
    let lab = published();
    ok(&lab, &["load"]);
    let map = pins::path("PORT_POLICY");
    for key in ["06 05 90 1f", "63 00 90 1f", "06 00 00 00"] {
        sh(&lab, &format!("bpftool map update pinned {map} key hex {key} value hex 01 00 00 00"));
    }
    assert!(ok(&lab, &["exempt", "list"]).stdout.is_empty());
    assert!(status(&lab).0["exempt_ports"] == 0);
    assert!(is_steered(&lab, 8080), "nor do they mean anything");
}
