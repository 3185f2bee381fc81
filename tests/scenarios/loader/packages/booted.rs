//! The unit, started by a systemd that believes to be in WSL: a folder of Debian with the package in it, booted in the
//! guest's network with mounts and processes of its own.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Context as _;
use serde_json::Value;
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, wait_until},
    process::{Background, COMMAND_LIMIT, Finished, run, run_with_input, wait_for, wait_for_child},
};

use super::{Root, file, newest};
use crate::{
    guest::{is_steered, published},
    upgrade::under_traffic,
};

/// Makes the folder ($1) the root of mounts of its own, as WSL's init leaves them to systemd, and becomes that. /proc/sys is
/// this machine's but for the network's, and is not to be written to; WSL mounts no bpffs.
const BOOT: &str = r#"
cd "$1"
mount --make-rprivate /
umount -R dev sys proc
mount --bind . . && cd "$1"
for folder in run tmp dev; do mount -t tmpfs tmpfs $folder; done
mount -t proc proc proc
mkdir run/proc && mount -t proc proc run/proc
mount --bind proc/sys proc/sys && mount -o remount,ro,bind proc/sys
mount --bind run/proc/sys/net proc/sys/net && umount run/proc
echo 6.6.87.2-microsoft-standard-WSL2 >run/osrelease
mount --bind run/osrelease proc/sys/kernel/osrelease
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts && ln -s pts/ptmx dev/ptmx
mkdir -p old && pivot_root . old && umount -l /old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=journal --show-status=no
"#;

/// A distribution that runs.
struct Booted {
    _unshare: Background,
    /// systemd's process.
    init: String,
}

impl Booted {
    #[track_caller]
    fn new(lab: &Lab, root: &Root<'_>) -> Self {
        let group = lab.group("").or_panic();
        let script = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", group.display());
        let mut command = lab.guest().command("sh");
        command.args([
            "-ec",
            &script,
            "sh",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--uts",
        ]);
        command.args(["--ipc", "--cgroup", "sh", "-ec", BOOT, "sh", &root.path]);
        let unshare = Background::spawn(&mut command).or_panic();
        let init = wait_for_child(unshare.pid(), "systemd").with_context(|| unshare.output()).or_panic();
        let booted = Self { _unshare: unshare, init };
        wait_until("the end of the boot", Duration::from_mins(1), || {
            let state = booted.run(&["systemctl", "is-system-running"]).stdout;
            // Degraded: some of its services have nothing to do here.
            ["running", "degraded"].contains(&state.trim())
        });
        booted
    }

    /// Runs a program in it.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--mount", "--pid", "--net", "--cgroup", "--uts", "--ipc"]);
        command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        run(&mut command, COMMAND_LIMIT).or_panic()
    }

    /// What systemd knows of the unit.
    #[track_caller]
    fn unit(&self, property: &str) -> String {
        let shown = self
            .run(&["systemctl", "show", "--value", "--property", property, "wsl-mirror"])
            .success()
            .or_panic();
        shown.stdout.trim().to_owned()
    }

    #[track_caller]
    fn journal(&self) -> String {
        self.run(&["journalctl", "--no-pager", "--unit", "wsl-mirror", "--output", "cat"]).stdout
    }
}

/// A folder with this package installed, in this networking mode.
#[track_caller]
fn installed<'a>(lab: &'a Lab, package: &Path, mode: &str) -> Root<'a> {
    let root = Root::of_suite(lab, "bookworm");
    root.copy(package, "/package.deb");
    root.ok(&["dpkg", "-i", "/package.deb"]);
    let prepare = format!(
        "printf '#!/bin/sh\\necho {mode}\\n' >/usr/bin/wslinfo; chmod 755 /usr/bin/wslinfo; cd /etc/systemd/system; \
         for unit in systemd-networkd systemd-resolved systemd-timesyncd; do ln -sf /dev/null $unit.service; done"
    );
    root.ok(&["sh", "-ec", &prepare]);
    root
}

