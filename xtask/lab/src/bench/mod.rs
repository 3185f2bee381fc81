//! `cargo xtask bench`: what wsl-mirror costs, per packet and against the nft remedy.

mod bpf;
mod load;
mod packets;
mod remedy;
mod statistics;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use load::Ports;
use packets::Cost;
use remedy::Comparison;
use statistics::{Summary, Verdict};
use wsl_mirror_lab::{Container, Docker, DockerOptions, Lab, Service};

use xtask::{
    ExitCode,
    progress::step,
    table::{self, Cell, GOOD, HEADING, WRONG},
};

use crate::output::print;

/// Measure what wsl-mirror costs, and compare with the limits
#[derive(Args)]
pub(crate) struct Bench {
    /// A few short runs, to see that it works: no measurement, and not judged
    #[arg(long)]
    quick: bool,
    /// Only single packets, not the traffic through docker-proxy
    #[arg(long)]
    packets: bool,
}

const PORTS: Ports = Ports { echo: 8007, sink: 8009 };

impl Bench {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let started = Instant::now();
        let (packets, remedy) = self.effort();
        let busy = busy();
        let scene = step("build a model of WSL's mirrored mode, and start Docker in it", |_| Scene::set())?;
        let lab = &scene.lab;

        let costs = step("single packets, against an empty program", |progress| {
            lab.wsl_mirror(&["load"])?.success()?;
            let costs = packets::measure(lab, PORTS.echo, packets, progress)?;
            lab.wsl_mirror(&["unload"])?.success()?;
            Ok(costs)
        })?;
        print(&format!(
            "\n{HEADING}Nanoseconds per packet{HEADING:#}, BPF_PROG_TEST_RUN: {} runs of {} repeats in turns, on \
             one CPU; median (min to max)\n{}",
            packets.runs,
            packets.repeats,
            self.show_costs(&costs)
        ))?;

        let comparisons = if self.packets { Vec::new() } else { self.compare(lab, remedy)? };

