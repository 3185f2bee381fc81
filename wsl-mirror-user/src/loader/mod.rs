//! The programs in the kernel: state read → plan computed → plan carried out.

pub mod apply;
pub mod attachments;
pub mod btf;
mod cgroup;
pub mod clsact;
mod flows;
mod instances;
pub mod maps;
pub mod object;
pub mod owners;
pub mod pins;
pub mod plan;
mod programs;
pub mod relocate;
pub mod state;
pub mod step;
mod tcx;
pub mod unload;
