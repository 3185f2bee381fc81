//! Finds the toolchain that can build for `bpfel-unknown-none`.
