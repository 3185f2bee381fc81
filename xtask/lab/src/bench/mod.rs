//! `cargo xtask bench`: what wsl-mirror costs, per packet, against the nft remedy, direct against steer, and Linux' own
//! clients.

mod bpf;
mod chart;
mod comparison;
mod connects;
mod cpu;
mod linux;
mod live;
mod load;
mod machine;
mod packets;
mod scale;
mod statistics;
mod tables;
mod traffic;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use comparison::Comparison;
use load::Ports;
use machine::Machine;
pub(crate) use scale::Listen;
use statistics::Verdict;
use tables::Judging;
use traffic::Road;
use wsl_mirror_lab::{Container, Docker, DockerOptions, Lab, Service};

use xtask::{ExitCode, progress::step, table::HEADING};

use crate::output::print;

/// Measure what wsl-mirror costs, and compare with the limits
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own on the command line")]
pub(crate) struct Bench {
    /// A few short runs, to see that it works: no measurement, and not judged
    #[arg(long)]
    quick: bool,
    /// Only single packets: no traffic, and no comparison of few and many flows
    #[arg(long, conflicts_with_all = ["traffic", "linux", "connects", "chart"])]
    packets: bool,
    /// Only traffic: the nft remedy, steered, and direct
    #[arg(long)]
    traffic: bool,
    /// Linux' own clients: to a container, and to a program on Linux. With --traffic, both
    #[arg(long)]
    linux: bool,
    /// What the hooks for Linux' own clients cost all other programs
    #[arg(long)]
    connects: bool,
    /// Draw the comparison of traffic into this file, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

const CONFIDENCE_PERCENT: f64 = statistics::CONFIDENCE * 100.0;
const PORTS: Ports = Ports { echo: 8007, sink: 8009 };

impl Bench {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let started = Instant::now();
        let effort = if self.quick { Effort::QUICK } else { Effort::FULL };
        let machine = Machine::read();
        let scene = step("build a model of WSL's mirrored mode, and start Docker in it", |_| Scene::set())?;
        let lab = &scene.lab;

        let all = !self.packets && !self.traffic && !self.linux && !self.connects && self.chart.is_none();
        let mut verdicts = Vec::new();
        if all || self.packets {
            verdicts.extend(self.single_packets(lab, effort)?);
        }
        if all || self.traffic || self.chart.is_some() {
            verdicts.extend(self.traffic(&scene, effort.traffic, &machine)?);
        }
        if self.linux {
            verdicts.extend(self.linux(lab, effort.traffic)?);
        }
        if self.connects {
            verdicts.extend(self.connects(&scene, effort.connects)?);
        }
        if all {
            verdicts.extend(self.scale(lab, effort.scale)?);
        }

        let missed = verdicts.iter().filter(|verdict| **verdict == Verdict::Missed).count();
        let limits = verdicts.len();
        let seconds = started.elapsed().as_secs();
        let on = format!("{}; {}", machine.line(), machine.busy());
        if self.quick {
            print(&format!(
                "QUICK: too short to mean anything, not judged ({seconds} s). Without --quick it counts."
            ))?;
            return Ok(ExitCode::Success);
        }
        if missed == 0 {
            print(&format!("All {limits} limits hold ({seconds} s). {on}."))?;
            return Ok(ExitCode::Success);
        }
        print(&format!(
            "{missed} of {limits} limits missed ({seconds} s). {on}: what others do there is in these numbers too."
        ))?;
        Ok(ExitCode::TestsFailed)
    }

