//! `cargo xtask <task>`: everything that one does with this repository besides editing it.

mod cargo;
mod commands;
mod debian;
mod dist;
mod engines;
mod exit_code;
mod fuzz;
mod lab;
mod libtest;
mod progress;
mod report;
mod root;
mod setup;
mod table;
mod vm;

use clap::{Parser, Subcommand};
use exit_code::ExitCode;

/// The project's tasks. Each sets up what it needs by itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(commands::Setup),
    Build(commands::Build),
    Demo(commands::Demo),
    Test(commands::Test),
    Vm(commands::Vm),
    Bench(commands::Bench),
    Dist(commands::Dist),
}

fn main() -> ExitCode {
    let result = match Options::parse().task {
        Task::Setup(setup) => setup.exec(),
        Task::Build(build) => build.exec(),
        Task::Demo(demo) => demo.exec(),
        Task::Test(test) => test.exec(),
        Task::Vm(vm) => vm.exec(),
        Task::Bench(bench) => bench.exec(),
        Task::Dist(dist) => dist.exec(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::Failed
    })
}
