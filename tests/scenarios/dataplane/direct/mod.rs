//! Flows that go straight to the container: targets, who decides, when a flow falls back, what stays inside.
//!
//! [`machine`] has everything in the test's hand, its listeners' targets too. Tests of real engines let `load` write them.

mod checksums;
mod conditions;
mod datagrams;
mod deciding;
mod failures;
mod fallback;
mod flush;
mod fragments;
mod inside;
mod life;
mod many;
mod reached;
mod reuse;

pub(crate) use wsl_mirror_lab::published::machine;
use wsl_mirror_lab::published::who;
