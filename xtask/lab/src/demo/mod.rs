//! `cargo xtask demo`: who reaches whom without wsl-mirror, with it, straight to the container, with an exemption, and
//! afterwards.

mod outcome;
mod probe;
mod promise;
mod scene;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use outcome::Outcome;
use probe::call_all;
use promise::{CALLS, Call, Caller, Machine, Promised, Stage, Target};
use scene::Scene;
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
        let scene =
            step("build two models of WSL's mirrored mode, and start Docker in them", |_| Scene::set())?;

        let without = step("call everything without wsl-mirror", |_| Ok(call_all(&scene)))?;
        let with = step("wsl-mirror load, and call everything", |_| {
            scene.wsl_mirror(&["load"])?;
            Ok(call_all(&scene))
        })?;
        let direct = step("path = \"direct\" in /etc/wsl-mirror.toml, and call everything", |_| {
            scene.configure("path = \"direct\"\n")?;
            scene.wsl_mirror(&["load"])?;
            Ok(call_all(&scene))
        })?;
        let exempt = step("wsl-mirror exempt add 8080/tcp 8082/tcp, and call everything", |_| {
            scene.wsl_mirror(&["exempt", "add", "8080/tcp", "8082/tcp"])?;
            Ok(call_all(&scene))
        })?;
        let account = Account::read(&scene)?;
        let unloaded = step("wsl-mirror unload, and call everything", |_| {
            scene.wsl_mirror(&["unload"])?;
            Ok(call_all(&scene))
        })?;

        let outcomes = [without, with, direct, exempt, unloaded];
        let broken = broken_promises(&outcomes);
        print(&format!(
            "\nCalls to 127.0.0.1, in ms: without wsl-mirror, with it loaded, straight to the\n\
             container, with 8080 and 8082 exempt, and unloaded again.\n\n{}",
            show(&outcomes)
        ))?;
        print(&account.text())?;
        print(&closing(&broken, &scene.engine, started))?;
        Ok(if broken.is_empty() { ExitCode::Success } else { ExitCode::TestsFailed })
    }
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
        Outcome::Answered(took) => (format!("✓ {:.1}", took.as_secs_f64() * 1e3), GOOD),
        Outcome::Hung => ("hangs".to_owned(), BAD),
        Outcome::Reset => ("reset".to_owned(), BAD),
        Outcome::Refused => ("refused".to_owned(), BAD),
        Outcome::Other(_) => ("fails".to_owned(), BAD),
    };
    if promised.is(outcome) { Cell::new(text, style) } else { Cell::new(format!("{text} (!)"), WRONG) }
}

/// The product's own account, taken before it was unloaded.
struct Account {
    attachment: String,
    /// Of each published port: where it is, and how many flows from Windows were steered and went direct.
    flows: Vec<(Target, [u64; 2])>,
    /// How many connects and datagrams of Linux' own clients were translated.
    translated: u64,
}

impl Account {
    /// Also checks that each published port had a direct flow, and that Linux' own clients were translated: where
    /// docker-proxy serves, every way answers.
    fn read(scene: &Scene) -> Result<Self> {
        let with_proxy = Status::read(scene.lab(Machine::WithProxy))?;
        let without_proxy = Status::read(scene.lab(Machine::WithoutProxy))?;
        let published = Target::ALL.into_iter().filter(|target| target.publish().is_some());
        let flows = published.map(|target| {
            let (port, protocol) = (target.port(), target.protocol());
            let status = match target.machine() {
                Machine::WithProxy => &with_proxy,
                Machine::WithoutProxy => &without_proxy,
            };
            let [steered, direct] =
                ["steered_flows", "direct_flows"].map(|counter| status.port(port, protocol, counter));
            ensure!(direct > 0, "no flow to {port}/{protocol} went straight to the container");
            Ok((target, [steered, direct]))
        });
        let flows = flows.collect::<Result<_>>()?;
        let translated = [with_proxy.clients("translated")?, without_proxy.clients("translated")?];
        ensure!(!translated.contains(&0), "no client in Linux was connected straight to a container");
        Ok(Self { attachment: with_proxy.attachment(), flows, translated: translated.iter().sum() })
    }

    fn text(&self) -> String {
        let flows: Vec<_> = self
            .flows
            .iter()
            .map(|(target, [steered, direct])| {
                format!("  {}/{}: {steered} steered, {direct} direct", target.port(), target.protocol())
            })
            .collect();
        format!(
            "wsl-mirror status ({}), flows from Windows:\n{}\n\
             Linux' own clients: {} translated, connected straight to the container",
            self.attachment,
            flows.join("\n"),
            self.translated
        )
    }
}

fn closing(broken: &[Broken], engine: &str, started: Instant) -> String {
    if broken.is_empty() {
        let seconds = started.elapsed().as_secs_f32();
        return format!(
            "\nAs promised. While wsl-mirror is loaded, what {engine} publishes answers on\n\
             127.0.0.1, Windows' and Linux'. loaded: from Windows by docker-proxy, the default;\n\
             direct: by the container itself. Linux clients are connected to the container.\n\
             An exempt port is left alone, and so is everything after unload ({seconds:.0} s).\n\
             Next: `cargo xtask test` proves it in detail; on WSL, `sudo wsl-mirror load`."
        );
    }
    let mut lines = vec![format!("\nNot as promised, with {engine}:")];
    for Broken { call, stage, promised, outcome } in broken {
        let found = match outcome {
            Outcome::Answered(_) => "an answer",
            Outcome::Hung => "no answer",
            Outcome::Reset => "a reset",
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
        (Caller::Linux, Target::WebOnLoopback, Stage::Without | Stage::Unloaded, Outcome::Hung)
            if major(engine) >= 28 =>
        {
            Some("Docker 28 and later drops what is published on 127.0.0.1 and does not come in on lo")
        }
        (Caller::Linux, _, Stage::Without | Stage::Exempt | Stage::Unloaded, Outcome::Answered(_)) => {
            Some("before Linux 6.7 such a port answers a Linux client by itself")
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
                Promised::Nothing => Outcome::Reset,
            };
            CALLS.iter().map(outcome).collect()
        })
    }

    #[test]
    fn what_is_promised_is_kept() {
        assert!(broken_promises(&kept()).is_empty());
        let text = anstream::adapter::strip_str(&show(&kept())).to_string();
        assert!(text.contains("✓ 1.2") && text.contains("hangs") && !text.contains("(!)"), "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{widest:?} columns:\n{text}");
    }

    #[test]
    fn a_cell_that_differs_is_marked_and_named() {
        let mut outcomes = kept();
        outcomes[1][0] = Outcome::Hung;
        outcomes[0][6] = Outcome::Refused;
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
        let reason = |caller, stage, engine| {
            let call = Call {
                caller,
                target: Target::WebOnLoopback,
                promised: [Promised::Answer; Stage::ALL.len()],
            };
            known_reason(call, stage, &Outcome::Hung, engine)
        };
        assert!(reason(Caller::Linux, Stage::Without, "Docker 28.5.1").is_some());
        assert!(reason(Caller::Linux, Stage::With, "Docker 28.5.1").is_none(), "wsl-mirror heals it");
        assert!(reason(Caller::Windows, Stage::Without, "Docker 28.5.1").is_none());
        assert!(reason(Caller::Linux, Stage::Without, "Docker 20.10.24+dfsg1").is_none());
        assert!(reason(Caller::Linux, Stage::Without, "Docker").is_none());
    }
}
