//! The loaded program over generated frames: it counts each frame for the reason that the pure function gives on the
//! host, and leaves the frame as it is.
//!
//! Frames reach the program in three ways: by `BPF_PROG_TEST_RUN` ([`program`]), which takes 15 bytes up to what fits
//! a page; as raw frames that Windows sends; and, for headers that lie beyond the linear part of the buffer,
//! from a transmit ring ([`ring`]).

mod agreement;
mod datagrams;
mod model;
mod program;
mod ring;
mod world;
