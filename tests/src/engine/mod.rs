//! What engines have in common: a PID namespace of their own, another Linux' files, an image, what is served.

pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod root;
mod service;

pub use service::Service;

/// Not the caller's: there may be another containerd, runc, docker-proxy or crun in it.
pub(crate) const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
