//! A real dockerd in the guest, and containers that serve.

mod container;
mod daemon;
mod image;

pub use container::{Container, Running, Service};
pub use daemon::{Docker, DockerOptions};
