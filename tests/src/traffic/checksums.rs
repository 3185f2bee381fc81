//! Checksums: made for frames, and checked in packets by a receiver that trusts no NIC.

use std::{
    io,
    net::SocketAddrV4,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Namespace;

/// The transport checksum of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// It is right.
    Full,
    /// The NIC is to complete it (`CHECKSUM_PARTIAL`): it covers the pseudo header alone, and that rightly.
    PseudoHeader,
    /// UDP's 0: the sender made none.
    Absent,
    /// A fragment: only the datagram has one.
    Fragment,
    /// It is wrong, or the IP header's is.
    Wrong,
}

/// The internet checksum of these bytes and of what was summed up before.
pub fn checksum(bytes: &[u8], before: u32) -> u16 {
    !folded(bytes, before)
}

/// The sum of an IPv4 pseudo header's words.
pub fn pseudo_header(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> u32 {
    let words = [source, destination].concat();
    u32::from(folded(&words, u32::from(protocol) + u32::from(length)))
}

fn folded(bytes: &[u8], before: u32) -> u16 {
    let mut sum = before;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        // Folded here: the sum of a super-packet would not fit.
        sum = (sum & 0xffff) + (sum >> 16);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Checks an IPv4 packet of TCP or UDP. None: it is something else, or cut off.
pub fn check(packet: &[u8]) -> Option<Sum> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let protocol = *packet.get(9)?;
    let field = match protocol {
        6 => 16,
        17 => 6,
        _ => return None,
    };
    if folded(packet.get(..header)?, 0) != 0xffff {
        return Some(Sum::Wrong);
    }
    if word(6)? & 0x3fff != 0 {
        return Some(Sum::Fragment);
    }
    // Longer than the field can say: BIG TCP.
    let total = match usize::from(word(2)?) {
        0 => packet.len(),
        total => total,
    };
    let transport = packet.get(header..total)?;
    let found = word(header + field)?;
    if protocol == 17 && found == 0 {
        return Some(Sum::Absent);
    }
    let [source, destination] =
        [12, 16].map(|at| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let pseudo = pseudo_header(source, destination, protocol, u16::try_from(transport.len()).ok()?);
    Some(if folded(transport, pseudo) == 0xffff {
        Sum::Full
    } else if u32::from(found) == pseudo {
        Sum::PseudoHeader
    } else {
        Sum::Wrong
    })
}

/// A raw IP socket: sees what the stack delivers on this machine, with its IPv4 header, after NAT.
#[derive(Debug)]
pub struct Delivered(Socket);

impl Delivered {
    /// Opens it for one protocol; from now on packets are kept until they are read.
    pub fn open(namespace: &Namespace, protocol: Protocol) -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?;
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20);
            Ok(socket)
        };
        let socket = namespace
            .enter(open)
            .with_context(|| format!("opening a raw socket in the {}", namespace.name()))?;
        Ok(Self(socket))
    }

    /// The IPv4 packets to this port that have come and still come within `limit`.
    pub fn to_port(&self, port: u16, limit: Duration) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut packets = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.0.set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
            let length = match rustix::net::recv(&self.0, &mut buffer[..], rustix::net::RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if left.is_zero() => {
                    return Ok(packets);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error).context("receiving on a raw socket"),
            };
            let packet = &buffer[..length];
            let header = usize::from(packet.first().context("an empty packet")? & 0xf) * 4;
            if packet.get(header + 2..header + 4) == Some(&port.to_be_bytes()) {
                packets.push(packet.to_vec());
            }
        }
    }
}

/// Has the stack compute the checksums of what the interface sends, before it sends it (`ethtool -K … tx off`). Segments
/// of super-packets are made there too.
pub fn compute_in_software(namespace: &Namespace, interface: &str) -> Result<()> {
    // include/uapi/linux/ethtool.h, sockios.h
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        value: *mut Value,
        rest: [u64; 2],
    }
    let switch = || -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        let mut name = [0; libc::IFNAMSIZ];
        name[..interface.len()].copy_from_slice(interface.as_bytes());
        let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
        let mut request = Request { name, value: &raw mut value, rest: [0; 2] };
        // SAFETY: the request has the size and layout of `struct ifreq`, and its pointer leads to a live value of the
        // form that this command wants.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    namespace.enter(switch).with_context(|| format!("switching off checksums of {interface}'s hardware"))
}

/// A UDP socket that sends without a checksum, or with these IPv4 options.
pub fn udp_socket(
    namespace: &Namespace,
    at: SocketAddrV4,
    options: &[u8],
    checksum: bool,
) -> Result<std::net::UdpSocket> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        if !checksum {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, &1_i32.to_ne_bytes())?;
        }
        set_ip_options(&socket, options)?;
        socket.bind(&at.into())?;
        Ok(socket)
    };
    Ok(namespace.enter(open).with_context(|| format!("binding {at} in the {}", namespace.name()))?.into())
}

/// Sets IPv4 options on all that the socket sends.
pub fn set_ip_options(socket: &impl std::os::fd::AsRawFd, options: &[u8]) -> io::Result<()> {
    if options.is_empty() { Ok(()) } else { set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, options) }
}

fn set_option(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the value is live and as long as the length next to it says.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::{Sum, check, checksum, pseudo_header};

    /// A UDP datagram of "hi" from 127.0.0.1:1 to 127.0.0.1:2.
    fn packet() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 30, 0, 1, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
        let sum = checksum(&packet, 0).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend([0, 1, 0, 2, 0, 10, 0, 0, b'h', b'i']);
        packet
    }

    #[test]
    fn a_receiver_tells_right_sums_from_wrong_ones() {
        let mut packet = packet();
        assert_eq!(check(&packet), Some(Sum::Absent));
        let pseudo = pseudo_header([127, 0, 0, 1], [127, 0, 0, 1], 17, 10);
        packet[26..28].copy_from_slice(&u16::try_from(pseudo).unwrap().to_be_bytes());
        assert_eq!(check(&packet), Some(Sum::PseudoHeader));
        packet[26..28].fill(0);
        let full = checksum(&packet[20..], pseudo).to_be_bytes();
        packet[26..28].copy_from_slice(&full);
        assert_eq!(check(&packet), Some(Sum::Full));
        packet[29] ^= 1;
        assert_eq!(check(&packet), Some(Sum::Wrong));
        packet[29] ^= 1;
        packet[8] -= 1;
        assert_eq!(check(&packet), Some(Sum::Wrong), "the IP header's");
    }
}
