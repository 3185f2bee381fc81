//! Commands and checks that panic at the caller's line: the test that called fails there.

use std::{
    ffi::OsStr,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use serde_json::Value;

use crate::{
    Lab, Maker, Namespace, SCRATCH,
    clients::Clients,
    loopback, pins,
    process::{COMMAND_LIMIT, Finished, run, wait_for},
    tcp, udp,
};

/// The configuration that steers every listener: a test's own servers have no owner that the loader knows.
pub const STEER: &str = "default = \"steer\"\n";
/// The request that tests send to echo services.
pub const HELLO: &[u8] = b"hello";

/// Takes the value, or panics at the caller's line with the whole chain of errors.
///
/// For helpers: clippy allows `unwrap` only inside of `#[test]` functions. An `Option` takes `context` first, so that
/// the panic names what is missing.
pub trait OrPanic {
    /// The value on success.
    type Value;

    /// The value; panics without one.
    #[track_caller]
    fn or_panic(self) -> Self::Value;
}

impl<T, E: Into<anyhow::Error>> OrPanic for Result<T, E> {
    type Value = T;

    #[track_caller]
    fn or_panic(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{:#}", error.into()),
        }
    }
}

/// Runs `wsl-mirror` in the guest; panics if it fails.
#[track_caller]
pub fn ok(lab: &Lab, arguments: &[&str]) -> Finished {
    lab.wsl_mirror(arguments).and_then(Finished::success).or_panic()
}

/// Runs `wsl-mirror` in another distribution; panics if it fails.
#[track_caller]
pub fn ok_in(lab: &Lab, distribution: &Namespace, arguments: &[&str]) -> Finished {
    lab.wsl_mirror_in(distribution, arguments).and_then(Finished::success).or_panic()
}

/// Runs `wsl-mirror` in the guest by another program: `strace …`, `setpriv …`.
#[track_caller]
pub fn wrapped(lab: &Lab, wrapper: &[impl AsRef<OsStr>], arguments: &[&str]) -> Finished {
    lab.wsl_mirror_wrapped(wrapper, arguments)
        .and_then(|mut command| run(&mut command, COMMAND_LIMIT))
        .or_panic()
}

/// Runs `wsl-mirror` in the guest; panics at any other exit code. Returns its standard error.
#[track_caller]
pub fn refused(lab: &Lab, arguments: &[&str], code: i32) -> String {
    let finished = lab.wsl_mirror(arguments).or_panic();
    assert!(finished.status.code() == Some(code), "exit code {code} was wanted: {finished}");
    finished.stderr
}

/// `wsl-mirror load`; panics if it fails.
#[track_caller]
pub fn load(lab: &Lab) {
    ok(lab, &["load"]);
}

/// `wsl-mirror load` with this configuration; panics if it fails.
#[track_caller]
pub fn load_with(lab: &Lab, configuration: &str) {
    let path = config(lab, configuration);
    ok(lab, &["load", "--config", &path]);
}

/// `wsl-mirror unload`; panics if it fails.
#[track_caller]
pub fn unload(lab: &Lab) {
    ok(lab, &["unload"]);
}

/// `wsl-mirror status --json`, and its exit code.
#[track_caller]
pub fn status(lab: &Lab) -> (Value, i32) {
    lab.status_in(lab.guest()).or_panic()
}

/// Writes a configuration into the scratch directory; returns its path in the guest.
#[track_caller]
pub fn config(lab: &Lab, text: &str) -> String {
    let path = format!("{SCRATCH}/wsl-mirror.toml");
    lab.guest().enter(|| fs::write(&path, text)).or_panic();
    path
}

/// Runs a shell script in the guest; panics if a command fails. Returns the standard output.
#[track_caller]
pub fn sh(lab: &Lab, script: &str) -> String {
    lab.guest().run("sh", ["-ec", script]).or_panic().stdout
}

/// Runs an `nft` command in the guest; returns the standard output.
#[track_caller]
pub fn nft(lab: &Lab, command: &str) -> String {
    lab.guest().run("nft", [command]).or_panic().stdout
}

/// The index of an interface.
#[track_caller]
pub fn ifindex(namespace: &Namespace, interface: &str) -> u32 {
    let path = format!("/sys/class/net/{interface}/ifindex");
    namespace.enter(|| fs::read_to_string(path)).or_panic().trim().parse().or_panic()
}

/// The kernel has tcx (6.6); without it the loader attaches by `cls_bpf`.
#[track_caller]
pub fn has_tcx(lab: &Lab) -> bool {
    lab.is_at_least((6, 6)).or_panic()
}

/// Policy route rules, routes and sysctls of the network namespace as text to compare. A load adds the source alias' rules
/// and its route; `unload` removes them.
#[track_caller]
pub fn network(namespace: &Namespace) -> String {
    // The kernel notices a new link's carrier up to a second later (`linkwatch`).
    let script = "ip -4 rule; ip -4 route show table all | sed 's/ linkdown//'; ip link show dev lo; \
                  cd /proc/sys/net/ipv4/conf; grep . lo/route_localnet lo/accept_local lo/rp_filter all/route_localnet all/accept_local";
    namespace.run("sh", ["-ec", script]).or_panic().stdout
}

/// Takes a distribution's bpffs away, as WSL does when it terminates the distribution.
#[track_caller]
pub fn terminate(distribution: &Namespace) {
    distribution.run("umount", [pins::BPFFS]).or_panic();
}

/// Waits for the condition; panics past `limit` (longer in emulation).
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || Ok(condition().then_some(()))).or_panic();
}

/// A TCP client on Windows, to this port of 127.0.0.1.
pub fn windows(lab: &Lab, port: u16) -> tcp::Client {
    tcp::Client::new(lab.windows(), loopback(port))
}

/// A UDP client on Windows, to this port of 127.0.0.1.
pub fn windows_udp(lab: &Lab, port: u16) -> udp::Client {
    udp::Client::new(lab.windows(), loopback(port))
}

/// A TCP client in Linux, to this port of 127.0.0.1. Its sockets are in the lab's cgroup, where the hooks of a `load` see them.
#[track_caller]
pub fn linux(lab: &Lab, port: u16) -> tcp::Client {
    let clients = Clients::new(lab).or_panic();
    tcp::Client::new(lab.guest(), loopback(port)).made_by(Maker::new(move || clients.tcp()))
}

/// A UDP client in Linux, likewise.
#[track_caller]
pub fn linux_udp(lab: &Lab, port: u16) -> udp::Client {
    let clients = Clients::new(lab).or_panic();
    udp::Client::new(lab.guest(), loopback(port)).made_by(Maker::new(move || clients.udp()))
}

/// Raises a flag when it is dropped, a panic included: threads that watch the flag end, and their scope with them.
pub struct RaiseOnDrop<'a>(pub &'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
