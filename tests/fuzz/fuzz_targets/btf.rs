//! The kernel's BTF.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsl_mirror::fuzzing::btf(data));
