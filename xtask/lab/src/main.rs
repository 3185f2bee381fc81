//! `cargo xtask demo`, `bench` and `vm --shell`, once xtask has set up and built everything.

mod bench;
mod demo;
mod progress;
mod shell;
mod status;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The tasks that need the lab; `cargo xtask` runs them.
#[derive(Parser)]
#[command(name = "xtask-lab", disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Demo(demo::Demo),
    Bench(bench::Bench),
    Shell(shell::Shell),
}

/// How a task that could be carried out came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All is as promised.
    Kept,
    /// Something is not.
    Broken,
}

/// xtask passes it on; its `ExitCode` has the list.
const BROKEN: u8 = 3;

fn main() -> ExitCode {
    let verdict = match Options::parse().task {
        Task::Demo(demo) => demo.exec(),
        Task::Bench(bench) => bench.exec(),
        Task::Shell(shell) => shell.exec(),
    };
    match verdict {
        Ok(Verdict::Kept) => ExitCode::SUCCESS,
        Ok(Verdict::Broken) => ExitCode::from(BROKEN),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; styles are left out unless that is a terminal that wants them. A reader that
/// went away is no failure: the verdict is in the exit code.
fn print(text: &str) -> Result<()> {
    use std::io::Write as _;

    match writeln!(anstream::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}
