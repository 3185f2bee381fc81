//! Frames for tests, from good to garbage, and what the pure functions say about them.
//!
//! One set of generators for everybody who asks the same questions: the host's tests of
//! [`wsl_mirror_core::packet`], and those that send the same frames through the program in the kernel. All
//! are seeded: a run is like the one before.
//!
//! - [`Spec`]: a frame, field by field; [`Spec::build`] makes a [`Sample`] of it.
//! - [`Fault`]: one thing that is wrong with a frame, and the [`Reason`] for which it then passes.
//! - [`valid`], [`faulty`], [`anything`]: the strategies.
//! - [`HostFrame`]: a sample as the parser sees it. Stricter than the verifier: what was not asked for with
//!   `at` cannot be read.

mod fault;
mod frame;
mod spec;
mod strategies;

use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::{Config, RngSeed, TestRunner},
};
use wsl_mirror_core::{
    abi::Reason,
    packet::{Packet, parse},
};

pub use fault::{Fault, fault};
pub use frame::{HostFrame, Sample, TO_US};
pub use spec::{PATTERN, Spec, Transport};
pub use strategies::{CLIENT_PORTS, SERVER_PORTS, anything, faulty, mutated, valid};

/// The reasons that the parser gives: for the form of a frame alone.
pub const BY_FORM: [Reason; 9] = [
    Reason::NotIpv4,
    Reason::Vlan,
    Reason::NotToUs,
    Reason::Truncated,
    Reason::BadHeader,
    Reason::NotTcpUdp,
    Reason::NotLoopback,
    Reason::LaterFragment,
    Reason::PortZero,
];

const SEED: u64 = 0x006d_6972_726f_7265;

/// A proptest configuration that repeats itself: a fixed seed, nothing written to the source tree.
pub fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(SEED),
        max_global_rejects: cases,
        ..Config::default()
    }
}

/// As many values of a strategy, the same in every run.
pub fn samples<S: Strategy>(strategy: S, count: usize) -> impl Iterator<Item = S::Value> {
    samples_of(strategy, 0, count)
}

/// The same, others for every `series`.
pub fn samples_of<S: Strategy>(strategy: S, series: u64, count: usize) -> impl Iterator<Item = S::Value> {
    let mut runner =
        TestRunner::new(Config { rng_seed: RngSeed::Fixed(SEED.wrapping_add(series)), ..config(1) });
    (0..count).map(move |_| match strategy.new_tree(&mut runner) {
        Ok(tree) => tree.current(),
        Err(reason) => panic!("a strategy that gives nothing: {reason}"),
    })
}

/// What the program makes of a frame of which only the first `linear` bytes can be read at once: as its entry
/// point does, with `bpf_skb_pull_data` between two looks.
pub fn parse_as_the_program_does(sample: &Sample, linear: usize) -> Result<Packet, Reason> {
    match parse(&sample.frame_with_linear(linear)) {
        Err(Reason::Truncated) => parse(&sample.frame_with_linear(linear.max(frame::PULLED))),
        parsed => parsed,
    }
}
