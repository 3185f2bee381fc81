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

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    process::{COMMAND_LIMIT, Finished, run, wait_for},
};

use crate::{
    guest::{is_steered, ours, published, sh},
    upgrade::under_traffic,
};

/// What people read first, and what it leads them to.
const TEXTS: [(&str, &str); 3] = [
    ("", include_str!("../../../README.md")),
    ("", include_str!("../../../ARCHITECTURE.md")),
    ("docs/", include_str!("../../../docs/engines.md")),
];

fn made() -> Result<PathBuf> {
    let folder = env::var_os("WSL_MIRROR_DIST").map(PathBuf::from);
    folder.context("WSL_MIRROR_DIST does not name the folder of what `cargo xtask dist` has made")
}

/// The only file that starts and ends like this.
fn file(start: &str, end: &str) -> Result<PathBuf> {
    let folder = made()?;
    let matches = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(start) && name.ends_with(end))
    };
    let mut found: Vec<_> =
        fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).filter(matches).collect();
    ensure!(found.len() == 1, "{start}*{end} in {}: {found:?}", folder.display());
    found.pop().context("nothing")
}

/// Another Linux' files in the guest, what is written kept apart, with the guest's network, bpffs and processes.
struct Root<'a> {
    lab: &'a Lab,
    path: String,
}

impl<'a> Root<'a> {
    /// A release of Debian.
    fn of_suite(lab: &'a Lab, suite: &str) -> Result<Self> {
        let lower = made()?.join("roots").join(suite);
        Self::new(lab, &lower, suite)
    }

    /// With nothing but a busybox.
    fn of_busybox(lab: &'a Lab) -> Result<Self> {
        let lower = format!("{SCRATCH}/busybox");
        sh(
            lab,
            &format!(
                "mkdir -p {lower}/bin {lower}/proc {lower}/sys {lower}/dev {lower}/run {lower}/tmp {lower}/etc; \
                 cp /bin/busybox {lower}/bin/; for name in sh cat ls tar mkdir; do ln -s busybox {lower}/bin/$name; done"
            ),
        )?;
        Self::new(lab, Path::new(&lower), "alpine-like")
    }

