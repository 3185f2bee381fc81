//! A real dockerd in the guest, and containers that serve.

mod container;
mod daemon;

pub use container::{Container, Running};
pub use daemon::{Docker, DockerOptions};
