//! `cargo xtask demo`, `bench`, `shell` and `vm --shell`, once xtask has set up and built everything.

mod bench;
mod demo;
mod output;
mod shell;
mod status;

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
    Windows(shell::Windows),
    #[command(hide = true)]
    Listen(bench::Listen),
}

fn main() -> ExitCode {
    let result = match Options::parse().task {
        Task::Demo(demo) => demo.exec(),
        Task::Bench(bench) => bench.exec(),
        Task::Shell(shell) => shell.exec(),
        Task::Windows(windows) => windows.exec(),
        Task::Listen(listen) => listen.exec(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::Failed
    })
}
