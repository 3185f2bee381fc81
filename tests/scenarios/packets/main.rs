//! The loaded programs over generated frames: they count each frame for the reason that the pure functions give on the
//! host, and change the bytes of what they carry alone.
//!
//! Frames reach the programs in three ways: by `BPF_PROG_TEST_RUN` ([`program`]), which takes 15 bytes up to what fits
//! a page; as raw frames that Windows sends; and, for headers that lie beyond the linear part of the buffer,
//! from a transmit ring ([`ring`]).

mod agreement;
mod datagrams;
mod model;
mod program;
mod ring;
mod world;
