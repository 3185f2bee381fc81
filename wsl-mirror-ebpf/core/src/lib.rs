//! What the tc program and user space share, and what the program decides.
//!
//! - [`abi`]: map keys and values, verdicts and reasons: defined here once, used by the program, the loader,
//!   the command line and the documentation.
//! - [`packet`]: from bytes to a [`packet::Packet`], or the reason why it is none of ours.
//! - [`verdict`]: from a packet and what the kernel knows about it to a [`abi::Reason`].
//! - [`fragments`]: the same for what has no ports, from what became of the one that has them.
//! - [`kfuncs`]: the conntrack functions that the program calls and how the loader finds the calls.
//!
//! Nothing in here touches the kernel: the program (`main.rs`) implements [`packet::Frame`], [`verdict::Kernel`] and
//! [`fragments::Datagrams`] over its context, the tests implement them over byte slices and a made-up world.
#![no_std]

pub mod abi;
pub mod fragments;
pub mod kfuncs;
pub mod packet;
pub mod verdict;
