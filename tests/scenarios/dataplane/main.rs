//! What the programs do to traffic: real clients, real Docker, in the lab. Most tests first see the trouble without
//! wsl-mirror, then that it is gone with it.

mod attack;
mod border;
mod carrying;
mod caught;
mod checksums;
mod closed;
mod direct;
mod engines;
mod entries;
mod exemptions;
mod failures;
mod firewall;
mod flush;
mod fragments;
mod leaks;
mod mark;
mod one_entry;
mod reloads;
mod reuse;
mod sizes;
mod steering;
mod udp_flows;
mod untouched;
mod world;
