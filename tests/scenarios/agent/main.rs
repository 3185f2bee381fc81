//! `wsl-mirror run`: whatever changes under it, what should be steered is steered.
//!
//! Windows' packets to any port from 8000 to 8999 are caught by an engine's rule, without an engine ([`guest::trap`]): so
//! a port that docker-proxy serves answers exactly if it is steered.

mod clients;
mod configuration;
mod containers;
mod distributions;
mod following;
mod guest;
mod keep_on_lo;
mod life;
mod measured;
mod source_alias;
mod targets;
