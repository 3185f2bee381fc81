//! Being started at boot, and what is read before: `install`, `uninstall`, `mode`, `config check`, and the unit.

mod boot;
mod configuration;
mod machine;
mod sandbox;
mod unit;
