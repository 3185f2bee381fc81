//! Network interfaces, by name and by index.

use std::os::fd::OwnedFd;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use crate::exit::{Exit, OrExit as _};

/// Longest name of an interface in bytes, with the zero at its end (`IFNAMSIZ`).
pub const NAME_MAX: usize = 16;

fn any_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

/// The index of the interface of this name, if there is one now.
pub fn index(name: &str) -> Option<u32> {
    netdevice::name_to_index(any_socket().ok()?, name).ok()
}

/// The same; that it cannot be found out is an error.
pub fn find(name: &str) -> Result<Option<u32>> {
    match any_socket().and_then(|socket| netdevice::name_to_index(socket, name)) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(error) => Err(error).or_exit(Exit::Kernel, || format!("cannot look for the interface {name}")),
    }
}

/// The name of the interface of this index, if there is one now: interfaces can be renamed, an index never
/// changes and is not used again.
pub fn name(index: u32) -> Option<String> {
    netdevice::index_to_name(any_socket().ok()?, index).ok()
}

/// The index of the interface of this name.
pub fn require_index(name: &str) -> Result<u32> {
    any_socket().and_then(|socket| netdevice::name_to_index(socket, name)).or_exit(Exit::NoInterface, || {
        let why = if name == "loopback0" {
            "WSL makes it when networkingMode=mirrored is set in .wslconfig on Windows \
             (then `wsl --shutdown`); `wslinfo --networking-mode` tells"
        } else {
            "`ip link` lists the interfaces; set `interface` in the configuration or use --interface"
        };
        format!("there is no network interface {name}: {why}")
    })
}

/// Whether an interface can have this name (`dev_valid_name`).
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < NAME_MAX
        && !matches!(name, "." | "..")
        && !name.bytes().any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "0123456789abcdef", "a\0b"] {
            assert!(!is_valid_name(name), "{name:?}");
        }
        for name in ["loopback0", "eth0.5", "0123456789abcde"] {
            assert!(is_valid_name(name), "{name:?}");
        }
    }
}
