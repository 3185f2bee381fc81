#![no_std]
//! ABI and verdict.
