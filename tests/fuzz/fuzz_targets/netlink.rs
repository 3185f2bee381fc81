//! Answers of rtnetlink.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsl_mirror::fuzzing::netlink(data));
