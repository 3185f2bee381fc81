//! How much is done, and how long is waited: less and longer on an emulated machine, more when asked to soak.
//!
//! `cargo xtask` sets the variables; without them everything is as on a machine of one's own.

use std::{env, time::Duration};

/// By what factor this machine may be slower than real hardware; more than 1 where CPUs are emulated.
const SLOWDOWN: &str = "WSL_MIRROR_LAB_PATIENCE";
/// Set for the long version of tests whose worth is in how often they do a thing.
const SOAK: &str = "WSL_MIRROR_LAB_SOAK";

/// Set by the usual run (`cargo xtask test` without `--all`), which is waited for.
const BRIEF: &str = "WSL_MIRROR_LAB_BRIEF";

/// By what factor things may take longer here.
pub fn slowdown() -> u32 {
    env::var(SLOWDOWN).ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// Whether the CPUs are emulated: times and rates that are measured here say nothing.
pub fn is_emulated() -> bool {
    slowdown() > 1
}

/// Whether a test fails where something costs more than its limit. In emulation costs say nothing; a machine of continuous
/// integration (`CI` is set) is shared, and its numbers are only printed.
pub fn judges_costs() -> bool {
    !is_emulated() && env::var_os("CI").is_none()
}

/// Whether the long versions are asked for.
pub fn is_soak() -> bool {
    env::var_os(SOAK).is_some_and(|value| !value.is_empty() && value != "0")
}

/// How long is waited for what shall happen.
pub fn limit(real: Duration) -> Duration {
    real * slowdown()
}

/// How often something is done that is done `usual` times on real hardware: a tenth of it in emulation, where it
/// takes as long as the whole, and ten times as often when soaking.
pub fn rounds(usual: usize) -> usize {
    match (is_emulated(), is_soak()) {
        (false, false) | (true, true) => usual,
        (true, false) => (usual / 10).max(1),
        (false, true) => usual * 10,
    }
}

/// How many of something have to have happened meanwhile, for a test to have said anything, where this many do without
/// fail on real hardware: emulated CPUs do not get that far in the same time.
pub fn at_least(usual: u64) -> u64 {
    if is_emulated() { usual / 10 } else { usual }
}

/// The numbers from 1 on of a series of things of which all are best tried: on real hardware and when soaking each. In
/// the usual run, and in emulation, where each takes many seconds, ever fewer.
pub fn samples() -> impl Iterator<Item = usize> {
    let is_brief = is_emulated() || env::var_os(BRIEF).is_some();
    let factor = if is_brief && !is_soak() { 3 } else { 1 };
    std::iter::successors(Some(1), move |number| Some(if factor == 1 { number + 1 } else { number * factor }))
}
