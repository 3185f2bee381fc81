//! The LLVMs that bpf-linker can be linked with.

use std::{ops::RangeInclusive, path::Path};

/// The LLVMs that our release of bpf-linker can be linked with; each is a feature of its crate.
pub(super) const LINKER_LLVMS: RangeInclusive<u32> = 21..=23;

/// The package that has the headers and libraries of an LLVM.
pub(super) fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

/// Where apt.llvm.org and Debian put an LLVM; the library's link comes with the -dev package.
pub(super) fn has_llvm_dev(llvm: u32) -> bool {
    Path::new(&format!("/usr/lib/llvm-{llvm}/lib/libLLVM.so")).exists()
}
