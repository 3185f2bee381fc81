//! The program in the kernel: state read → plan computed → plan carried out.

pub mod apply;
pub mod btf;
pub mod delivery;
pub mod hook;
pub mod maps;
pub mod marks;
pub mod object;
pub mod owners;
pub mod pins;
pub mod plan;
pub mod relocate;
pub mod state;
pub mod unload;
