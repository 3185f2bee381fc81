//! One file a task: its options, and `exec`.

mod build;
mod setup;
mod test;

pub(crate) use build::Build;
pub(crate) use setup::Setup;
pub(crate) use test::Test;
