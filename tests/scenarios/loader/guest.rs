//! The guest as the loader leaves it.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, Namespace, SCRATCH, Service, SharedLab, loopback, pace,
    process::{COMMAND_LIMIT, Finished, run},
    tcp,
};

use crate::bpf;

/// The configuration with which whoever listens is steered: what a test serves itself is nobody's that is known.
pub const STEER: &str = "default = \"steer\"\n";
pub const BPFFS: &str = "/sys/fs/bpf";
pub const PINS: &str = "/sys/fs/bpf/wsl-mirror/v1";

/// How much [`Service::TcpSource`] of [`published`] sends.
pub const DOWNLOAD: u64 = 48 << 20;

/// Docker with an echo service published on 8080 and 8081, and a source on 8019. Shared with other tests.
pub fn published() -> Result<SharedLab> {
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
}

/// A client on Windows.
pub fn from_windows(lab: &Lab, port: u16) -> tcp::Client {
    tcp::Client::new(lab.windows(), loopback(port))
}

/// Whether a new connection from Windows to a published port works.
pub fn is_steered(lab: &Lab, port: u16) -> bool {
    from_windows(lab, port).limit(pace::limit(Duration::from_millis(700))).echo(b"hello").is_ok()
}

/// Runs `wsl-mirror` with these arguments and wants it to succeed.
pub fn ok(lab: &Lab, arguments: &[&str]) -> Result<Finished> {
    lab.wsl_mirror(arguments)?.success()
}

/// Runs it and wants this exit code; gives what it said on standard error.
pub fn refused(lab: &Lab, arguments: &[&str], code: i32) -> Result<String> {
    let finished = lab.wsl_mirror(arguments)?;
    ensure!(finished.status.code() == Some(code), "exit code {code} was wanted: {finished}");
    Ok(finished.stderr)
}

/// Runs it by another program: `strace …`, `setpriv …`.
pub fn run_wrapped(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Result<Finished> {
    run(&mut lab.wsl_mirror_wrapped(wrapper, arguments)?, COMMAND_LIMIT)
}

/// `status --json`, and its exit code.
pub fn status(lab: &Lab) -> Result<(Value, i32)> {
    lab.status_in(lab.guest())
}

/// `exempt list --json` as `PORT/PROTOCOL` or `PORT-PORT/PROTOCOL`.
pub fn exempt(lab: &Lab) -> Result<Vec<String>> {
    let list = ok(lab, &["exempt", "list", "--json"])?.stdout;
    let list: Vec<Value> = serde_json::from_str(&list)?;
    let text = |entry: &Value| {
        let (first, last) = (&entry["first_port"], &entry["last_port"]);
        let protocol = entry["protocol"].as_str().unwrap_or_default();
        if first == last { format!("{first}/{protocol}") } else { format!("{first}-{last}/{protocol}") }
    };
    Ok(list.iter().filter(|entry| entry["policy"] == "pass").map(text).collect())
}

/// Writes a configuration; gives its path in the guest.
pub fn config(lab: &Lab, text: &str) -> Result<String> {
    let path = format!("{SCRATCH}/wsl-mirror.toml");
    lab.guest().enter(|| fs::write(&path, text))?;
    Ok(path)
}

/// Runs a shell command in the guest and wants it to succeed.
pub fn sh(lab: &Lab, script: &str) -> Result<String> {
    Ok(lab.guest().run("sh", ["-ec", script])?.stdout)
}

/// The index of an interface.
pub fn ifindex(guest: &Namespace, interface: &str) -> Result<u32> {
    let text = guest.enter(|| fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")))?;
    Ok(text.trim().parse()?)
}

/// The id of the program on our hook, and the id of its link; on a hook without links, 0 for that.
pub fn ours(lab: &Lab) -> Result<(u32, u32)> {
    ours_of(lab, &status(lab)?.0)
}

/// The same, by what `status` has just said.
pub fn ours_of(lab: &Lab, status: &Value) -> Result<(u32, u32)> {
    let program = status["program"]["id"].as_u64().with_context(|| format!("no program: {status}"))?;
    if status["hook"] == "cls_bpf" {
        let filters = lab.guest().run("tc", ["filter", "show", "dev", "loopback0", "ingress"])?.stdout;
        ensure!(
            filters.contains(&format!(" id {program} ")),
            "program {program} is in no filter:\n{filters}"
        );
        return Ok((u32::try_from(program)?, 0));
    }
    let found = bpf::tcx(lab.guest())?.into_iter().find(|(id, _)| u64::from(*id) == program);
    found.with_context(|| format!("program {program} is not on the hook"))
}

/// Whatever a command of ours could change, as a text to be compared: bpffs with owners and modes, its mounts,
/// what is on the hooks of `loopback0`, `lo` and the policy rules, settings, exemptions.
pub fn everything(lab: &Lab) -> Result<String> {
    let guest = lab.guest();
    let mut text = guest.enter(|| -> Result<String> {
        let mut text = String::new();
        list(Path::new(BPFFS), &mut text)?;
        for line in fs::read_to_string("/proc/thread-self/mountinfo")?.lines() {
            if line.contains("/sys/fs/bpf") {
                writeln!(text, "{line}")?;
            }
        }
        Ok(text)
    })?;
    if guest.enter(|| Path::new("/sys/class/net/loopback0").exists()) {
        writeln!(text, "tcx {:?}", bpf::tcx(guest)?)?;
        text += &guest.batch(
            "tc",
            &[],
            "qdisc show dev loopback0\n\
             filter show dev loopback0 ingress\n\
             filter show dev loopback0 egress\n",
        )?;
    }
    text += &delivery(guest)?;
    // Of packets, which go on meanwhile, not a word.
    let status = lab.wsl_mirror(&["status"])?;
    let without_counters = status.stdout.split("\npackets so far").next().unwrap_or_default();
    writeln!(text, "{without_counters}\n{}", status.status)?;
    text += &lab.wsl_mirror(&["exempt", "list"])?.stdout;
    Ok(text)
}

/// What a load does to the network namespace itself, as a text to be compared.
pub fn delivery(guest: &Namespace) -> Result<String> {
    let script = "ip -4 rule; ip link show dev lo; cd /proc/sys/net/ipv4/conf; \
                  grep . lo/route_localnet lo/accept_local lo/rp_filter all/route_localnet all/accept_local";
    Ok(guest.run("sh", ["-ec", script])?.stdout)
}

/// Wants [`everything`] to be as it was; the error shows what is not.
pub fn unchanged(lab: &Lab, before: &str) -> Result<()> {
    let after = everything(lab)?;
    let only_in = |text: &str, other: &str| -> String {
        let lines: Vec<_> = text.lines().filter(|line| !other.lines().any(|l| l == *line)).collect();
        lines.join("\n  ")
    };
    ensure!(after == before, "gone:\n  {}\nnew:\n  {}", only_in(before, &after), only_in(&after, before));
    Ok(())
}

fn list(path: &Path, text: &mut String) -> Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for entry in entries {
        let found = fs::symlink_metadata(&entry)?;
        writeln!(text, "{} {:o} {}", entry.display(), found.mode(), found.uid())?;
        if found.is_dir() {
            list(&entry, text)?;
        }
    }
    Ok(())
}
