//! Values of strategies, the same in every run.

use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::{Config, RngSeed, TestRunner},
};

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
