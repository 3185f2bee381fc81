//! The hook of kernels without tcx, on a kernel that has both.

use wsl_mirror_lab::{
    Lab,
    checks::{config, ok, refused, sh, status},
    pace,
};

use crate::{
    bpf,
    guest::{everything, is_steered, published, unchanged},
    upgrade::under_traffic,
};

const OURS: &str = "handle 0x77736d wsl_mirror direct-action";

#[track_caller]
fn filters(lab: &Lab) -> String {
    sh(lab, "tc filter show dev loopback0 ingress")
}

#[track_caller]
fn has_clsact(lab: &Lab) -> bool {
    sh(lab, "tc qdisc show dev loopback0").contains("qdisc clsact")
}

#[track_caller]
fn by_cls_bpf(lab: &Lab) -> String {
    config(lab, "hook = \"cls_bpf\"\n")
}

#[test]
fn a_filter_steers_and_is_replaced_under_traffic() {
    let lab = published();
    let before = everything(&lab);
    let config = by_cls_bpf(&lab);
    let load = ["load", "--config", config.as_str()];
    ok(&lab, &load);
    assert!(is_steered(&lab, 8080));
    assert_eq!(status(&lab).0["hook"], "cls_bpf");
    assert_eq!(bpf::tcx(lab.guest()), []);
    let mut program = status(&lab).0["program"]["id"].clone();
    under_traffic(&lab, || {
        for _ in 0..pace::rounds(20) {
            ok(&lab, &load);
            let now = status(&lab).0["program"]["id"].clone();
            assert!(now != program && now.is_u64(), "{now} after {program}");
            program = now;
        }
    });
    let filters = filters(&lab);
    assert_eq!(filters.matches("handle").count(), 1, "they pile up: {filters}");
    assert!(filters.contains(OURS) && filters.contains("pref 1 "), "{filters}");
    ok(&lab, &["unload"]);
    unchanged(&lab, &before);
    assert!(!is_steered(&lab, 8080));
}

#[test]
fn a_qdisc_that_somebody_else_made_or_uses_stays() {
    const THEIRS: &str = "prio 1 protocol all handle 7";
    for (theirs_first, direction) in
        [(true, None), (true, Some("ingress")), (false, Some("ingress")), (false, Some("egress"))]
    {
        let lab = Lab::builder().build().unwrap();
        let add_theirs = || {
            if theirs_first {
                sh(&lab, "tc qdisc add dev loopback0 clsact");
            }
            if let Some(direction) = direction {
                bpf::add_filter(&lab, direction, THEIRS);
            }
        };
        let config = by_cls_bpf(&lab);
        if theirs_first {
            add_theirs();
        }
        let load = ["load", "--config", config.as_str()];
        ok(&lab, &load);
        if !theirs_first {
            add_theirs();
        }
        ok(&lab, &load);
        ok(&lab, &["unload"]);
        assert!(has_clsact(&lab), "{theirs_first} {direction:?}");
        assert!(!filters(&lab).contains("wsl_mirror"), "{theirs_first} {direction:?}");
        if let Some(direction) = direction {
            let left = sh(&lab, &format!("tc filter show dev loopback0 {direction}"));
            assert!(left.contains("handle 0x7 "), "{theirs_first} {direction}: {left}");
        }
    }
}

#[test]
fn a_priority_that_somebody_else_has_is_left_to_them() {
    let lab = Lab::builder().build().unwrap();
    sh(&lab, "tc qdisc add dev loopback0 clsact");
    let config = by_cls_bpf(&lab);
    // One for a protocol of its own; one that has our very handle.
    for theirs in ["prio 1 protocol ip handle 7", "prio 1 protocol all handle 0x77736d"] {
        bpf::add_filter(&lab, "ingress", theirs);
        let before = everything(&lab);
        let said = refused(&lab, &["load", "--config", &config], 16);
        assert!(
            said.contains("priority 1") && said.contains("tc filter show dev loopback0 ingress"),
            "{said}"
        );
        unchanged(&lab, &before);
        sh(&lab, "tc filter del dev loopback0 ingress");
    }
}

#[test]
fn the_hook_is_not_changed_while_loaded() {
    let lab = Lab::builder().build().unwrap();
    let config = by_cls_bpf(&lab);
    let by_cls_bpf = ["load", "--config", config.as_str()];
    let by_tcx = ["load", "--config", "/dev/null"];
    if !bpf::has_tcx(&lab) {
        // There is nothing to change to, and `load` takes this hook by itself.
        ok(&lab, &by_tcx);
        assert!(filters(&lab).contains(OURS));
        return;
    }
    for (first, second) in [(by_cls_bpf, by_tcx), (by_tcx, by_cls_bpf)] {
        ok(&lab, &first);
        let loaded = everything(&lab);
        let said = refused(&lab, &second, 15);
        assert!(said.contains("wsl-mirror unload"), "{said}");
        unchanged(&lab, &loaded);
        ok(&lab, &["unload"]);
        ok(&lab, &second);
        ok(&lab, &["unload"]);
    }
}

#[test]
fn a_filter_that_a_terminated_distribution_left_is_adopted() {
    let lab = Lab::builder().build().unwrap();
    let config = by_cls_bpf(&lab);
    ok(&lab, &["load", "--config", &config]);
    // Its bpffs goes with it; the filter hangs on the interface, which all distributions share.
    sh(&lab, "umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf");
    assert_eq!(status(&lab).1, 3);
    ok(&lab, &["load", "--config", &config]);
    assert_eq!(filters(&lab).matches("handle").count(), 1);
    assert_eq!(status(&lab).1, 0);
    ok(&lab, &["unload"]);
    assert_eq!(filters(&lab), "");
}
