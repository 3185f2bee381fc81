//! What `cargo xtask dist` made, in folders of Debian's releases and in one with nothing but a busybox. Run by
//! `cargo xtask test dist`, which makes all of it.

mod booted;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{OrPanic as _, sh},
    process::{COMMAND_LIMIT, Finished, run, wait_for},
};

use crate::{
    guest::{is_steered, ours, published},
    upgrade::under_traffic,
};

/// What people read first, and what it leads them to.
const TEXTS: [(&str, &str); 3] = [
    ("", include_str!("../../../README.md")),
    ("", include_str!("../../../ARCHITECTURE.md")),
    ("docs/", include_str!("../../../docs/engines.md")),
];

#[track_caller]
fn made() -> PathBuf {
    let folder = env::var_os("WSL_MIRROR_DIST").map(PathBuf::from);
    folder.context("WSL_MIRROR_DIST does not name the folder of what `cargo xtask dist` has made").or_panic()
}

/// The only file that starts and ends like this.
#[track_caller]
fn file(start: &str, end: &str) -> PathBuf {
    let folder = made();
    let matches = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(start) && name.ends_with(end))
    };
    let mut found: Vec<_> =
        fs::read_dir(&folder).or_panic().flatten().map(|entry| entry.path()).filter(matches).collect();
    assert!(found.len() == 1, "{start}*{end} in {}: {found:?}", folder.display());
    found.remove(0)
}

/// Another Linux' files in the guest, what is written kept apart, with the guest's network, bpffs and processes.
struct Root<'a> {
    lab: &'a Lab,
    path: String,
}

impl<'a> Root<'a> {
    /// A release of Debian.
    #[track_caller]
    fn of_suite(lab: &'a Lab, suite: &str) -> Self {
        let lower = made().join("roots").join(suite);
        Self::new(lab, &lower, suite)
    }

    /// With nothing but a busybox.
    #[track_caller]
    fn of_busybox(lab: &'a Lab) -> Self {
        let lower = format!("{SCRATCH}/busybox");
        sh(
            lab,
            &format!(
                "mkdir -p {lower}/bin {lower}/proc {lower}/sys {lower}/dev {lower}/run {lower}/tmp {lower}/etc; \
                 cp /bin/busybox {lower}/bin/; for name in sh cat ls tar mkdir; do ln -s busybox {lower}/bin/$name; done"
            ),
        );
        Self::new(lab, Path::new(&lower), "alpine-like")
    }

    #[track_caller]
    fn new(lab: &'a Lab, lower: &Path, name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let own = format!("{SCRATCH}/{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = format!("{own}/merged");
        sh(
            lab,
            &format!(
                "mkdir -p {own}/upper {own}/work {path}; \
                 mount -t overlay overlay -o lowerdir={lower},upperdir={own}/upper,workdir={own}/work {path}; \
                 mount -t proc proc {path}/proc; mount --rbind /sys {path}/sys; mount --rbind /dev {path}/dev",
                lower = lower.display()
            ),
        );
        Self { lab, path }
    }

