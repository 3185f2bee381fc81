//! The loader against a real kernel: what its commands make, leave alone, refuse and repair.

mod bpf;
mod bpftool;
mod cls_bpf;
mod delivery;
mod faults;
mod guest;
mod loading;
mod lock;
mod output;
mod packages;
mod refusals;
mod regressions;
mod upgrade;
