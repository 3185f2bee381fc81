//! Linux' own clients of published ports: connected straight to the container, and shown the address that they named.
//!
//! The table of outcomes in docs/linux-clients.md is made of these tests. Most first see what happens without wsl-mirror.

mod alone;
mod bounds;
mod confined;
mod connecting;
mod containers;
mod datagrams;
mod families;
mod lan;
mod rules;
mod several;
mod uring;
mod world;
