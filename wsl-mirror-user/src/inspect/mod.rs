//! What the machine looks like, read once.

pub mod snapshot;
