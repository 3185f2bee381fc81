//! Frames: those that no socket would send, and those that pass by.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, RawProtocol, SocketFlags, SocketType, sockopt};

use crate::{GUEST_MAC, Namespace, WINDOWS_MAC};

/// A packet socket on one interface: sends whole Ethernet frames, and sees all that come and go there.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    interface: String,
}

/// An IPv4 packet, well-formed or not, in a frame as Windows sends it to `loopback0`.
pub fn frame_from_windows(packet: &[u8]) -> Vec<u8> {
    [GUEST_MAC.as_slice(), &WINDOWS_MAC, &[0x08, 0x00], packet].concat()
}

/// A frame that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whether the interface sent it; else it received it.
    pub outgoing: bool,
    /// From the destination address on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Its IPv4 packet, if it is one.
    pub fn ipv4(&self) -> Option<&[u8]> {
        let (ethernet, packet) = self.bytes.split_at_checked(14)?;
        (ethernet[12..] == [0x08, 0x00]).then_some(packet)
    }

    /// Protocol number, source port and destination port, if it is the first fragment of TCP or UDP on IPv4.
    pub fn ports(&self) -> Option<(u8, u16, u16)> {
        let packet = self.ipv4()?;
        let protocol = *packet.get(9)?;
        let fragment_offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
        if fragment_offset != 0 || (protocol != 6 && protocol != 17) {
            return None;
        }
        let ports = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
        let port = |at: usize| Some(u16::from_be_bytes([*ports.get(at)?, *ports.get(at + 1)?]));
        Some((protocol, port(0)?, port(2)?))
    }
}

impl RawSocket {
    /// Opens it; from now on frames are kept until they are read.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::open_for(namespace, interface, ETH_P_ALL)
    }

    /// Opens it to send alone: no frame is copied for it.
    pub fn sender(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::open_for(namespace, interface, 0)
    }

    fn open_for(namespace: &Namespace, interface: &str, protocol: u16) -> Result<Self> {
        let open = || -> Result<OwnedFd> {
            // /sys of the machine, or of the guest, may show another namespace; /proc/net never does.
            let index = interface_index(interface)?;
            // Protocol 0 receives nothing: so nothing of other interfaces comes in before the bind.
            let socket = rustix::net::socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                RawProtocol::new(0).map(rustix::net::Protocol::from_raw),
            )
            .context("opening a packet socket")?;
            // A burst of frames must not be lost before it is read. The plain option is limited by rmem_max.
            let _ = sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20);
            bind(&socket, index, protocol).context("binding the packet socket")?;
            Ok(socket)
        };
        let socket =
            namespace.enter(open).with_context(|| format!("on {interface} of the {}", namespace.name()))?;
        Ok(Self { socket, interface: interface.to_owned() })
    }

    /// Sends a frame, from the destination address on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = rustix::net::send(&self.socket, frame, rustix::net::SendFlags::empty())
            .with_context(|| format!("sending {} bytes on {}", frame.len(), self.interface))?;
        anyhow::ensure!(sent == frame.len(), "only {sent} of {} bytes went out", frame.len());
        Ok(())
    }

    /// The next frame, or none within `limit`.
    pub fn receive(&self, limit: Duration) -> Result<Option<Frame>> {
        // A timeout lasts at least one tick of the kernel's clock. A limit of zero needs MSG_DONTWAIT.
        let flags = if limit.is_zero() {
            libc::MSG_DONTWAIT
        } else {
            let limit = limit.max(Duration::from_micros(1));
            sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(limit))?;
            0
        };
        match receive(&self.socket, flags) {
            Ok(frame) => Ok(Some(frame)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("receiving on {}", self.interface)),
        }
    }

    /// All frames that have come and still come within `limit`, as far as `wanted` says so.
    pub fn collect(&self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Vec<Frame>> {
        let deadline = Instant::now() + limit;
        let mut frames = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(frame) if wanted(&frame) => frames.push(frame),
                None if left.is_zero() => return Ok(frames),
                Some(_) | None => {}
            }
        }
    }
}

// libc has them as wider integers than the kernel's structures do.
const AF_PACKET: u16 = 17;
const ETH_P_ALL: u16 = 3;
const ADDRESS_LENGTH: libc::socklen_t = 20;
const _: () = assert!(
    AF_PACKET as i32 == libc::AF_PACKET
        && ETH_P_ALL as i32 == libc::ETH_P_ALL
        && ADDRESS_LENGTH as usize == size_of::<libc::sockaddr_ll>()
);

/// The index of an interface of the calling thread's namespace.
pub(crate) fn interface_index(interface: &str) -> Result<i32> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: `name` is a C string and lives until the call is over.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error()).context("no such interface");
    }
    Ok(index.cast_signed())
}

fn bind(socket: &OwnedFd, index: i32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: AF_PACKET,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a sockaddr_ll, and the length is its.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// recvfrom(2): only its address tells which way a frame went.
fn receive(socket: &OwnedFd, flags: i32) -> io::Result<Frame> {
    let mut bytes = vec![0; 65_536 + 14];
    // SAFETY: sockaddr_ll is a plain struct of integers, for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = ADDRESS_LENGTH;
    // SAFETY: buffer and address are live and as long as the lengths next to them say.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            flags,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    bytes.truncate(received);
    Ok(Frame { outgoing: address.sll_pkttype == libc::PACKET_OUTGOING, bytes })
}