    fn judging(&self) -> Judging {
        if self.quick { Judging::Off } else { Judging::On }
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
            self.judging().costs(&costs)
        ))?;
        let (rounds, time) = effort.live;
        let live = step("carried packets in live traffic, beside an empty program", |progress| {
            live::measure(lab, PORTS, rounds, time, progress)
        })?;
        print(&format!(
            "\n{HEADING}Nanoseconds per carried packet in live traffic{HEADING:#}, by the kernel's statistics of \
             programs: {rounds} rounds of {:.1} s of keep-alive requests\n{}",
            time.as_secs_f32(),
            self.judging().live(&live)
        ))?;
        lab.wsl_mirror(&["unload"])?.success()?;
        let verdicts = costs.iter().map(packets::Cost::verdict);
        Ok(verdicts.chain(live.iter().map(live::Cost::verdict)).collect())
    }

    fn traffic(&self, scene: &Scene, effort: traffic::Effort, machine: &Machine) -> Result<Vec<Verdict>> {
        let measured = step("traffic by the nft remedy, steered, and direct", |progress| {
            traffic::measure(&scene.lab, PORTS, effort, progress)
        })?;
        let noise = format!("others had {:.0} % of the CPUs meanwhile", measured.others * 100.0);
        let steer = measured.steer_against_remedy();
        let direct = measured.direct_against_steer();
        print(&format!(
            "\n{HEADING}Traffic from Windows through docker-proxy{HEADING:#}, {} rounds in turns of {:.1} s each; {noise}\n{}\
             \n{HEADING}The same traffic straight to the container{HEADING:#}, in the same rounds\n{}",
            effort.rounds,
            effort.time.as_secs_f32(),
            self.judging().roads(Road::Steer.name(), Road::Remedy.name(), &steer),
            self.judging().roads(Road::Direct.name(), Road::Steer.name(), &direct)
        ))?;
        if let Some(path) = &self.chart {
            let note = if self.quick {
                "A few short runs: no measurement.".to_owned()
            } else {
                format!(
                    "{}. Medians of {} rounds in turns; lines: {CONFIDENCE_PERCENT} % intervals; {noise}.",
                    scene.engine, effort.rounds
                )
            };
            chart::write(path, &measured, machine, &note)?;
            print(&format!("Drawn: {}\n", path.display()))?;
        }
        Ok(steer.iter().chain(&direct).filter_map(Comparison::verdict).collect())
    }

    fn linux(&self, lab: &Lab, effort: traffic::Effort) -> Result<Vec<Verdict>> {
        let measured = step("Linux' own clients, of a container and of a program on Linux", |progress| {
            let scene = linux::Scene::set(lab, PORTS)?;
            linux::measure(&scene, effort, progress)
        })?;
        let [proxy, translated, hairpin, kept, plain] = {
            use linux::Road::{Hairpin, KeptOnLo, PlainLo, Proxy, Translated};
            [Proxy, Translated, Hairpin, KeptOnLo, PlainLo].map(linux::Road::name)
        };
        let to_container = measured.translated_against_proxy();
        let to_program = measured.kept_against_plain();
        print(&format!(
            "\n{HEADING}A Linux client of a container{HEADING:#}, without wsl-mirror and after load, {} rounds in turns \
             of {:.1} s each; others had {:.0} % of the CPUs meanwhile\n{}\
             \n{HEADING}A Linux client of a program on Linux{HEADING:#}, on a machine without WSL's routing and under \
             run\n{}\
             \n{HEADING}The same client{HEADING:#}, without wsl-mirror and under run, in the same rounds\n{}",
            effort.rounds,
            effort.time.as_secs_f32(),
            measured.others * 100.0,
            self.judging().roads(translated, proxy, &to_container),
            self.judging().roads(kept, plain, &to_program),
            self.judging().roads(kept, hairpin, &measured.kept_against_hairpin())
        ))?;
        Ok(to_container.iter().chain(&to_program).filter_map(Comparison::verdict).collect())
    }

    fn connects(&self, scene: &Scene, effort: connects::Effort) -> Result<Vec<Verdict>> {
        let costs = step("system calls of other programs, without wsl-mirror and with it", |progress| {
            connects::measure(&scene.lab, &scene.docker, effort, progress)
        })?;
        print(&format!(
            "\n{HEADING}Nanoseconds per system call of other programs{HEADING:#}, without wsl-mirror and after load, \
             {} rounds in turns of {} calls\n{}",
            effort.rounds,
            effort.calls,
            self.judging().connects(&costs)
        ))?;
        Ok(costs.iter().filter_map(connects::Cost::verdict).collect())
    }

    fn scale(&self, lab: &Lab, effort: scale::Effort) -> Result<Vec<Verdict>> {
        let comparisons = step("many ports, many flows", |progress| scale::measure(lab, effort, progress))?;
        print(&format!(
            "\n{HEADING}Nanoseconds per packet, few and many{HEADING:#}, {} pairs in turns of {} datagrams, of all \
             flows one after the other\n{}",
            effort.pairs,
            effort.packets,
            self.judging().scale(&comparisons)
        ))?;
        let judged = comparisons.iter().filter(|comparison| comparison.is_judged);
        Ok(judged.map(scale::Comparison::verdict).collect())
    }
}

/// How much is measured, of each kind.
#[derive(Clone, Copy)]
struct Effort {
    packets: packets::Effort,
    /// Rounds, and how long each is.
    live: (u32, Duration),
    traffic: traffic::Effort,
    scale: scale::Effort,
    connects: connects::Effort,
}

impl Effort {
    const QUICK: Self = Self {
        packets: packets::Effort { runs: 5, repeats: 100_000 },
        live: (2, Duration::from_millis(200)),
        traffic: traffic::Effort { rounds: 2, time: Duration::from_millis(300) },
        scale: scale::Effort { pairs: 2, packets: 20_000 },
        connects: connects::Effort { rounds: 2, calls: 20_000 },
    };
    /// Many short rounds rather than few long ones: what disturbs a machine mostly lasts longer than these do, so that it
    /// meets all parts of a round.
    const FULL: Self = Self {
        packets: packets::Effort { runs: 31, repeats: 1_000_000 },
        live: (31, Duration::from_millis(400)),
        traffic: traffic::Effort { rounds: 41, time: Duration::from_millis(600) },
        scale: scale::Effort { pairs: 15, packets: 200_000 },
        connects: connects::Effort { rounds: 31, calls: 200_000 },
    };
}

struct Scene {
    lab: Lab,
    /// Its name and version.
    engine: String,
    docker: Docker,
}

impl Scene {
    fn set() -> Result<Self> {
        // Without wslinfo: a Docker that helps itself would be measured instead of either remedy.
        //
        // docker-proxy opens a connection to the container for each of the client's, from a few thousand
        // ports that are each blocked for a minute afterwards: thousands of connections a second take more
        // ports, and their reuse. Windows leases them all, or it would not send Linux' own clients their replies.
        let lab = Lab::builder().wslinfo(false).leases(20_000..=48_715).build()?;
        lab.guest()
            .enter(|| std::fs::write("/etc/wsl-mirror.toml", ""))
            .context("clearing the configuration")?;
        lab.guest().set_sysctls([("net/ipv4/tcp_tw_reuse", "1")])?;
        lab.windows().set_sysctls([("net/ipv4/tcp_tw_reuse", "1")])?;
        let docker = Docker::start(&lab, &DockerOptions::default())?;
        docker.run(
            Container::new("bench")
                .serve(Service::TcpEcho { port: 7 })
                .serve(Service::TcpSink { port: 9 })
                .publish(&format!("{}:7", PORTS.echo))
                .publish(&format!("{}:9", PORTS.sink)),
        )?;
        let version = docker.cli(&["version", "--format", "{{.Server.Version}}"])?.stdout;
        Ok(Self { lab, engine: format!("Docker {}", version.trim()), docker })
    }
}