/// What serves 8080 within the distribution, and is called like the one that is steered; it is there before the agent.
const PROXY: &str = r"
cat >/usr/sbin/docker-proxy <<'END'
#!/usr/bin/perl
use strict;
use Socket;
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die $!;
setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1) or die $!;
bind($listener, sockaddr_in(8080, INADDR_ANY)) or die $!;
listen($listener, 64) or die $!;
exit 0 if fork;
$SIG{CHLD} = 'IGNORE';
while (1) {
    accept(my $client, $listener) or next;
    next if fork;
    while (sysread($client, my $bytes, 4096)) { syswrite($client, $bytes) }
    exit 0;
}
END
chmod 755 /usr/sbin/docker-proxy
cat >/etc/systemd/system/docker-proxy.service <<'END'
[Unit]
Before=wsl-mirror.service
[Service]
Type=forking
ExecStart=/usr/sbin/docker-proxy
END
ln -s ../docker-proxy.service /etc/systemd/system/multi-user.target.wants/
";
/// What an engine does about the port: to a container that nobody has.
const DNAT: &str = "add table ip lab
add chain ip lab prerouting { type nat hook prerouting priority dstnat; }
add rule ip lab prerouting ip daddr 127.0.0.1 tcp dport 8080 dnat to 127.0.0.2:9
";

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_unit_steers_from_its_sandbox_with_a_bpffs_that_everybody_sees() {
    let lab = Lab::builder().build().unwrap();
    run_with_input(lab.guest().command("nft").args(["-f", "-"]), DNAT, COMMAND_LIMIT)
        .unwrap()
        .success()
        .unwrap();
    let root = installed(&lab, &newest(), "mirrored");
    root.ok(&["sh", "-ec", PROXY]);
    let booted = Booted::new(&lab, &root);
    let state = booted.unit("ActiveState");
    assert!(state == "active", "{state}: {}", booted.journal());
    // Only the tag that the agent has given to a socket of another process' makes it one to steer.
    assert!(is_steered(&lab, 8080), "{}", booted.journal());
    // Pins are there for who is not in the sandbox.
    let status = booted.run(&["wsl-mirror", "status"]).success().unwrap().stdout;
    assert!(status.starts_with("steering loopback0") && status.contains("carrying on"), "{status}");
    assert!(status.contains("agent "), "{status}");
    let says = booted.unit("StatusText");
    assert!(says.starts_with("steering loopback0"), "{says}");
    // Another boot's worth of it: nothing is in its own way.
    for verb in ["restart", "reload"] {
        booted.run(&["systemctl", verb, "wsl-mirror"]).success().unwrap();
        assert!(is_steered(&lab, 8080), "{verb}: {}", booted.journal());
    }
    // What changes meanwhile it puts right from its sandbox, too.
    let rules = || -> String { booted.run(&["ip", "-4", "rule"]).success().unwrap().stdout };
    let ours = rules().lines().find(|line| line.contains("proto 119")).is_some();
    assert!(ours, "{}", rules());
    lab.guest().run("ip", ["-4", "rule", "del", "proto", "119"]).unwrap();
    lab.guest().set_sysctls([("net/ipv4/conf/lo/route_localnet", "0")]).unwrap();
    wait_for("the policy rule and the sysctl to come back", COMMAND_LIMIT, || {
        let route_localnet = lab.guest().sysctl("net/ipv4/conf/lo/route_localnet").unwrap();
        Ok((rules().contains("proto 119") && route_localnet.trim() == "1").then_some(()))
    })
    .with_context(|| booted.journal())
    .unwrap();
    booted.run(&["systemctl", "stop", "wsl-mirror"]).success().unwrap();
    assert!(is_steered(&lab, 8080), "stopped, and it goes on: {}", booted.journal());
    let installed = booted.run(&["wsl-mirror", "install"]).success().unwrap();
    assert!(installed.stderr.contains("installed already"), "the package has: {installed}");
    booted.run(&["wsl-mirror", "unload"]).success().unwrap();
    let mounts = booted.run(&["cat", "/proc/mounts"]).stdout;
    assert!(!mounts.contains(" /sys/fs/bpf "), "the bpffs that it made is left:\n{mounts}");
    assert!(!is_steered(&lab, 8080), "it needs no steering, so none was seen");
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_unit_does_nothing_in_another_networking_mode_and_says_so() {
    let lab = Lab::builder().build().unwrap();
    let root = installed(&lab, &newest(), "nat");
    let booted = Booted::new(&lab, &root);
    assert_eq!(
        (booted.unit("ActiveState"), booted.unit("Result")),
        ("inactive".into(), "exec-condition".into())
    );
    assert!(booted.journal().contains("nat: there is no loopback0"), "{}", booted.journal());
    assert_eq!(lab.wsl_mirror(&["status"]).unwrap().status.code(), Some(3));
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_are_upgraded_while_systemd_runs_the_agent_without_a_loss() {
    let lab = published();
    let root = installed(&lab, &file("wsl-mirror_0.0.1-", ".deb"), "mirrored");
    root.copy(&newest(), "/new.deb");
    // docker-proxy is among the processes of somebody else's, so nobody can say whose its sockets are.
    root.ok(&["sh", "-c", "echo 'default = \"steer\"' >/etc/wsl-mirror.toml"]);
    let booted = Booted::new(&lab, &root);
    let at_work = || -> (String, u64) {
        let status = booted.run(&["wsl-mirror", "status", "--json"]).success().unwrap().stdout;
        let program = serde_json::from_str::<Value>(&status).unwrap()["program"]["id"].as_u64();
        (booted.unit("MainPID"), program.expect("no program"))
    };
    let before = at_work();
    under_traffic(&lab, || {
        // The package itself has systemd restart the agent.
        booted.run(&["dpkg", "-i", "/new.deb"]).success().unwrap();
        let now = at_work();
        assert!(now.0 != before.0 && now.1 != before.1, "{before:?} is at work still: {now:?}");
    });
    println!("{}", booted.journal());
    assert_eq!(booted.unit("ActiveState"), "active");
    // Who removes it and thinks better of it has it at work again.
    booted.run(&["dpkg", "-r", "wsl-mirror"]).success().unwrap();
    assert!(!is_steered(&lab, 8080), "removed");
    booted.run(&["dpkg", "-i", "/new.deb"]).success().unwrap();
    assert!(is_steered(&lab, 8080), "{}", booted.journal());
    // And goes with everything that it has brought.
    booted.run(&["dpkg", "--purge", "wsl-mirror"]).success().unwrap();
    assert!(!is_steered(&lab, 8080), "removed");
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_program_alone_is_installed_restarted_and_uninstalled_where_systemd_runs() {
    const US: &str = "/usr/local/sbin/wsl-mirror";
    let lab = Lab::builder().build().unwrap();
    let root = installed(&lab, &newest(), "mirrored");
    root.ok(&["cp", "/usr/sbin/wsl-mirror", US]);
    root.ok(&["dpkg", "--purge", "wsl-mirror"]);
    let booted = Booted::new(&lab, &root);
    let started = |before: &str| {
        wait_for("systemd to start it", COMMAND_LIMIT, || {
            let (state, process) = (booted.unit("ActiveState"), booted.unit("MainPID"));
            Ok((state == "active" && process != before).then_some(process))
        })
        .with_context(|| booted.journal())
        .unwrap()
    };
    booted.run(&[US, "install"]).success().unwrap();
    let first = started("0");
    // A newer one in its place, as install(1) puts it there.
    booted.run(&["sh", "-ec", &format!("cp {US} {US}.new; mv {US}.new {US}")]).success().unwrap();
    booted.run(&[US, "install"]).success().unwrap();
    started(&first);
    booted.run(&[US, "uninstall"]).success().unwrap();
    assert_eq!(
        (booted.unit("ActiveState"), booted.unit("LoadState")),
        ("inactive".into(), "not-found".into())
    );
    // Nor does it mind one that is not at work, which systemd may have forgotten when it is told.
    booted.run(&[US, "install"]).success().unwrap();
    started("0");
    booted.run(&["systemctl", "disable", "--now", "wsl-mirror"]).success().unwrap();
    booted.run(&[US, "uninstall"]).success().unwrap();
    assert_eq!(booted.unit("LoadState"), "not-found");
    booted.run(&[US, "unload"]).success().unwrap();
}
