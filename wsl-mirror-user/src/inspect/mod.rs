//! What the machine looks like, read once.

pub mod keeping;
pub mod listeners;
pub mod snapshot;
