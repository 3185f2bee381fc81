//! Who makes a client's socket, where it is not the test's own process.

use std::{fmt, sync::Arc};

use anyhow::Result;
use socket2::Socket;

/// Makes the sockets of a client. The kernel notes a socket's cgroup when it is made.
#[derive(Clone)]
pub struct Maker(Arc<dyn Fn() -> Result<Socket> + Send + Sync>);

impl Maker {
    /// Of sockets in the client's network namespace.
    pub fn new(make: impl Fn() -> Result<Socket> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    pub(super) fn make(&self) -> Result<Socket> {
        (self.0)()
    }
}

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maker")
    }
}
