//! `install` and `uninstall` in a distribution that runs: what they do about systemd, and about an agent.

use std::{process::Command, time::Duration};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab,
    checks::OrPanic as _,
    process::{Background, COMMAND_LIMIT, Finished, run, wait_for, wait_for_child},
};

/// Mounts and processes of its own, on the guest's network. Of the machine's files, those are others that are looked at:
/// the program itself, what tells the networking mode, systemctl, and all that is written to.
const DISTRIBUTION: &str = r#"
mount --make-rprivate /
mount -t proc proc /proc
echo 6.6.87.2-microsoft-standard-WSL2 >/run/osrelease
mount --bind /run/osrelease /proc/sys/kernel/osrelease
# Opened first: the repository may lie in a folder that is hidden below.
exec 9<"$1"
for folder in /etc /usr/sbin /root; do mkdir -p $folder; mount -t tmpfs -o mode=755 tmpfs $folder; done
cat <&9 >/usr/sbin/wsl-mirror
exec 9<&-
cat >/usr/sbin/wslinfo <<'END'
#!/bin/sh
echo mirrored
END
cat >/usr/sbin/systemctl <<'END'
#!/bin/sh
case $1 in stop)
    echo "$@ $(ls /etc/systemd/system)" >/run/told
    [ ! -e /run/slow ] || sleep 6
    [ ! -e /run/slow ] || { echo the unit does not stop >&2; exit 1; };;
