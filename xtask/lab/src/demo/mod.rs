//! `cargo xtask demo`: who reaches whom without wsl-mirror, with it, straight to the container, with an exemption, and
//! afterwards.

mod outcome;
mod probe;
mod promise;

use std::{net::Ipv4Addr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use outcome::Outcome;
use probe::call_all;
use promise::{CALLS, Call, Caller, Promised, Stage, Target};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service, loopback,
    servers::{self, Server},
};

use xtask::{
    ExitCode,
    progress::step,
    table::{self, BAD, Cell, GOOD, WRONG},
};

use crate::{output::print, status::Status};

/// Show what wsl-mirror does, with a real Docker in a model of mirrored mode
#[derive(Args)]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self {} = self;
        let started = Instant::now();
        let scene = step("build a model of WSL's mirrored mode, and start Docker in it", |_| Scene::set())?;
        let lab = &scene.lab;
        let wsl_mirror = |arguments: &[&str]| lab.wsl_mirror(arguments)?.success();

        let without = step("call everything without wsl-mirror", |_| Ok(call_all(lab)))?;
        let with = step("wsl-mirror load, and call everything", |_| {
            wsl_mirror(&["load"])?;
            Ok(call_all(lab))
        })?;
        let direct = step("path = \"direct\" in /etc/wsl-mirror.toml, and call everything", |_| {
            configure(lab, "path = \"direct\"\n")?;
            wsl_mirror(&["load"])?;
            Ok(call_all(lab))
        })?;
        let exempt = step("wsl-mirror exempt add 8080/tcp, and call everything", |_| {
            wsl_mirror(&["exempt", "add", "8080/tcp"])?;
            Ok(call_all(lab))
        })?;
        let status = Status::read(lab)?;
        for target in PUBLISHED {
            let (port, protocol) = (target.port(), target.protocol());
            let flows = status.port(port, protocol, "direct_flows");
            ensure!(flows > 0, "no flow to {port}/{protocol} went straight to the container");
        }
        let unloaded = step("wsl-mirror unload, and call everything", |_| {
            wsl_mirror(&["unload"])?;
            Ok(call_all(lab))
        })?;

        let outcomes = [without, with, direct, exempt, unloaded];
        let broken = broken_promises(&outcomes);
        print(&format!(
            "\nCalls to 127.0.0.1: without wsl-mirror, with it loaded, straight to the container, with a port exempt, and \
             unloaded again.\n\n{}",
            show(&outcomes)
        ))?;
        print(&account(&status))?;
        print(&closing(&broken, &scene.engine, started))?;
        Ok(if broken.is_empty() { ExitCode::Success } else { ExitCode::TestsFailed })
    }
}

/// Everything that is called.
struct Scene {
    lab: Lab,
    engine: String,
    _docker: Docker,
    _services: [Server; 2],
}

impl Scene {
    fn set() -> Result<Self> {
        // Docker 27.3 and later asks wslinfo, once, at its start, and then may help itself. The case to be
        // shown is the one in which it does not: an older Docker, or a loopback0 that came later.
        let lab = Lab::builder().wslinfo(false).build()?;
        // The machine's own configuration shines through the guest's /etc, and is not meant for this.
        configure(&lab, "")?;
        let docker = Docker::start(&lab, &DockerOptions::default())?;
        let mut container = Container::new("demo")
            .serve(Service::Http { port: 80 })
            .serve(Service::UdpEcho { port: Target::Udp.port() });
        for target in PUBLISHED {
            if let Some(port) = target.publish() {
                container = container.publish(port);
            }
        }
        docker.run(container)?;
        let version = docker.cli(&["version", "--format", "{{.Server.Version}}"])?.stdout;
        let services = [
            servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, Target::LinuxService.port()))?,
            servers::tcp_echo(lab.windows(), loopback(Target::WindowsService.port()))?,
        ];
        Ok(Self { lab, engine: format!("Docker {}", version.trim()), _docker: docker, _services: services })
    }
}

fn configure(lab: &Lab, text: &str) -> Result<()> {
    lab.guest().enter(|| std::fs::write("/etc/wsl-mirror.toml", text)).context("writing the configuration")
}

/// What happened, by stage and call.
type Outcomes = [Vec<Outcome>; Stage::ALL.len()];

/// A cell that is not as it was promised.
struct Broken {
    call: Call,
    stage: Stage,
    promised: Promised,
    outcome: Outcome,
}

fn broken_promises(outcomes: &Outcomes) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (row, call) in CALLS.into_iter().enumerate() {
        for (column, stage) in Stage::ALL.into_iter().enumerate() {
            let (promised, outcome) = (call.promised[column], &outcomes[column][row]);
            if !promised.is(outcome) {
                broken.push(Broken { call, stage, promised, outcome: outcome.clone() });
            }
        }
    }
    broken
}

fn show(outcomes: &Outcomes) -> String {
    let [without, with, direct, exempt, unloaded] = Stage::ALL.map(Stage::heading);
    let rows: Vec<_> = CALLS
        .iter()
        .enumerate()
        .map(|(row, call)| {
            let cell = |stage: usize| cell(&outcomes[stage][row], call.promised[stage]);
            [
                call.caller.name().into(),
                format!("{}/{}", call.target.port(), call.target.protocol()).into(),
                call.target.served_by().into(),
                cell(0),
                cell(1),
                cell(2),
                cell(3),
                cell(4),
            ]
        })
        .collect();
    table::styled(["caller", "port", "which is", without, with, direct, exempt, unloaded], &rows)
}

