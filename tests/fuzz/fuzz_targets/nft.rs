//! `nft -n -j list ruleset`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wsl_mirror::fuzzing::nft(data));