    fn new(lab: &'a Lab, lower: &Path, name: &str) -> Result<Self> {
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
        )?;
        Ok(Self { lab, path })
    }

    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        sh(self.lab, &format!("cp '{}' {}{to}", from.display(), self.path)).map(drop)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.guest().command("chroot");
        command.arg(&self.path).args(arguments);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Finished> {
        run(&mut self.command(arguments), COMMAND_LIMIT)
    }

    fn ok(&self, arguments: &[&str]) -> Result<Finished> {
        self.run(arguments)?.success()
    }

    fn exists(&self, path: &str) -> bool {
        self.lab.guest().enter(|| fs::symlink_metadata(format!("{}{path}", self.path)).is_ok())
    }

    /// Whether what the texts in this folder link to lies there, too.
    fn links_lead_somewhere(&self, folder: &str) -> Result<()> {
        let mut tried = 0;
        for (below, text) in TEXTS {
            let links = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
            let links = links.filter_map(|link| link.split('#').next().filter(|path| !path.is_empty()));
            for link in links.filter(|link| !link.contains("://")) {
                ensure!(self.exists(&format!("{folder}/{below}{link}")), "{link} is not in {folder}");
                tried += 1;
            }
        }
        ensure!(tried >= 3, "links are written in another way now");
        Ok(())
    }

    /// The agent, as WSL's boot command starts it: nobody but the package knows of it. Gives its process.
    fn start_agent(&self) -> Result<u64> {
        let cgroup = self.lab.group("")?;
        let start = format!("wsl-mirror run --cgroup {} >/run/wsl-mirror.log 2>&1 &", cgroup.display());
        self.ok(&["sh", "-c", &start])?;
        self.steering_agent(0)
    }

    /// Waits for an agent that steers, and is not the one of before; gives its process.
    fn steering_agent(&self, before: u64) -> Result<u64> {
        wait_for("an agent that steers", COMMAND_LIMIT, || {
            let status = self.run(&["wsl-mirror", "status", "--json"])?.stdout;
            let agent = &serde_json::from_str::<Value>(&status)?["agent"];
            Ok(agent["pid"].as_u64().filter(|pid| *pid != before && agent["state"] == "steering"))
        })
        .with_context(|| self.run(&["cat", "/run/wsl-mirror.log"]).map(|log| log.stdout).unwrap_or_default())
    }

    /// `load`, for the lab's own cgroup.
    fn load(&self, program: &str) -> Result<Finished> {
        let cgroup = self.lab.group("")?;
        let cgroup = cgroup.to_str().context("a path that is no text")?;
        self.ok(&[program, "load", "--cgroup", cgroup])
    }
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_put_everything_in_its_place_and_take_it_away_again() -> Result<()> {
    let lab = Lab::builder().build()?;
    let root = Root::of_suite(&lab, "bookworm")?;
    root.copy(&newest()?, "/package.deb")?;
    let installed = root.ok(&["dpkg", "-i", "/package.deb"])?;
    ensure!(installed.stdout.contains("`wsl-mirror install`"), "who has no systemd is told: {installed}");
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
        ensure!(
            root.exists(path) || path.contains("/man/") && root.exists(path.trim_end_matches(".gz")),
            "no {path}"
        );
    }
    root.links_lead_somewhere("/usr/share/doc/wsl-mirror")?;
    let example = "/usr/share/doc/wsl-mirror/examples/wsl-mirror.toml";
    root.ok(&["wsl-mirror", "config", "check", "--config", example])?;
    root.start_agent()?;
    assert_eq!(lab.status()?["steering"], true);
    root.ok(&["dpkg", "--purge", "wsl-mirror"])?;
    assert_eq!(lab.wsl_mirror(&["status"])?.status.code(), Some(3), "removed, and still loaded");
    ensure!(!root.exists("/run/wsl-mirror"), "the agent runs on");
    for path in ["/usr/sbin/wsl-mirror", "/etc/systemd/system/multi-user.target.wants/wsl-mirror.service"] {
        ensure!(!root.exists(path), "{path} is left");
    }
    Ok(())
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_that_were_removed_are_enabled_as_before_when_they_come_back() -> Result<()> {
    const UNIT: &str = "/etc/systemd/system/wsl-mirror.service";
    let lab = Lab::builder().build()?;
    let root = Root::of_suite(&lab, "bookworm")?;
    root.copy(&newest()?, "/package.deb")?;
    let state = || -> Result<String> {
        Ok(root.run(&["systemctl", "--root=/", "is-enabled", "wsl-mirror.service"])?.stdout)
    };
    root.ok(&["dpkg", "-i", "/package.deb"])?;
    assert_eq!(state()?, "enabled\n");
    root.ok(&["cp", "/usr/sbin/wsl-mirror", "/usr/local/sbin/"])?;
    root.ok(&["dpkg", "-r", "wsl-mirror"])?;
    // What is removed, and not purged, is masked; another program of ours, from the tarball, has nothing to do with that.
    assert_eq!(root.ok(&["readlink", UNIT])?.stdout, "/dev/null\n");
    let other = root.ok(&["/usr/local/sbin/wsl-mirror", "uninstall"])?;
    ensure!(other.stderr.contains("not installed") && root.exists(UNIT), "{other}");
    root.ok(&["dpkg", "-i", "/package.deb"])?;
    assert_eq!(state()?, "enabled\n");
    ensure!(!root.exists(UNIT), "masked");
    // Who does not want it started is not asked again.
    root.ok(&["systemctl", "--root=/", "disable", "wsl-mirror.service"])?;
    root.ok(&["dpkg", "-r", "wsl-mirror"])?;
    root.ok(&["dpkg", "-i", "/package.deb"])?;
    assert_eq!(state()?, "disabled\n");
    root.ok(&["dpkg", "--purge", "wsl-mirror"])?;
    ensure!(!root.exists(UNIT), "masked for good");
    Ok(())
}

