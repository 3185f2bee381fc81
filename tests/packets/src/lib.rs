//! Frames for tests, from good to garbage, and worlds for the verdict.
//!
//! The host's tests of [`wsl_mirror_core`] use the same frames as the tests that send them through the program in the
//! kernel.
//!
//! - [`Spec`]: a frame, field by field; [`Spec::build`] makes a [`Sample`] of it.
//! - [`HostFrame`]: a sample as the parser sees it. Stricter than the verifier: reading bytes that the parser did not
//!   check with `at` is a panic.
//! - [`checksum`]: checksums, and a frame with another address.
//! - [`worlds`]: the kernel's answers to the verdict.
//! - With the feature `generated`, which needs proptest: strategies ([`valid`], [`faulty`], [`anything`]), and
//!   [`Fault`], one thing that is wrong with a frame and the [`Reason`] for which the frame then passes. All strategies
//!   are seeded: each run sees the same frames.

pub mod checksum;
#[cfg(feature = "generated")]
mod fault;
mod frame;
#[cfg(feature = "generated")]
mod samples;
mod spec;
#[cfg(feature = "generated")]
mod strategies;
pub mod worlds;

use wsl_mirror_core::{
    abi::Reason,
    egress::{self, Outgoing},
    packet::{Packet, parse},
};

#[cfg(feature = "generated")]
pub use fault::{Fault, fault};
pub use frame::{HostFrame, Sample, TO_US};
#[cfg(feature = "generated")]
pub use samples::{config, samples, samples_of};
pub use spec::{PATTERN, Spec, Transport};
#[cfg(feature = "generated")]
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

/// What the program on ingress makes of a frame of which only the first `linear` bytes can be read at once: as its entry
/// point does, with `bpf_skb_pull_data` between two looks.
pub fn parse_as_the_program_does(sample: &Sample, linear: usize) -> Result<Packet, Reason> {
    match parse(&sample.frame_with_linear(linear)) {
        Err(Reason::Truncated) => parse(&sample.frame_with_linear(linear.max(frame::PULLED))),
        parsed => parsed,
    }
}

/// The same on egress: the program pulls in what it reads, and looks once.
pub fn parse_outgoing_as_the_program_does(
    sample: &Sample,
    linear: usize,
    alias: [u8; 4],
    source_alias: [u8; 4],
) -> Option<Outgoing> {
    egress::parse(&sample.frame_with_linear(linear.max(frame::PULLED_ON_EGRESS)), alias, source_alias)
}
