//! `cargo xtask <task>`: everything that one does with this repository besides editing it.
//!
//! Each task has a room of its own: its command line, and what it knows. Three programs are packages of their own, since
//! they need what the tasks here build first: `xtask/lab` (demo, bench and the shell, linked with the lab),
//! `xtask/assets` (completions and man pages, linked with the product) and `xtask/toolchain` (a library that the
//! product's build script also uses).

mod bench;
mod build;
mod debian;
mod dist;
mod engines;
mod exit_code;
pub mod progress;
mod root;
mod setup;
pub mod shell;
pub mod table;
mod test;
mod vm;

use clap::{Parser, Subcommand};

pub use exit_code::ExitCode;

/// The project's tasks. Each sets up what it needs by itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Setup),
    Build(build::Build),
    Demo(bench::Demo),
    Test(test::Test),
    Vm(vm::Vm),
    Bench(bench::Bench),
    Shell(shell::Shell),
    Dist(dist::Dist),
}

/// Parses the command line, and carries out the task.
pub fn main() -> ExitCode {
    let result = match Options::parse().task {
        Task::Setup(setup) => setup.exec(),
        Task::Build(build) => build.exec(),
        Task::Demo(demo) => demo.exec(),
        Task::Test(test) => test.exec(),
        Task::Vm(vm) => vm.exec(),
        Task::Bench(bench) => bench.exec(),
        Task::Shell(shell) => shell.exec(),
        Task::Dist(dist) => dist.exec(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::Failed
    })
}