/// Beside the one to upgrade from.
fn newest() -> Result<PathBuf> {
    let is = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "deb") && !path.to_string_lossy().contains("_0.0.1-")
    };
    let found = fs::read_dir(made()?)?.flatten().map(|entry| entry.path()).find(is);
    found.context("no package")
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_are_upgraded_under_traffic_without_a_loss() -> Result<()> {
    let lab = published()?;
    let root = Root::of_suite(&lab, "bookworm")?;
    root.copy(&file("wsl-mirror_0.0.1-", ".deb")?, "/old.deb")?;
    root.copy(&newest()?, "/new.deb")?;
    root.ok(&["dpkg", "-i", "/old.deb"])?;
    root.load("wsl-mirror")?;
    let (program, link) = ours(&lab)?;
    under_traffic(&lab, || {
        root.ok(&["dpkg", "-i", "/new.deb"])?;
        ensure!(ours(&lab)? == (program, link), "what was loaded goes on");
        // What a restart of the agent does.
        root.load("wsl-mirror")?;
        let now = ours(&lab)?;
        ensure!(now.0 != program && now.1 == link, "replaced in its link");
        // And back again, as somebody does whom the new one does not please.
        root.ok(&["dpkg", "-i", "/old.deb"])?;
        root.load("wsl-mirror").map(drop)
    })?;
    root.ok(&["dpkg", "--purge", "wsl-mirror"])?;
    assert!(!is_steered(&lab, 8080), "removed");
    Ok(())
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_that_are_upgraded_without_systemd_restart_the_agent_without_a_loss() -> Result<()> {
    let lab = published()?;
    let root = Root::of_suite(&lab, "bookworm")?;
    root.copy(&file("wsl-mirror_0.0.1-", ".deb")?, "/old.deb")?;
    root.copy(&newest()?, "/new.deb")?;
    root.ok(&["dpkg", "-i", "/old.deb"])?;
    let old = root.start_agent()?;
    let (program, link) = ours(&lab)?;
    under_traffic(&lab, || {
        let done = root.ok(&["dpkg", "-i", "/new.deb"])?;
        ensure!(done.stdout.contains(&format!("restart the agent (process {old})")), "{done}");
        let new = root.steering_agent(old)?;
        assert_eq!(root.ok(&["readlink", &format!("/proc/{new}/exe")])?.stdout, "/usr/sbin/wsl-mirror\n");
        let now = ours(&lab)?;
        ensure!(now.0 != program && now.1 == link, "replaced in its link");
        Ok(())
    })?;
    root.ok(&["dpkg", "--purge", "wsl-mirror"])?;
    ensure!(!root.exists("/run/wsl-mirror"), "the agent runs on");
    assert!(!is_steered(&lab, 8080), "removed");
    Ok(())
}

#[test]
#[ignore = "`cargo xtask test dist` makes the packages and runs it"]
fn packages_tarball_runs_without_a_library_and_beside_an_older_glibc() -> Result<()> {
    let lab = published()?;
    let tarball = file("wsl-mirror-", ".tar.gz")?;
    for root in [Root::of_busybox(&lab)?, Root::of_suite(&lab, "bullseye")?] {
        root.copy(&tarball, "/tarball.tar.gz")?;
        root.ok(&["sh", "-ec", "mkdir -p /opt; tar -xzf /tarball.tar.gz -C /opt"])?;
        let folder = root.ok(&["sh", "-c", "echo /opt/wsl-mirror-*"])?.stdout.trim().to_owned();
        let program = format!("{folder}/wsl-mirror");
        let version = root.ok(&[&program, "--version"])?.stdout;
        println!("{}: {}", root.path, version.trim());
        root.links_lead_somewhere(&folder)?;
        root.ok(&[&program, "config", "check", "--config", &format!("{folder}/contrib/wsl-mirror.toml")])?;
        root.load(&program)?;
        ensure!(is_steered(&lab, 8080), "{folder}");
        root.ok(&[&program, "status"])?;
        root.ok(&[&program, "unload"])?;
        ensure!(!is_steered(&lab, 8080), "{folder}");
        let dry = root.run(&[&program, "install", "--dry-run"])?;
        ensure!(dry.status.code() == Some(17), "this is no WSL: {dry}");
        ensure!(dry.took < Duration::from_secs(10), "{dry}");
    }
    Ok(())
}
