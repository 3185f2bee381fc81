//! Clients and servers inside a namespace, down to single frames.

pub mod checksums;
pub mod delivered;
pub mod maker;
pub mod raw;
pub mod servers;
pub mod tcp;
pub mod udp;