        let missed = costs.iter().filter(|cost| cost.verdict() == Verdict::Missed).count()
            + comparisons.iter().filter(|comparison| comparison.verdict() == Verdict::Missed).count();
        let seconds = started.elapsed().as_secs();
        if self.quick {
            print(&format!(
                "QUICK: too short to mean anything, not judged ({seconds} s). Without --quick it counts."
            ))?;
            return Ok(ExitCode::Success);
        }
        let doubtful = comparisons.iter().filter(|comparison| comparison.is_doubtful()).count();
        if doubtful > 0 {
            print(&format!(
                "{doubtful} of {} ratios are doubtful: the limit lies inside of the interval. A machine that has \
                 nothing else to do tells more.",
                comparisons.len()
            ))?;
        }
        let limits = costs.len() + comparisons.len();
        if missed == 0 {
            print(&format!("All {limits} limits hold ({seconds} s). {busy}."))?;
            return Ok(ExitCode::Success);
        }
        print(&format!(
            "{missed} of {limits} limits missed ({seconds} s). {busy}: what others do there is in these numbers too."
        ))?;
        Ok(ExitCode::TestsFailed)
    }

    fn compare(&self, lab: &Lab, effort: remedy::Effort) -> Result<Vec<Comparison>> {
        let comparisons = step("traffic through docker-proxy, against the nft remedy", |progress| {
            remedy::measure(lab, PORTS, effort, progress)
        })?;
        print(&format!(
            "\n{HEADING}Traffic from Windows through docker-proxy{HEADING:#}, {} pairs in turns of {:.1} s each; \
             medians, and the interval that holds the true median ratio with {} % confidence\n{}",
            effort.pairs,
            effort.time.as_secs_f32(),
            statistics::CONFIDENCE * 100.0,
            self.show_comparisons(&comparisons)
        ))?;
        Ok(comparisons)
    }

    fn effort(&self) -> (packets::Effort, remedy::Effort) {
        if self.quick {
            let packets = packets::Effort { runs: 5, repeats: 100_000 };
            (packets, remedy::Effort { pairs: 2, time: Duration::from_millis(300) })
        } else {
            // Many short pairs rather than few long ones: what disturbs a machine mostly lasts longer than these
            // do, so that it meets both halves of a pair.
            let packets = packets::Effort { runs: 31, repeats: 1_000_000 };
            (packets, remedy::Effort { pairs: 51, time: Duration::from_millis(600) })
        }
    }

    fn show_costs(&self, costs: &[Cost]) -> String {
        let show = |Summary { median, min, max }| format!("{median:.1} ({min:.1} to {max:.1})");
        let rows: Vec<_> = costs
            .iter()
            .map(|cost| {
                [
                    cost.packet.name.into(),
                    show(cost.empty).into(),
                    show(cost.ours).into(),
                    show(cost.over).into(),
                    format!("≤ {}", cost.packet.limit).into(),
                    self.verdict(cost.verdict()),
                ]
            })
            .collect();
        table::styled(["packet", "empty", "wsl-mirror", "more than empty", "limit", ""], &rows)
    }

    fn show_comparisons(&self, comparisons: &[Comparison]) -> String {
        let rows: Vec<_> = comparisons
            .iter()
            .map(|comparison| {
                let interval = comparison.interval;
                let load = comparison.load;
                [
                    load.name().into(),
                    load.show(comparison.remedy.median).into(),
                    load.show(comparison.ours.median).into(),
                    format!("{:.3}", comparison.ratio.median).into(),
                    interval
                        .map_or_else(
                            || "too few pairs".to_owned(),
                            |(low, high)| format!("{low:.3} to {high:.3}"),
                        )
                        .into(),
                    format!("{:.2} to {:.2}", comparison.ratio.min, comparison.ratio.max).into(),
                    format!("≥ {}", remedy::LIMIT).into(),
                    self.verdict(comparison.verdict()),
                ]
            })
            .collect();
        table::styled(
            ["traffic", "nft remedy", "wsl-mirror", "ratio", "interval", "min to max", "limit", ""],
            &rows,
        )
    }

    fn verdict(&self, verdict: Verdict) -> Cell {
        match verdict {
            _ if self.quick => "not judged".into(),
            Verdict::Holds => Cell::new("holds", GOOD),
            Verdict::Missed => Cell::new("MISSED", WRONG),
        }
    }
}

/// What the machine had to do before we came.
fn busy() -> String {
    let loads = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = loads.split_whitespace().next().unwrap_or("unknown");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("Load average at the start: {load}, on {cpus} CPUs")
}

struct Scene {
    lab: Lab,
    _docker: Docker,
}

impl Scene {
    fn set() -> Result<Self> {
        // Without wslinfo: a Docker that helps itself would be measured instead of either remedy.
        let lab = Lab::builder().wslinfo(false).build()?;
        lab.guest()
            .enter(|| std::fs::write("/etc/wsl-mirror.toml", ""))
            .context("clearing the configuration")?;
        // docker-proxy opens a connection to the container for each of the client's, from a few thousand
        // ports that are each blocked for a minute afterwards: thousands of connections a second take more
        // ports, and their reuse. Nothing here calls Windows, which would mind the other ports.
        lab.guest()
            .set_sysctls([("net/ipv4/ip_local_port_range", "20000 48715"), ("net/ipv4/tcp_tw_reuse", "1")])?;
        lab.windows().set_sysctls([("net/ipv4/tcp_tw_reuse", "1")])?;
        let docker = Docker::start(&lab, &DockerOptions::default())?;
        docker.run(
            Container::new("bench")
                .serve(Service::TcpEcho { port: 7 })
                .serve(Service::TcpSink { port: 9 })
                .publish(&format!("{}:7", PORTS.echo))
                .publish(&format!("{}:9", PORTS.sink)),
        )?;
        Ok(Self { lab, _docker: docker })
    }
}
