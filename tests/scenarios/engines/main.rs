//! The matrix: real engines of several releases, each in every way in which it meets mirrored mode, with clients on
//! Windows and in Linux: without wsl-mirror, with it, and after it was unloaded. `promises` says what has to hold.
//!
//! Engines are other Debian releases' packages in folders, which `cargo xtask test` makes (`installed`); where one is
//! missing, its tests say so and judge nothing. What was measured goes to the folder that `results` names, from which
//! `cargo xtask test engines --all --write` makes docs/engines.md.
//!
//! Besides: `orders` in which engines, firewalls and wsl-mirror may come and go, and what that does to a crowd of
//! `short_connections`.

mod cells;
mod configuration;
mod installed;
mod known;
mod matrix;
mod measure;
mod orders;
mod promises;
mod results;
mod short_connections;
mod world;