    #[track_caller]
    fn copy(&self, from: &Path, to: &str) {
        sh(self.lab, &format!("cp '{}' {}{to}", from.display(), self.path));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.guest().command("chroot");
        command.arg(&self.path).args(arguments);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments), COMMAND_LIMIT).or_panic()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> Finished {
        self.run(arguments).success().or_panic()
    }

    fn exists(&self, path: &str) -> bool {
        self.lab.guest().enter(|| fs::symlink_metadata(format!("{}{path}", self.path)).is_ok())
    }

    /// Whether what the texts in this folder link to lies there, too.
    #[track_caller]
    fn links_lead_somewhere(&self, folder: &str) {
        let mut tried = 0;
        for (below, text) in TEXTS {
            let links = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
            let links = links.filter_map(|link| link.split('#').next().filter(|path| !path.is_empty()));
            for link in links.filter(|link| !link.contains("://")) {
                assert!(self.exists(&format!("{folder}/{below}{link}")), "{link} is not in {folder}");
                tried += 1;
            }
        }
        assert!(tried >= 3, "links are written in another way now");
    }

    /// The agent, as WSL's boot command starts it: nobody but the package knows of it. Gives its process.
    #[track_caller]
    fn start_agent(&self) -> u64 {
        let cgroup = self.lab.group("").or_panic();
        let start = format!("wsl-mirror run --cgroup {} >/run/wsl-mirror.log 2>&1 &", cgroup.display());
        self.ok(&["sh", "-c", &start]);
        self.steering_agent(0)
    }

    /// Waits for an agent that steers, and is not the one of before; gives its process.
    #[track_caller]
    fn steering_agent(&self, before: u64) -> u64 {
        wait_for("an agent that steers", COMMAND_LIMIT, || {
            let status = self.run(&["wsl-mirror", "status", "--json"]).stdout;
            let agent = &serde_json::from_str::<Value>(&status).or_panic()["agent"];
            Ok(agent["pid"].as_u64().filter(|pid| *pid != before && agent["state"] == "steering"))
        })
        .with_context(|| self.run(&["cat", "/run/wsl-mirror.log"]).stdout)
        .or_panic()
    }

    /// `load`, for the lab's own cgroup.
    #[track_caller]
    fn load(&self, program: &str) -> Finished {
        let cgroup = self.lab.group("").or_panic();
        let cgroup = cgroup.to_str().context("a path that is no text").or_panic();
        self.ok(&[program, "load", "--cgroup", cgroup])
    }
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_put_everything_in_its_place_and_take_it_away_again() {
    let lab = Lab::builder().build().unwrap();
    let root = Root::of_suite(&lab, "bookworm");
    root.copy(&newest(), "/package.deb");
    let installed = root.ok(&["dpkg", "-i", "/package.deb"]);
    assert!(installed.stdout.contains("`wsl-mirror install`"), "who has no systemd is told: {installed}");
    for path in [
        "/usr/sbin/wsl-mirror",
        "/usr/lib/systemd/system/wsl-mirror.service",
        "/etc/systemd/system/multi-user.target.wants/wsl-mirror.service",
        "/usr/share/doc/wsl-mirror/examples/wsl-mirror.toml",
        "/usr/share/man/man1/wsl-mirror.1.gz",
        "/usr/share/man/man1/wsl-mirror-load.1.gz",
        "/usr/share/bash-completion/completions/wsl-mirror",
        "/usr/share/zsh/vendor-completions/_wsl-mirror",
        "/usr/share/fish/vendor_completions.d/wsl-mirror.fish",
    ] {
        assert!(
            root.exists(path) || path.contains("/man/") && root.exists(path.trim_end_matches(".gz")),
            "no {path}"
        );
    }
    root.links_lead_somewhere("/usr/share/doc/wsl-mirror");
    let example = "/usr/share/doc/wsl-mirror/examples/wsl-mirror.toml";
    root.ok(&["wsl-mirror", "config", "check", "--config", example]);
    root.start_agent();
    assert_eq!(lab.status().unwrap()["steering"], true);
    root.ok(&["dpkg", "--purge", "wsl-mirror"]);
    assert_eq!(lab.wsl_mirror(&["status"]).unwrap().status.code(), Some(3), "removed, and still loaded");
    assert!(!root.exists("/run/wsl-mirror"), "the agent runs on");
    for path in ["/usr/sbin/wsl-mirror", "/etc/systemd/system/multi-user.target.wants/wsl-mirror.service"] {
        assert!(!root.exists(path), "{path} is left");
    }
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_that_were_removed_are_enabled_as_before_when_they_come_back() {
    const UNIT: &str = "/etc/systemd/system/wsl-mirror.service";
    let lab = Lab::builder().build().unwrap();
    let root = Root::of_suite(&lab, "bookworm");
    root.copy(&newest(), "/package.deb");
    let state =
        || -> String { root.run(&["systemctl", "--root=/", "is-enabled", "wsl-mirror.service"]).stdout };
    root.ok(&["dpkg", "-i", "/package.deb"]);
    assert_eq!(state(), "enabled\n");
    root.ok(&["cp", "/usr/sbin/wsl-mirror", "/usr/local/sbin/"]);
    root.ok(&["dpkg", "-r", "wsl-mirror"]);
    // What is removed, and not purged, is masked; another program of ours, from the tarball, has nothing to do with that.
    assert_eq!(root.ok(&["readlink", UNIT]).stdout, "/dev/null\n");
    let other = root.ok(&["/usr/local/sbin/wsl-mirror", "uninstall"]);
    assert!(other.stderr.contains("not installed") && root.exists(UNIT), "{other}");
    root.ok(&["dpkg", "-i", "/package.deb"]);
    assert_eq!(state(), "enabled\n");
    assert!(!root.exists(UNIT), "masked");
    // Who does not want it started is not asked again.
    root.ok(&["systemctl", "--root=/", "disable", "wsl-mirror.service"]);
    root.ok(&["dpkg", "-r", "wsl-mirror"]);
    root.ok(&["dpkg", "-i", "/package.deb"]);
    assert_eq!(state(), "disabled\n");
    root.ok(&["dpkg", "--purge", "wsl-mirror"]);
    assert!(!root.exists(UNIT), "masked for good");
}

/// Beside the one to upgrade from.
#[track_caller]
fn newest() -> PathBuf {
    let is = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "deb") && !path.to_string_lossy().contains("_0.0.1-")
    };
    let found = fs::read_dir(made()).or_panic().flatten().map(|entry| entry.path()).find(is);
    found.context("no package").or_panic()
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_are_upgraded_under_traffic_without_a_loss() {
    let lab = published();
    let root = Root::of_suite(&lab, "bookworm");
    root.copy(&file("wsl-mirror_0.0.1-", ".deb"), "/old.deb");
    root.copy(&newest(), "/new.deb");
    root.ok(&["dpkg", "-i", "/old.deb"]);
    root.load("wsl-mirror");
    let (program, link) = ours(&lab);
    under_traffic(&lab, || {
        root.ok(&["dpkg", "-i", "/new.deb"]);
        assert!(ours(&lab) == (program, link), "what was loaded goes on");
        // What a restart of the agent does.
        root.load("wsl-mirror");
        let now = ours(&lab);
        assert!(now.0 != program && now.1 == link, "replaced in its link");
        // And back again, as somebody does whom the new one does not please.
        root.ok(&["dpkg", "-i", "/old.deb"]);
        root.load("wsl-mirror");
    });
    root.ok(&["dpkg", "--purge", "wsl-mirror"]);
    assert!(!is_steered(&lab, 8080), "removed");
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_that_are_upgraded_without_systemd_restart_the_agent_without_a_loss() {
    let lab = published();
    let root = Root::of_suite(&lab, "bookworm");
    root.copy(&file("wsl-mirror_0.0.1-", ".deb"), "/old.deb");
    root.copy(&newest(), "/new.deb");
    root.ok(&["dpkg", "-i", "/old.deb"]);
    let old = root.start_agent();
    let (program, link) = ours(&lab);
    under_traffic(&lab, || {
        let done = root.ok(&["dpkg", "-i", "/new.deb"]);
        assert!(done.stdout.contains(&format!("restart the agent (process {old})")), "{done}");
        let new = root.steering_agent(old);
        assert_eq!(root.ok(&["readlink", &format!("/proc/{new}/exe")]).stdout, "/usr/sbin/wsl-mirror\n");
        let now = ours(&lab);
        assert!(now.0 != program && now.1 == link, "replaced in its link");
    });
    root.ok(&["dpkg", "--purge", "wsl-mirror"]);
    assert!(!root.exists("/run/wsl-mirror"), "the agent runs on");
    assert!(!is_steered(&lab, 8080), "removed");
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_tarball_runs_without_a_library_and_beside_an_older_glibc() {
    let lab = published();
    let tarball = file("wsl-mirror-", ".tar.gz");
    for root in [Root::of_busybox(&lab), Root::of_suite(&lab, "bullseye")] {
        root.copy(&tarball, "/tarball.tar.gz");
        root.ok(&["sh", "-ec", "mkdir -p /opt; tar -xzf /tarball.tar.gz -C /opt"]);
        let folder = root.ok(&["sh", "-c", "echo /opt/wsl-mirror-*"]).stdout.trim().to_owned();
        let program = format!("{folder}/wsl-mirror");
        let version = root.ok(&[&program, "--version"]).stdout;
        println!("{}: {}", root.path, version.trim());
        root.links_lead_somewhere(&folder);
        root.ok(&[&program, "config", "check", "--config", &format!("{folder}/contrib/wsl-mirror.toml")]);
        root.load(&program);
        assert!(is_steered(&lab, 8080), "{folder}");
        root.ok(&[&program, "status"]);
        root.ok(&[&program, "unload"]);
        assert!(!is_steered(&lab, 8080), "{folder}");
        let dry = root.run(&[&program, "install", "--dry-run"]);
        assert!(dry.status.code() == Some(17), "this is no WSL: {dry}");
        assert!(dry.took < Duration::from_secs(10), "{dry}");
    }
}