fn cell(outcome: &Outcome, promised: Promised) -> Cell {
    let (text, style) = match outcome {
        Outcome::Answered(took) => (format!("✓ {:.1} ms", took.as_secs_f64() * 1e3), GOOD),
        Outcome::Hung => ("hangs".to_owned(), BAD),
        Outcome::Refused => ("refused".to_owned(), BAD),
        Outcome::Other(_) => ("fails".to_owned(), BAD),
    };
    if promised.is(outcome) { Cell::new(text, style) } else { Cell::new(format!("{text} (!)"), WRONG) }
}

/// What the container serves, and with that what is carried.
const PUBLISHED: [Target; 3] = [Target::Web, Target::WebOnLoopback, Target::Udp];

/// The product's own account, taken before it was unloaded.
fn account(status: &Status) -> String {
    let ports = PUBLISHED.map(|target| {
        let (port, protocol) = (target.port(), target.protocol());
        let [steered, direct] =
            ["steered_flows", "direct_flows"].map(|counter| status.port(port, protocol, counter));
        format!("{port}/{protocol} {steered} steered, {direct} direct")
    });
    format!("wsl-mirror status ({}), flows: {}", status.attachment(), ports.join(" · "))
}

fn closing(broken: &[Broken], engine: &str, started: Instant) -> String {
    if broken.is_empty() {
        let seconds = started.elapsed().as_secs_f32();
        return format!(
            "\nAs promised: while wsl-mirror is loaded, what {engine} publishes answers on Windows' 127.0.0.1:\n\
             loaded: by docker-proxy, the default; direct: by the container itself, past docker-proxy.\n\
             An exempt port is left alone, everything else is as without it, and so is all after unload \
             ({seconds:.0} s).\n\
             Next: `cargo xtask test` proves it in detail; on WSL, `sudo wsl-mirror load`."
        );
    }
    let mut lines = vec![format!("\nNot as promised, with {engine}:")];
    for Broken { call, stage, promised, outcome } in broken {
        let found = match outcome {
            Outcome::Answered(_) => "an answer",
            Outcome::Hung => "no answer",
            Outcome::Refused => "a refusal",
            Outcome::Other(text) => text,
        };
        lines.push(format!(
            "  {} to 127.0.0.1:{}/{}, {}: {found} instead of {}{}",
            call.caller.name(),
            call.target.port(),
            call.target.protocol(),
            stage.heading(),
            promised.words(),
            known_reason(*call, *stage, outcome, engine)
                .map(|reason| format!(" ({reason})"))
                .unwrap_or_default(),
        ));
    }
    lines.push(
        "Next: run it again on a machine that has nothing else to do (a busy one can miss a time limit), then \
         `cargo xtask test lab`."
            .to_owned(),
    );
    lines.join("\n")
}

/// The first number of `Docker 20.10.24`, 0 if there is none.
fn major(engine: &str) -> u32 {
    let digits: String =
        engine.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// Why a cell may differ without anything being wrong with this machine.
fn known_reason(call: Call, stage: Stage, outcome: &Outcome, engine: &str) -> Option<&'static str> {
    match (call.caller, call.target, stage, outcome) {
        (Caller::Linux, Target::WebOnLoopback, _, Outcome::Hung) if major(engine) >= 28 => {
            Some("Docker 28 and later drops what is published on 127.0.0.1 and does not come in on lo")
        }
        (_, _, Stage::Without | Stage::Unloaded, Outcome::Answered(_)) => {
            Some("something else on this machine helps already: this Docker itself, or its proxy is off")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Exactly what is promised.
    fn kept() -> Outcomes {
        std::array::from_fn(|stage| {
            let outcome = |call: &Call| match call.promised[stage] {
                Promised::Answer => Outcome::Answered(Duration::from_micros(1234)),
                Promised::Hang => Outcome::Hung,
            };
            CALLS.iter().map(outcome).collect()
        })
    }

    #[test]
    fn what_is_promised_is_kept() {
        assert!(broken_promises(&kept()).is_empty());
        let text = anstream::adapter::strip_str(&show(&kept())).to_string();
        assert!(text.contains("✓ 1.2 ms") && text.contains("hangs") && !text.contains("(!)"), "{text}");
    }

    #[test]
    fn a_cell_that_differs_is_marked_and_named() {
        let mut outcomes = kept();
        outcomes[1][0] = Outcome::Hung;
        outcomes[0][4] = Outcome::Refused;
        let broken = broken_promises(&outcomes);
        assert_eq!(broken.len(), 2);
        assert_eq!(show(&outcomes).matches("(!)").count(), 2);
        let text = closing(&broken, "Docker 20.10.24", Instant::now());
        assert!(
            text.contains("Windows to 127.0.0.1:8080/tcp, loaded: no answer instead of an answer"),
            "{text}"
        );
        assert!(
            text.contains("Linux to 127.0.0.1:8080/tcp, without: a refusal instead of an answer"),
            "{text}"
        );
    }

    #[test]
    fn a_reason_is_given_only_where_it_can_be_true() {
        let reason = |caller, engine| {
            let call = Call {
                caller,
                target: Target::WebOnLoopback,
                promised: [Promised::Answer; Stage::ALL.len()],
            };
            known_reason(call, Stage::With, &Outcome::Hung, engine)
        };
        assert!(reason(Caller::Linux, "Docker 28.5.1").is_some());
        assert!(reason(Caller::Windows, "Docker 28.5.1").is_none(), "wsl-mirror carries it past the rule");
        assert!(reason(Caller::Linux, "Docker 20.10.24+dfsg1").is_none());
        assert!(reason(Caller::Linux, "Docker").is_none());
    }
}
