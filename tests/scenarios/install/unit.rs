//! The unit, as systemd's own judge sees it.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::OrPanic as _,
    process::{COMMAND_LIMIT, Finished, run},
};

pub const UNIT: &str = include_str!("../../../contrib/wsl-mirror.service");
const README: &str = include_str!("../../../README.md");

/// Whether there is somebody to ask; says so if not. Setting up installs it.
pub fn has_judge() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/bin", "/bin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join("systemd-analyze")).any(|path| path.is_file());
    if !found {
        println!("SKIPPED: there is no systemd-analyze on this machine");
    }
    found
}

/// The values of a key of the unit, in the order in which they stand there.
pub fn values(key: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// The unit as `install` writes it, for the program under test; gives its path in the guest.
#[track_caller]
fn installed(lab: &Lab) -> String {
    let root = format!("{SCRATCH}/judged");
    let binary = lab.wsl_mirror_command(&[]).or_panic().get_program().to_os_string();
    let binary = binary.into_string().ok().context("a path that is no text").or_panic();
    lab.guest().enter(|| {
        fs::create_dir_all(format!("{root}/proc/sys/kernel")).or_panic();
        fs::create_dir_all(format!("{root}/etc")).or_panic();
        fs::write(format!("{root}/proc/sys/kernel/osrelease"), "6.6.87.2-microsoft-standard-WSL2\n")
            .or_panic();
        fs::write(format!("{root}/etc/wsl.conf"), "[boot]\nsystemd=true\n").or_panic();
    });
    lab.wsl_mirror(&["install", "--root", &root, "--binary", &binary]).or_panic().success().or_panic();
    format!("{root}/etc/systemd/system/wsl-mirror.service")
}

#[track_caller]
fn judge(lab: &Lab, arguments: &[&str]) -> Finished {
    let mut command: Command = lab.guest().command("systemd-analyze");
    run(command.args(arguments).env("SYSTEMD_COLORS", "0").env("LC_ALL", "C.UTF-8"), COMMAND_LIMIT).or_panic()
}

#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    if !has_judge() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let unit = installed(&lab);
    let verdict = judge(&lab, &["verify", "--man=no", &unit]).success().unwrap();
    assert!((verdict.stdout + &verdict.stderr).trim().is_empty(), "{unit}");
    // It does say something where there is something to say.
    lab.guest()
        .run("sed", ["-i", "s/^PrivateTmp=yes/PrivateTemp=yes/; s/^ExecStart=.*/&-nothing/", &unit])
        .unwrap();
    let verdict = judge(&lab, &["verify", "--man=no", &unit]);
    assert!((verdict.stdout.clone() + &verdict.stderr).contains("PrivateTemp"), "{verdict}");
}

#[test]
fn the_readme_has_the_units_exposure_score() {
    if !has_judge() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let unit = installed(&lab);
    let verdict = judge(&lab, &["security", "--offline=true", "--no-pager", &unit]).success().unwrap();
    let overall =
        verdict.stdout.lines().find(|line| line.contains("Overall exposure level")).expect("no sum");
    println!("{}", overall.trim());
    let score = overall.split(':').nth(1).and_then(|rest| rest.split_whitespace().next()).expect("no score");
    // Each release of systemd weighs in its own way: Debian 12's is the one that is written down.
    let version = run(lab.guest().command("systemd-analyze").arg("--version"), COMMAND_LIMIT).unwrap().stdout;
    if version.starts_with("systemd 252 ") {
        assert!(README.contains(&format!("exposure {score}")), "README.md does not say: exposure {score}");
    }
    assert!(score.parse::<f32>().unwrap() < 4.0, "{overall}");
}

#[test]
fn engines_come_after_it_and_nothing_waits_for_long() {
    let before: Vec<_> = values("Before").iter().flat_map(|line| line.split_whitespace()).collect();
    assert_eq!(before, ["docker.service", "podman.service", "containerd.service"]);
    // A socket unit belongs before basic.target, and we come after it: systemd would throw one of us out.
    assert!(!before.iter().any(|unit| unit.ends_with(".socket")));
    let seconds: u32 = values("TimeoutStartSec")[0].parse().expect("seconds");
    assert!(seconds <= 10);
    assert!(values("Requires").is_empty() && values("BindsTo").is_empty(), "loopback0 comes late");
}
