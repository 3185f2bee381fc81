//! The network namespace of this process.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

use anyhow::Result;

use crate::exit::{Exit, OrExit as _};

/// Its cookie, by which the programs know the namespace (`bpf_get_netns_cookie`). Since Linux 5.14.
pub fn cookie() -> Result<u64> {
    let ask = || {
        let socket = UnixDatagram::unbound()?;
        let mut cookie = 0_u64;
        let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes into the cookie; both outlive the call.
        let done = unsafe {
            let value = (&raw mut cookie).cast();
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                value,
                &raw mut length,
            )
        };
        if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
    };
    ask().or_exit(Exit::Kernel, || "cannot ask for the network namespace's cookie (SO_NETNS_COOKIE)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_has_one_cookie() {
        let cookie = cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(cookie, super::cookie().unwrap());
    }
}
