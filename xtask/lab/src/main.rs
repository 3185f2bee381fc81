//! `cargo xtask demo`, `bench` and `vm --shell`, once xtask has set up and built everything.

mod bench;
mod demo;
mod shell;
mod status;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::ExitCode;

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

fn main() -> ExitCode {
    let result = match Options::parse().task {
        Task::Demo(demo) => demo.exec(),
        Task::Bench(bench) => bench.exec(),
        Task::Shell(shell) => shell.exec(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::Failed
    })
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
