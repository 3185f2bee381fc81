//! What the machine looks like, read once.

pub mod listeners;
pub mod snapshot;
