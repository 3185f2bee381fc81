//! `/etc/wsl.conf`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsl_mirror::fuzzing::wsl_conf(data));
