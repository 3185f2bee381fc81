//! What the programs, the loader and the tests share: the ABI, packets and the pure verdict.
//!
//! - [`abi`]: map keys and values, verdicts and reasons, for the programs, the loader and the command line.
//! - [`packet`]: from bytes to a [`packet::Packet`], or to the reason why the frame passes.
//! - [`verdict`]: on ingress, from a packet and the kernel's answers about it to an [`abi::Reason`].
//! - [`fragments`]: the same for fragments without ports.
//! - [`egress`]: what leaves with the alias as its source.
//! - [`client`]: Linux' own clients: from a connect to a [`client::Decision`].
//! - [`kfuncs`]: the conntrack functions that the program calls, and how the loader finds the calls.
//!
//! Nothing in here touches the kernel: the program (`kernel.rs`) implements [`packet::Frame`], [`verdict::Kernel`] and
//! [`fragments::Datagrams`] over its context, the tests implement them over byte slices and a made-up world.
#![no_std]

pub mod abi;
pub mod client;
pub mod egress;
pub mod fragments;
pub mod kfuncs;
pub mod packet;
pub mod verdict;
