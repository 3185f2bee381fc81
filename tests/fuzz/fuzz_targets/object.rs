//! Kfunc relocation over a damaged object.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsl_mirror::fuzzing::damaged_object(data));