esac
END
chmod 755 /usr/sbin/*
exec sleep infinity
"#;

/// A distribution that runs, in mirrored mode.
struct Machine<'a> {
    lab: &'a Lab,
    _unshare: Background,
    /// The first of its processes.
    init: String,
}

impl<'a> Machine<'a> {
    #[track_caller]
    fn new(lab: &'a Lab) -> Self {
        let program = lab.wsl_mirror_command(&[]).or_panic().get_program().to_os_string();
        let mut command = lab.guest().command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "sh", "-ec", DISTRIBUTION, "sh"]);
        let unshare = Background::spawn(command.arg(program)).or_panic();
        let init = wait_for_child(unshare.pid(), "sleep").with_context(|| unshare.output()).or_panic();
        Self { lab, _unshare: unshare, init }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.guest().command("nsenter");
        command.args(["--target", &self.init, "--mount", "--pid"]).args(arguments);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments), COMMAND_LIMIT).or_panic()
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script]).success().or_panic().stdout
    }

    #[track_caller]
    fn wsl_mirror(&self, arguments: &[&str]) -> Finished {
        self.run(&[&["/usr/sbin/wsl-mirror"], arguments].concat())
    }

    /// An agent, as WSL's boot command starts it: nobody looks after it.
    #[track_caller]
    fn start_agent(&self) -> u64 {
        let cgroup = self.lab.group("").or_panic();
        let cgroup = cgroup.display();
        self.sh(&format!("/usr/sbin/wsl-mirror run --cgroup {cgroup} >/run/wsl-mirror.log 2>&1 &"));
        self.agent("the agent", |_| true)
    }

    /// Waits for an agent; gives its process.
    #[track_caller]
    fn agent(&self, what: &str, is_it: impl Fn(u64) -> bool) -> u64 {
        wait_for(what, COMMAND_LIMIT, || {
            let status = self.wsl_mirror(&["status", "--json"]);
            let status: serde_json::Value =
                serde_json::from_str(&status.stdout).with_context(|| status.to_string()).or_panic();
            // It has its seat before it says who it is.
            Ok(status["agent"]["pid"].as_u64().filter(|pid| *pid != 0 && is_it(*pid)))
        })
        .with_context(|| self.run(&["cat", "/run/wsl-mirror.log"]).stdout)
        .or_panic()
    }

    #[track_caller]
    fn runs(&self, pid: u64) -> bool {
        self.run(&["grep", "-q", "^State:.*[RS] ", &format!("/proc/{pid}/status")]).status.success()
    }
}

#[test]
fn where_no_systemd_runs_uninstall_ends_the_agent_so_that_unload_can_do_its_work() {
    let lab = Lab::builder().build().unwrap();
    let machine = Machine::new(&lab);
    machine.sh("printf '[boot]\\ncommand = true\\n' >/etc/wsl.conf; mkdir -p /run/folder/etc");
    machine.wsl_mirror(&["install"]).success().unwrap();
    let agent = machine.start_agent();
    let ends = format!("end the agent (process {agent})\n");
    let dry = machine.wsl_mirror(&["uninstall", "--dry-run"]).success().unwrap();
    assert!(dry.stdout.ends_with(&ends) && machine.runs(agent), "{dry}");
    let folder = machine.wsl_mirror(&["uninstall", "--root", "/run/folder"]).success().unwrap();
    assert!(folder.stdout.is_empty() && machine.runs(agent), "another distribution's: {folder}");
    let done = machine.wsl_mirror(&["uninstall"]).success().unwrap();
    assert!(done.stdout == dry.stdout && !machine.runs(agent), "{done}");
    assert_eq!(machine.sh("cat /etc/wsl.conf"), "[boot]\ncommand = true\n");
    machine.wsl_mirror(&["unload"]).success().unwrap();
    assert_eq!(machine.wsl_mirror(&["status"]).status.code(), Some(3));
}

#[test]
fn an_agent_that_somebody_runs_beside_systemd_is_ended_only_with_the_package() {
    let lab = Lab::builder().build().unwrap();
    let machine = Machine::new(&lab);
    machine.sh("mkdir -p /run/systemd/system");
    let agent = machine.start_agent();
    machine.wsl_mirror(&["uninstall"]).success().unwrap();
    assert!(machine.runs(agent), "it is nothing that `install` has made");
    machine.wsl_mirror(&["uninstall", "--keep-package"]).success().unwrap();
    assert!(!machine.runs(agent), "its program goes");
    machine.wsl_mirror(&["unload"]).success().unwrap();
}

#[test]
fn installing_over_an_older_program_restarts_the_agent_that_runs_it() {
    let lab = Lab::builder().build().unwrap();
    let machine = Machine::new(&lab);
    machine.wsl_mirror(&["install"]).success().unwrap();
    let old = machine.start_agent();
    let same = machine.wsl_mirror(&["install"]).success().unwrap();
    assert!(same.stdout.is_empty() && same.stderr.contains("installed already"), "{same}");
    // What dpkg and install(1) do: another file in the place of the old one.
    let replace =
        || machine.sh("cp /usr/sbin/wsl-mirror /usr/sbin/new; mv /usr/sbin/new /usr/sbin/wsl-mirror");
    replace();
    let called = |pid: u64| machine.sh(&format!("tr '\\0' ' ' </proc/{pid}/cmdline"));
    let before = called(old);
    let done = machine.wsl_mirror(&["install"]).success().unwrap();
    assert!(done.stdout.starts_with(&format!("restart the agent (process {old})")), "{done}");
    let new = machine.agent("the agent of the new program", |pid| pid != old);
    assert!(!machine.runs(old), "both run");
    assert_eq!(called(new), before);
    assert_eq!(machine.sh(&format!("readlink /proc/{new}/exe")), "/usr/sbin/wsl-mirror\n");
    let again = machine.wsl_mirror(&["install"]).success().unwrap();
    assert!(again.stdout.is_empty(), "{again}");
    // The unit's, systemd restarts.
    machine.sh("mkdir -p /run/systemd/system");
    machine.wsl_mirror(&["install"]).success().unwrap();
    replace();
    let done = machine.wsl_mirror(&["install"]).success().unwrap();
    assert_eq!(done.stdout, "systemctl restart --no-block wsl-mirror.service\n");
}

#[test]
fn a_unit_that_takes_its_time_to_stop_is_waited_for_and_keeps_nothing_from_being_taken_back() {
    let lab = Lab::builder().build().unwrap();
    let machine = Machine::new(&lab);
    machine.sh("mkdir -p /run/systemd/system");
    let before = machine.sh("find /etc -type f -o -type l");
    machine.wsl_mirror(&["install"]).success().unwrap();
    // Longer than programs may take that only tell something; shorter than the unit's TimeoutStopSec=.
    machine.sh("touch /run/slow");
    let done = machine.wsl_mirror(&["uninstall"]);
    assert!(done.took > Duration::from_secs(6) && done.status.code() == Some(1), "{done}");
    assert!(done.stderr.contains("the unit does not stop"), "systemctl itself has the say: {done}");
    assert_eq!(machine.sh("find /etc -type f -o -type l"), before);
    assert_eq!(
        machine.sh("cat /run/told"),
        "stop wsl-mirror.service multi-user.target.wants\n",
        "told when the rest was done"
    );
}

#[test]
fn a_program_that_others_could_replace_or_that_the_unit_hides_is_not_started_at_boot() {
    let lab = Lab::builder().build().unwrap();
    let machine = Machine::new(&lab);
    machine.sh(
        "cd /usr/sbin; mkdir -m 777 /run/open; cp wsl-mirror /run/open/; ln -s /usr/sbin/wsl-mirror /run/open/hop; \
         mkdir leads over safe; ln -s /run/open/wsl-mirror leads/; ln -s /run/open/hop over/wsl-mirror; \
         ln -s ../wsl-mirror safe/; cp wsl-mirror /root/",
    );
    let open = "/run/open is writable for others";
    for (path, why) in [
        ("/run/open/wsl-mirror", Some(open)),
        ("/usr/sbin/leads/wsl-mirror", Some(open)),
        ("/usr/sbin/over/wsl-mirror", Some(open)),
        ("/root/wsl-mirror", Some("the unit hides /root")),
        ("/usr/sbin/safe/wsl-mirror", None),
        ("/usr/sbin/wsl-mirror", None),
    ] {
        let tried = machine.wsl_mirror(&["install", "--dry-run", "--binary", path]);
        let Some(why) = why else {
            tried.success().unwrap();
            continue;
        };
        assert!(tried.status.code() == Some(19) && tried.stderr.contains(why), "{path}: {tried}");
        assert!(tried.stderr.contains("sudo install") && tried.stdout.is_empty(), "{path}: {tried}");
    }
}
