//! `cargo xtask bench`: what wsl-mirror costs, per packet and against the nft remedy.

mod bpf;
mod live;
mod load;
mod packets;
mod remedy;
mod scale;
mod statistics;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bpf::Direction;
use clap::Args;
use load::Ports;
pub(crate) use scale::Listen;
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
    /// Only single packets: no comparison with the nft remedy, and none of few and many flows
    #[arg(long)]
    packets: bool,
}

const CONFIDENCE_PERCENT: f64 = statistics::CONFIDENCE * 100.0;
const PORTS: Ports = Ports { echo: 8007, sink: 8009 };

impl Bench {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let started = Instant::now();
        let effort = if self.quick { Effort::QUICK } else { Effort::FULL };
        let busy = busy();
        let scene = step("build a model of WSL's mirrored mode, and start Docker in it", |_| Scene::set())?;
        let lab = &scene.lab;

        let mut verdicts = self.single_packets(lab, effort)?;
        if !self.packets {
            verdicts.extend(self.remedy(lab, effort.remedy)?);
            verdicts.extend(self.scale(lab, effort.scale)?);
        }

        let missed = verdicts.iter().filter(|verdict| **verdict == Verdict::Missed).count();
        let limits = verdicts.len();
        let seconds = started.elapsed().as_secs();
        if self.quick {
            print(&format!(
                "QUICK: too short to mean anything, not judged ({seconds} s). Without --quick it counts."
            ))?;
            return Ok(ExitCode::Success);
        }
        if missed == 0 {
            print(&format!("All {limits} limits hold ({seconds} s). {busy}."))?;
            return Ok(ExitCode::Success);
        }
        print(&format!(
            "{missed} of {limits} limits missed ({seconds} s). {busy}: what others do there is in these numbers too."
        ))?;
        Ok(ExitCode::TestsFailed)
    }

    fn single_packets(&self, lab: &Lab, effort: Effort) -> Result<Vec<Verdict>> {
        lab.wsl_mirror(&["load"])?.success()?;
        let packets = effort.packets;
        let costs = step("single packets, against an empty program", |progress| {
            packets::measure(lab, PORTS.echo, packets, progress)
        })?;
        print(&format!(
            "\n{HEADING}Nanoseconds per packet{HEADING:#}, BPF_PROG_TEST_RUN: {} runs of {} repeats in turns, on \
             one CPU; medians, and the interval that holds the true median with {CONFIDENCE_PERCENT} % confidence\n{}",
            packets.runs,
            packets.repeats,
            self.show_costs(&costs)
        ))?;
        let (rounds, time) = effort.live;
        let live = step("carried packets in live traffic, beside an empty program", |progress| {
            live::measure(lab, PORTS, rounds, time, progress)
        })?;
        print(&format!(
            "\n{HEADING}Nanoseconds per carried packet in live traffic{HEADING:#}, by the kernel's statistics of \
             programs: {rounds} rounds of {:.1} s of keep-alive requests\n{}",
            time.as_secs_f32(),
            self.show_live(&live)
        ))?;
        lab.wsl_mirror(&["unload"])?.success()?;
        let verdicts = costs.iter().map(packets::Cost::verdict);
        Ok(verdicts.chain(live.iter().map(live::Cost::verdict)).collect())
    }

    fn remedy(&self, lab: &Lab, effort: remedy::Effort) -> Result<Vec<Verdict>> {
        let comparisons = step("traffic through docker-proxy, against the nft remedy", |progress| {
            remedy::measure(lab, PORTS, effort, progress)
        })?;
        print(&format!(
            "\n{HEADING}Traffic from Windows through docker-proxy{HEADING:#}, {} pairs in turns of {:.1} s each\n{}",
            effort.pairs,
            effort.time.as_secs_f32(),
            self.show_comparisons(&comparisons)
        ))?;
        Ok(comparisons.iter().map(remedy::Comparison::verdict).collect())
    }

    fn scale(&self, lab: &Lab, effort: scale::Effort) -> Result<Vec<Verdict>> {
        let comparisons = step("many ports, many flows", |progress| scale::measure(lab, effort, progress))?;
        print(&format!(
            "\n{HEADING}Nanoseconds per packet, few and many{HEADING:#}, {} pairs in turns of {} datagrams, of all \
             flows one after the other\n{}",
            effort.pairs,
            effort.packets,
            self.show_scale(&comparisons)
        ))?;
        let judged = comparisons.iter().filter(|comparison| comparison.is_judged);
        Ok(judged.map(scale::Comparison::verdict).collect())
    }

    fn show_costs(&self, costs: &[packets::Cost]) -> String {
        let rows: Vec<_> = costs
            .iter()
            .map(|cost| {
                [
                    cost.packet.name.into(),
                    side(cost.packet.direction).into(),
                    format!("{:.1}", cost.empty.median).into(),
                    format!("{:.1}", cost.ours.median).into(),
                    format!("{:.1}", cost.over.median).into(),
                    interval(cost.over, 1).into(),
                    cost.packet.limit.to_string().into(),
                    self.verdict(cost.verdict()),
                ]
            })
            .collect();
        table::styled(
            ["packet", "program", "empty", "wsl-mirror", "more than empty", "interval", "limit", ""],
            &rows,
        )
    }

    fn show_live(&self, costs: &[live::Cost]) -> String {
        let rows: Vec<_> = costs
            .iter()
            .map(|cost| {
                [
                    side(cost.direction).into(),
                    format!("{:.1}", cost.empty.median).into(),
                    format!("{:.1}", cost.ours.median).into(),
                    format!("{:.1}", cost.over.median).into(),
                    interval(cost.over, 1).into(),
                    live::LIMIT.to_string().into(),
                    self.verdict(cost.verdict()),
                ]
            })
            .collect();
        table::styled(["program", "empty", "wsl-mirror", "more than empty", "interval", "limit", ""], &rows)
    }

    fn show_comparisons(&self, comparisons: &[remedy::Comparison]) -> String {
        let rows: Vec<_> = comparisons
            .iter()
            .map(|comparison| {
                let load = comparison.load;
                [
                    load.name().into(),
                    load.show(comparison.remedy.median).into(),
                    load.show(comparison.ours.median).into(),
                    format!("{:.3}", comparison.ratio.median).into(),
                    interval(comparison.ratio, 3).into(),
                    format!("{:.2} to {:.2}", comparison.ratio.min, comparison.ratio.max).into(),
                    remedy::LIMIT.to_string().into(),
                    self.verdict(comparison.verdict()),
                ]
            })
            .collect();
        table::styled(
            ["traffic", "nft remedy", "wsl-mirror", "ratio", "interval", "min to max", "limit", ""],
            &rows,
        )
    }

    fn show_scale(&self, comparisons: &[scale::Comparison]) -> String {
        let rows: Vec<_> = comparisons
            .iter()
            .map(|comparison| {
                let (limit, verdict) = if comparison.is_judged {
                    (scale::LIMIT.to_string(), self.verdict(comparison.verdict()))
                } else {
                    (String::new(), "".into())
                };
                [
                    comparison.what.into(),
                    format!("{:.0}", comparison.few.median).into(),
                    format!("{:.0}", comparison.many.median).into(),
                    format!("{:.3}", comparison.ratio.median).into(),
                    interval(comparison.ratio, 3).into(),
                    limit.into(),
                    verdict,
                ]
            })
            .collect();
        table::styled(["", "few", "many", "ratio", "interval", "limit", ""], &rows)
    }

    fn verdict(&self, verdict: Verdict) -> Cell {
        match verdict {
            _ if self.quick => "not judged".into(),
            Verdict::Holds => Cell::new("holds", GOOD),
            Verdict::Missed => Cell::new("MISSED", WRONG),
        }
    }
}

