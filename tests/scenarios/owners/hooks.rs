//! The hooks themselves: they never fail a bind, and cost next to nothing.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
    sys::{Stats, enable_stats},
};
use wsl_mirror_lab::{Lab, pace};

use crate::{PROXY, load, process};

/// What one bind may cost more.
const COST: Duration = Duration::from_micros(1);

#[test]
fn binds_work_whatever_becomes_of_the_hooks() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut process = process(&lab, PROXY)?;
    let mut every_kind = |when: &str| -> Result<()> {
        for (index, address) in ["0.0.0.0:0", "127.0.0.1:0", "[::]:0", "[::1]:0"].iter().enumerate() {
            for protocol in ["tcp", "udp"] {
                let key = format!("{when}-{protocol}-{index}");
                process.tell(&format!("bind {key} {protocol} {address}"))?;
                process.tell(&format!("ask {key}"))?;
                process.tell(&format!("close {key}"))?;
            }
        }
        Ok(())
    };
    every_kind("before")?;
    load(&lab)?;
    every_kind("loaded")?;
    load(&lab)?;
    every_kind("loaded-again")?;
    // Whatever stands in the maps.
    lab.guest()
        .run("sh", ["-c", "rm /sys/fs/bpf/wsl-mirror/v1/SOCKET_OWNER /sys/fs/bpf/wsl-mirror/v1/OWNERS"])?;
    every_kind("unpinned")?;
    lab.wsl_mirror(&["unload"])?.success()?;
    every_kind("unloaded")?;
    Ok(())
}

/// A distribution may have a cgroup namespace of its own: there, the hooks are in all that it sees of the hierarchy.
#[test]
fn in_a_cgroup_namespace_load_says_of_whom_it_knows_nothing() -> Result<()> {
    let lab = Lab::builder().build()?;
    let load = lab.wsl_mirror_command(&["load"])?;
    let words = || [load.get_program()].into_iter().chain(load.get_args());
    let binary = words().find(|word| Path::new(word).ends_with("wsl-mirror")).context("no wsl-mirror")?;
    let cgroup = words().last().context("no cgroup")?;
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup sh -c \
         'mount -t cgroup2 none /mnt && mount --move /mnt /sys/fs/cgroup && exec {} load'",
        Path::new(cgroup).display(),
        Path::new(binary).display()
    );
    let said = lab.guest().command("unshare").args(["--mount", "sh", "-c", &script]).output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.contains("this is a cgroup namespace"), "{said}");
    let said = lab.wsl_mirror(&["load"])?;
    ensure!(!said.stderr.contains("cgroup namespace"), "{said}");
    Ok(())
}

/// As the kernel itself measures it: the clock of a machine that others use too tells nothing about a microsecond.
#[test]
fn a_bind_costs_at_most_a_microsecond_more() -> Result<()> {
    let lab = Lab::builder().build()?;
    load(&lab)?;
    let mut process = process(&lab, PROXY)?;
    let hook = lab.guest().enter(|| -> Result<u32> {
        let link = PinnedLink::from_pin("/sys/fs/bpf/wsl-mirror/v1/link_post_bind4")?;
        Ok(FdLink::from(link).info()?.program_id())
    })?;
    let so_far = || {
        let program = loaded_programs().flatten().find(|program| program.id() == hook);
        program.map(|program| (program.run_count(), program.run_time())).context("no such program")
    };
    let _measured = enable_stats(Stats::RunTime)?;
    // In batches: now and then the machine has something else to do in the middle of one.
    let mut costs = Vec::new();
    for _ in 0..10 {
        let (runs, time) = so_far()?;
        process.tell(&format!("binds {}", pace::rounds(2000)))?;
        let (more_runs, more_time) = so_far()?;
        let runs = u32::try_from(more_runs - runs)?;
        ensure!(runs as usize >= pace::rounds(2000), "the hook ran {runs} times");
        costs.push(more_time.saturating_sub(time) / runs);
    }
    costs.sort_unstable();
    // Whatever else the machine does only adds to it: the batch that was disturbed least is nearest to the truth.
    println!("the hook takes {:?} of a bind ({costs:?})", costs[0]);
    ensure!(pace::is_emulated() || costs[0] <= COST, "a bind costs {costs:?} more");
    Ok(())
}
