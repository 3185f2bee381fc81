//! A published port without an engine, and who answers on it.

pub mod machine;
pub mod who;