/// How much is measured, of each kind.
#[derive(Clone, Copy)]
struct Effort {
    packets: packets::Effort,
    /// Rounds, and how long each is.
    live: (u32, Duration),
    remedy: remedy::Effort,
    scale: scale::Effort,
}

impl Effort {
    const QUICK: Self = Self {
        packets: packets::Effort { runs: 5, repeats: 100_000 },
        live: (2, Duration::from_millis(200)),
        remedy: remedy::Effort { pairs: 2, time: Duration::from_millis(300) },
        scale: scale::Effort { pairs: 2, packets: 20_000 },
    };
    /// Many short pairs rather than few long ones: what disturbs a machine mostly lasts longer than these do, so that it
    /// meets both halves of a pair.
    const FULL: Self = Self {
        packets: packets::Effort { runs: 31, repeats: 1_000_000 },
        live: (31, Duration::from_millis(400)),
        remedy: remedy::Effort { pairs: 51, time: Duration::from_millis(600) },
        scale: scale::Effort { pairs: 15, packets: 200_000 },
    };
}

fn side(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn interval(summary: Summary, decimals: usize) -> String {
    summary.interval.map_or_else(
        || "too few pairs".to_owned(),
        |(low, high)| format!("{low:.decimals$} to {high:.decimals$}"),
    )
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
