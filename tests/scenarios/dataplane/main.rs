//! What the program does to traffic: real programs, real Docker, in the lab. Most tests first see the trouble
//! without wsl-mirror, then that it is gone with it.

mod by_lo;
mod caught;
mod engines;
mod exemptions;
mod failures;
mod firewall;
mod flush;
mod mark;
mod reuse;
mod sizes;
mod steering;
mod untouched;
mod world;
