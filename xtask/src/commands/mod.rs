//! One file a task: its options, and `exec`.

mod bench;
mod build;
mod demo;
mod dist;
mod setup;
mod test;
mod vm;

pub(crate) use bench::Bench;
pub(crate) use build::Build;
pub(crate) use demo::Demo;
pub(crate) use dist::Dist;
pub(crate) use setup::Setup;
pub(crate) use test::Test;
pub(crate) use vm::Vm;
