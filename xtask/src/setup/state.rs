//! What the machine has, as far as the plan depends on it.

use std::{env, fs, os::unix::fs::MetadataExt as _};

use wsl_mirror_toolchain::{CARGO_OVERRIDE, LINKER_OVERRIDE, Missing, Toolchain};

use super::{
    apt::{Apt, Lists},
    llvm::{LINKER_LLVMS, has_llvm_dev},
    machine::Machine,
    needs::{Needs, Tool},
    programs::{has, program},
};

/// What was read; a value, so that a test can make one up.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) toolchain: Result<Toolchain, Missing>,
    /// Those that were asked for.
    pub(super) missing_tools: Vec<Tool>,
    pub(super) root: bool,
    /// `None` without apt, and when nothing is missing: asking it takes longer than all the rest.
    pub(super) apt: Option<Apt>,
    /// rustup, as rustup.rs installs it.
    pub(super) rustup: bool,
    pub(super) binstall: bool,
    /// LLVMs that bpf-linker could be linked with.
    pub(super) llvm_dev: Vec<u32>,
    /// The variables by which the user chose a toolchain.
    pub(super) overrides: Vec<&'static str>,
}

impl State {
    pub(super) fn read(machine: &Machine, needs: Needs, lists: Lists) -> Self {
        let toolchain = wsl_mirror_toolchain::find();
        let missing_tools: Vec<Tool> = needs.tools().filter(|tool| !has(machine, *tool)).collect();
        let complete = toolchain.is_ok() && missing_tools.is_empty();
        let apt = if complete { None } else { Apt::read(machine, &toolchain, &missing_tools, lists) };
        Self {
            toolchain,
            missing_tools,
            // The owner of our own entry is our effective user.
            root: fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0),
            apt,
            rustup: program("rustup").is_some(),
            binstall: program("cargo-binstall").is_some(),
            llvm_dev: LINKER_LLVMS.filter(|llvm| has_llvm_dev(*llvm)).collect(),
            overrides: [CARGO_OVERRIDE, LINKER_OVERRIDE]
                .into_iter()
                .filter(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
                .collect(),
        }
    }
}
