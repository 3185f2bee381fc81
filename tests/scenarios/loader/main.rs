//! The loader against a real kernel: what its commands make, leave alone, refuse and repair.

mod bpf;
mod bpftool;
mod carrying;
mod clients;
mod cls_bpf;
mod ending;
mod faults;
mod guest;
mod loading;
mod lock;
mod output;
mod packages;
mod policies;
mod refusals;
mod regressions;
mod source_alias;
mod upgrade;
