//! The guest as the loader leaves it.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, Service, SharedLab,
    checks::{OrPanic as _, network, ok, status, windows},
    pace, pins,
};

use crate::bpf;

/// How much [`Service::TcpSource`] of [`published`] sends.
pub const DOWNLOAD: u64 = 48 << 20;

/// Docker with an echo service published on 8080 and 8081, and a source on 8019. Shared with other tests.
#[track_caller]
pub fn published() -> SharedLab {
    SharedLab::take(
        Lab::builder(),
        &DockerOptions::default(),
        Container::new("web")
            .serve(Service::TcpEcho { port: 7 })
            .serve(Service::TcpSource { port: 19, bytes: DOWNLOAD })
            .publish("8080:7")
            .publish("8081:7")
            .publish("8019:19"),
    )
    .or_panic()
}

/// Whether a new connection from Windows to a published port works.
pub fn is_steered(lab: &Lab, port: u16) -> bool {
    windows(lab, port).limit(pace::limit(Duration::from_millis(700))).echo(b"hello").is_ok()
}

/// `exempt list --json` as `PORT/PROTOCOL` or `PORT-PORT/PROTOCOL`.
#[track_caller]
pub fn exempt_ports(lab: &Lab) -> Vec<String> {
    let list = ok(lab, &["exempt", "list", "--json"]).stdout;
    let list: Vec<Value> = serde_json::from_str(&list).or_panic();
    let text = |entry: &Value| {
        let (first, last) = (&entry["first_port"], &entry["last_port"]);
        let protocol = entry["protocol"].as_str().unwrap_or_default();
        if first == last { format!("{first}/{protocol}") } else { format!("{first}-{last}/{protocol}") }
    };
    list.iter().filter(|entry| entry["policy"] == "pass").map(text).collect()
}

/// The id of the program on our hook, and the id of its link; on a hook without links, 0 for that.
#[track_caller]
pub fn ours(lab: &Lab) -> (u32, u32) {
    ours_of(lab, &status(lab).0)
}

/// The same, by what `status` has just said.
#[track_caller]
pub fn ours_of(lab: &Lab, status: &Value) -> (u32, u32) {
    let program =
        status["program"]["id"].as_u64().with_context(|| format!("no program: {status}")).or_panic();
    if status["hook"] == "cls_bpf" {
        let filters =
            lab.guest().run("tc", ["filter", "show", "dev", "loopback0", "ingress"]).or_panic().stdout;
        assert!(
            filters.contains(&format!(" id {program} ")),
            "program {program} is in no filter:\n{filters}"
        );
        return (u32::try_from(program).or_panic(), 0);
    }
    let found = bpf::tcx(lab.guest()).into_iter().find(|(id, _)| u64::from(*id) == program);
    found.with_context(|| format!("program {program} is not on the hook")).or_panic()
}

/// Whatever a command of ours could change, as a text to be compared: bpffs with owners and modes, its mounts,
/// what is on the hooks of `loopback0`, policy rules, settings, exemptions.
#[track_caller]
pub fn everything(lab: &Lab) -> String {
    let guest = lab.guest();
    let mut text = guest.enter(|| -> String {
        let mut text = String::new();
        list(Path::new(pins::BPFFS), &mut text);
        for line in fs::read_to_string("/proc/thread-self/mountinfo").or_panic().lines() {
            if line.contains(pins::BPFFS) {
                writeln!(text, "{line}").or_panic();
            }
        }
        text
    });
    if guest.enter(|| Path::new("/sys/class/net/loopback0").exists()) {
        writeln!(text, "tcx {:?}", bpf::tcx(guest)).or_panic();
        text += &guest
            .batch(
                "tc",
                &[],
                "qdisc show dev loopback0\n\
             filter show dev loopback0 ingress\n\
             filter show dev loopback0 egress\n",
            )
            .or_panic();
    }
    text += &network(guest);
    // Of packets, which go on meanwhile, not a word.
    let status = lab.wsl_mirror(&["status"]).or_panic();
    let without_packets = status.stdout.split("\npackets so far").next().unwrap_or_default();
    let without_counters = without_packets.split("\nconnects of Linux").next().unwrap_or_default();
    writeln!(text, "{without_counters}\n{}", status.status).or_panic();
    text += &lab.wsl_mirror(&["exempt", "list"]).or_panic().stdout;
    text
}

/// Wants [`everything`] to be as it was; the error shows what is not.
#[track_caller]
pub fn unchanged(lab: &Lab, before: &str) {
    let after = everything(lab);
    let only_in = |text: &str, other: &str| -> String {
        let lines: Vec<_> = text.lines().filter(|line| !other.lines().any(|l| l == *line)).collect();
        lines.join("\n  ")
    };
    assert!(after == before, "gone:\n  {}\nnew:\n  {}", only_in(before, &after), only_in(&after, before));
}

#[track_caller]
fn list(path: &Path, text: &mut String) {
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .or_panic()
        .map(|entry| Ok(entry.or_panic().path()))
        .collect::<std::io::Result<_>>()
        .or_panic();
    entries.sort();
    for entry in entries {
        let found = fs::symlink_metadata(&entry).or_panic();
        writeln!(text, "{} {:o} {}", entry.display(), found.mode(), found.uid()).or_panic();
        if found.is_dir() {
            list(&entry, text);
        }
    }
}
