//! The programs in the kernel: state read → plan computed → plan carried out.

pub mod apply;
pub mod attachments;
pub mod btf;
mod cgroup;
pub mod clsact;
mod flows;
pub mod instances;
pub mod listeners;
pub mod local_addresses;
pub mod local_rules;
pub mod look;
pub mod maps;
mod noted;
pub mod object;
pub mod pins;
pub mod plan;
mod programs;
pub mod relocate;
pub mod source_alias;
pub mod state;
pub mod step;
pub mod stop_keeping;
pub mod targets;
mod tcx;
pub mod udp_hooks;
pub mod unload;
