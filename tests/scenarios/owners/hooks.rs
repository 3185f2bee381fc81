//! The hooks themselves: they never fail a bind, and cost next to nothing.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use aya::{
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
    sys::{Stats, enable_stats},
};
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, load, unload},
    lab_sockets, pace, pins,
    sockets::PROXY,
};

/// What one bind may cost more.
const COST: Duration = Duration::from_micros(1);

#[test]
fn binds_work_whatever_becomes_of_the_hooks() {
    let lab = Lab::builder().build().or_panic();
    let mut process = lab_sockets!(&lab, PROXY);
    let mut every_kind = |when: &str| {
        for (index, address) in ["0.0.0.0:0", "127.0.0.1:0", "[::]:0", "[::1]:0"].iter().enumerate() {
            for protocol in ["tcp", "udp"] {
                let key = format!("{when}-{protocol}-{index}");
                process.tell(&format!("bind {key} {protocol} {address}")).or_panic();
                process.tell(&format!("ask {key}")).or_panic();
                process.tell(&format!("close {key}")).or_panic();
            }
        }
    };
    every_kind("before");
    load(&lab);
    every_kind("loaded");
    load(&lab);
    every_kind("loaded-again");
    // Whatever stands in the maps.
    lab.guest()
        .run("sh", ["-c", &format!("rm {} {}", pins::path("SOCKET_OWNER"), pins::path("OWNERS"))])
        .or_panic();
    every_kind("unpinned");
    unload(&lab);
    every_kind("unloaded");
}

/// A distribution may have a cgroup namespace of its own: there, the hooks are in all that it sees of the hierarchy.
#[test]
fn in_a_cgroup_namespace_load_says_of_whom_it_knows_nothing() {
    let lab = Lab::builder().build().or_panic();
    let load = lab.wsl_mirror_command(&["load"]).or_panic();
    let words = || [load.get_program()].into_iter().chain(load.get_args());
    let binary =
        words().find(|word| Path::new(word).ends_with("wsl-mirror")).context("no wsl-mirror").or_panic();
    let cgroup = words().last().context("no cgroup").or_panic();
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup sh -c \
         'mount -t cgroup2 none /mnt && mount --move /mnt /sys/fs/cgroup && exec {} load'",
        Path::new(cgroup).display(),
        Path::new(binary).display()
    );
    let said = lab.guest().command("unshare").args(["--mount", "sh", "-c", &script]).output().or_panic();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("this is a cgroup namespace"), "{said}");
    let said = lab.wsl_mirror(&["load"]).or_panic();
    assert!(!said.stderr.contains("cgroup namespace"), "{said}");
}

/// As the kernel itself measures it: the clock of a machine that others use too tells nothing about a microsecond.
#[test]
fn a_bind_costs_at_most_a_microsecond_more() {
    let lab = Lab::builder().build().or_panic();
    load(&lab);
    let mut process = lab_sockets!(&lab, PROXY);
    let hook = lab.guest().enter(|| {
        let link = PinnedLink::from_pin(pins::path("link_post_bind4")).or_panic();
        FdLink::from(link).info().or_panic().program_id()
    });
    let so_far = || {
        let program = loaded_programs().flatten().find(|program| program.id() == hook);
        program.map(|program| (program.run_count(), program.run_time())).context("no such program")
    };
    let _measured = enable_stats(Stats::RunTime).or_panic();
    // In batches: now and then the machine has something else to do in the middle of one.
    let mut costs = Vec::new();
    for _ in 0..10 {
        let (runs, time) = so_far().or_panic();
        process.tell(&format!("binds {}", pace::rounds(2000))).or_panic();
        let (more_runs, more_time) = so_far().or_panic();
        let runs = u32::try_from(more_runs - runs).or_panic();
        assert!(runs as usize >= pace::rounds(2000), "the hook ran {runs} times");
        costs.push(more_time.saturating_sub(time) / runs);
    }
    costs.sort_unstable();
    // Whatever else the machine does only adds to it: the batch that was disturbed least is nearest to the truth.
    println!("the hook takes {:?} of a bind ({costs:?})", costs[0]);
    assert!(!pace::judges_costs() || costs[0] <= COST, "a bind costs {costs:?} more");
}
