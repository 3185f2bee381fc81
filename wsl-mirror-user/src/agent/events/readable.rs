//! Descriptors that tokio waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Has tokio wait until this descriptor can be read.
pub fn readable(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor stays open and the same for as long as it is in there.
    Ok(unsafe { AsyncFd::register_with_interest(file, tokio::io::Interest::READABLE) }?)
}
