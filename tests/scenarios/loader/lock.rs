//! The lock that keeps two of us apart, from whichever distribution.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use wsl_mirror_lab::{
    Lab, Namespace, SCRATCH,
    checks::{ok, ok_in, refused, wait_until, wrapped},
    process::{Background, COMMAND_LIMIT, run},
};

use crate::guest::{everything, unchanged};

/// Where the lock is in a distribution that has mounted sysfs, as all have.
const FILE: &str = "/sys/bus/platform/drivers_probe";

fn hold(distribution: &Namespace) -> Result<File> {
    let file = distribution.enter(|| File::options().write(true).open(FILE)).context("opening the lock")?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).context("taking the lock")?;
    Ok(file)
}

#[test]
fn the_lock_holds_across_distributions() {
    let lab = Lab::builder().build().unwrap();
    let other = lab.another_distribution().unwrap();
    let started = Instant::now();
    let held = hold(&other).unwrap();
    let waiting = Background::spawn(&mut lab.wsl_mirror_command(&["load"]).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(1300));
    drop(held);
    let ended = waiting.finish(COMMAND_LIMIT).unwrap().success().unwrap();
    assert!(started.elapsed() > Duration::from_millis(1300), "it did not wait");
    assert_eq!(ended.stderr, "wsl-mirror: waiting for another wsl-mirror to finish …\n");

    // Another network namespace has nothing to do with it.
    let elsewhere = Lab::builder().build().unwrap();
    let _held = hold(&other).unwrap();
    ok(&elsewhere, &["load"]);
}

#[test]
fn of_loads_from_two_distributions_the_first_one_steers_and_the_second_one_says_so() {
    let lab = Lab::builder().build().unwrap();
    let other = lab.another_distribution().unwrap();
    // The first one dawdles inside: half a second before its sixth system call bpf.
    let slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf"];
    let delay = ["-e", "inject=bpf:delay_enter=500000:when=6"];
    let first = Background::spawn(
        &mut lab.wsl_mirror_wrapped(&[slow.as_slice(), &delay].concat(), &["load"]).unwrap(),
    )
    .unwrap();
    wait_until("the first one to be at work", COMMAND_LIMIT, || hold(&other).is_err());
    let started = Instant::now();
    let second = lab.wsl_mirror_in(&other, &["load"]).unwrap();
    assert!(started.elapsed() > Duration::from_millis(200), "it did not wait: {second}");
    first.finish(COMMAND_LIMIT).unwrap().success().unwrap();
    // The second one finds that there is nothing to be done, and does nothing.
    assert_eq!(second.status.code(), Some(20), "{second}");
    ok_in(&lab, &other, &["unload"]);
    assert_eq!(lab.wsl_mirror(&["status"]).unwrap().status.code(), Some(0));
    ok(&lab, &["unload"]);
    ok_in(&lab, &other, &["load"]);
}

#[test]
fn nobody_but_root_can_take_the_lock() {
    let lab = Lab::builder().build().unwrap();
    // It is one file, and nothing else is bound, locked or created that somebody could have had first.
    let trace = format!("{SCRATCH}/trace");
    let calls = "trace=flock,fcntl,bind,openat,open,creat,semget,shmget,mq_open";
    wrapped(&lab, &["strace", "-f", "-qq", "-y", "-o", &trace, "-e", calls], &["load"]).success().unwrap();
    let trace = lab.guest().enter(|| fs::read_to_string(&trace)).unwrap();
    let locks: Vec<_> =
        trace.lines().filter(|line| line.contains("flock(") || line.contains("F_SETLK")).collect();
    assert_eq!(locks.len(), 1, "{locks:#?}");
    assert!(locks[0].contains("/bus/platform/drivers_probe>"), "{locks:?}");
    for line in trace.lines() {
        // Of a netlink socket the kernel chooses the address.
        let binds = line.contains("bind(") && !line.contains("{sa_family=AF_NETLINK, nl_pid=0,");
        assert!(!binds && !line.contains("O_CREAT"), "{line}");
    }

    assert!(Path::new(FILE).exists());
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    for (what, script) in [
        ("writing", "exec 9>>/sys/bus/platform/drivers_probe; flock -n 9"),
        ("reading", "exec 9</sys/bus/platform/drivers_probe; flock -n 9"),
        ("flock", "flock -n /sys/bus/platform/drivers_probe true"),
        ("a user namespace", "unshare -Ur sh -c 'exec 9>>/sys/bus/platform/drivers_probe; flock -n 9'"),
    ] {
        let tried =
            run(lab.guest().command(nobody[0]).args(&nobody[1..]).args(["sh", "-ec", script]), COMMAND_LIMIT)
                .unwrap();
        assert!(!tried.status.success(), "{what}: {tried}");
        assert!(tried.stderr.contains("ermission denied") || what.contains("namespace"), "{what}: {tried}");
    }
    // What anybody may lock is nothing to us.
    let mut squat = lab.guest().command(nobody[0]);
    squat.args(&nobody[1..]).args(["flock", "/proc/self/ns/net", "sleep", "60"]);
    let _squatter = Background::spawn(&mut squat).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(ok(&lab, &["load"]).took < Duration::from_secs(5));
}

#[test]
fn whoever_waits_too_long_gives_up_and_changes_nothing() {
    let lab = Lab::builder().build().unwrap();
    let before = everything(&lab);
    let held = hold(lab.guest()).unwrap();
    let said = refused(&lab, &["load"], 14);
    assert!(said.contains("another wsl-mirror has been at work"), "{said}");
    drop(held);
    unchanged(&lab, &before);
}
