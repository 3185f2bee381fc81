//! Sockets of Linux' own programs: made by a process in the lab's cgroup, where the hooks of a `load` see them, and handed to
//! the test.
//!
//! The kernel notes a socket's cgroup and network namespace when it is made. So the test itself may do the rest.

use std::{
    ffi::c_int,
    fs::File,
    io,
    net::SocketAddrV4,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{Lab, Namespace, tcp, udp};

/// `CLONE_INTO_CGROUP`, which libc gives as another type on each C library.
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// The most sockets of one [`Clients::sockets`].
const MOST: usize = 1024;

/// A place that makes client sockets: a network namespace, and a cgroup of the lab's.
#[derive(Debug)]
pub struct Clients {
    namespace: Namespace,
    group: File,
}

impl Clients {
    /// In the guest.
    pub fn new(lab: &Lab) -> Result<Self> {
        Self::in_namespace(lab, lab.guest())
    }

    /// In another network namespace.
    pub fn in_namespace(lab: &Lab, namespace: &Namespace) -> Result<Self> {
        Self::in_group(lab, namespace, "clients")
    }

    /// In this cgroup below the lab's.
    pub fn in_group(lab: &Lab, namespace: &Namespace, group: &str) -> Result<Self> {
        let path = lab.group(group)?;
        let group = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { namespace: namespace.clone(), group })
    }

    /// One socket.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket> {
        self.sockets(domain, kind, protocol, 1)?.pop().context("no socket")
    }

    /// Several at once.
    pub fn sockets(
        &self,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
        count: usize,
    ) -> Result<Vec<Socket>> {
        ensure!(count <= MOST, "at most {MOST} sockets at once");
        let (reader, writer) = io::pipe()?;
        let order = Order {
            namespace: self.namespace.netns_fd().as_raw_fd(),
            domain: domain.into(),
            kind: c_int::from(kind) | libc::SOCK_CLOEXEC,
            protocol: protocol.map_or(0, c_int::from),
            count,
            answer: writer.as_raw_fd(),
        };
        let child = clone_into(&self.group, &order)?;
        let mut status = 0;
        // SAFETY: `status` is a live integer.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        ensure!(waited == child, "waiting for the process: {}", io::Error::last_os_error());
        drop(writer);
        let mut answer = Vec::new();
        io::Read::read_to_end(&mut { reader }, &mut answer)?;
        let numbers: Vec<RawFd> = answer
            .chunks_exact(size_of::<RawFd>())
            .filter_map(|bytes| bytes.try_into().ok().map(RawFd::from_ne_bytes))
            .collect();
        // SAFETY: the child has left these descriptors in the table that it shared, to nobody else.
        let own = |number: &RawFd| unsafe { OwnedFd::from_raw_fd(*number) };
        let sockets: Vec<Socket> =
            numbers.iter().take_while(|number| **number >= 0).map(own).map(Socket::from).collect();
        if let Some(failure) = numbers.last().filter(|number| **number < 0) {
            return Err(io::Error::from_raw_os_error(-failure)).with_context(|| {
                format!("a client's socket ({domain:?}, {kind:?}) in the {}", self.namespace.name())
            });
        }
        ensure!(sockets.len() == count, "{} sockets instead of {count}", sockets.len());
        Ok(sockets)
    }

    /// A TCP socket.
    pub fn tcp(&self) -> Result<Socket> {
        self.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
    }

    /// A UDP socket, whose limit for an answer is [`udp::limit`].
    pub fn udp(&self) -> Result<Socket> {
        let socket = self.socket(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_read_timeout(Some(udp::limit()))?;
        Ok(socket)
    }

    /// A TCP connection, whose limit for each step is [`tcp::limit`].
    pub fn connect(&self, to: impl tcp::Destination) -> io::Result<std::net::TcpStream> {
        let socket = self.tcp().map_err(io::Error::other)?;
        connect(socket, to.address())
    }
}

/// Connects a TCP socket; the limit for each step is [`tcp::limit`].
pub fn connect(socket: Socket, to: SocketAddrV4) -> io::Result<std::net::TcpStream> {
    socket.connect_timeout(&SockAddr::from(to), tcp::limit())?;
    socket.set_read_timeout(Some(tcp::limit()))?;
    socket.set_write_timeout(Some(tcp::limit()))?;
    Ok(socket.into())
}

/// What the child does.
#[derive(Clone, Copy)]
struct Order {
    namespace: RawFd,
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    count: usize,
    answer: RawFd,
}

impl Order {
    /// Makes the sockets, and writes their numbers; at an error its negative number, and no more.
    ///
    /// Only system calls: the child has a copy of one thread of many.
    fn carry_out(&self) {
        // SAFETY: a descriptor and a number.
        if unsafe { libc::setns(self.namespace, libc::CLONE_NEWNET) } < 0 {
            self.say(-errno());
            return;
        }
        for _ in 0..self.count {
            // SAFETY: three numbers.
            let socket = unsafe { libc::socket(self.domain, self.kind, self.protocol) };
            self.say(if socket < 0 { -errno() } else { socket });
            if socket < 0 {
                return;
            }
        }
    }

    fn say(&self, number: c_int) {
        // SAFETY: the pointer and the length are the number's.
        let _ = unsafe { libc::write(self.answer, (&raw const number).cast(), size_of::<c_int>()) };
    }
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Starts a process in this cgroup. It shares the table of descriptors, not the memory.
fn clone_into(group: &File, order: &Order) -> io::Result<libc::pid_t> {
    let arguments: [u64; 11] = [
        u64::from(libc::CLONE_FILES.cast_unsigned()) | INTO_CGROUP,
        0,
        0,
        0,
        u64::from(libc::SIGCHLD.cast_unsigned()),
        0,
        0,
        0,
        0,
        0,
        u64::from(group.as_raw_fd().cast_unsigned()),
    ];
    // SAFETY: `struct clone_args` of Linux 5.7. The child has a copy of this thread's memory, makes only system calls, and
    // ends without returning.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match child {
        0 => {
            order.carry_out();
            // SAFETY: ends the child at once; neither destructors nor buffers are run.
            unsafe { libc::_exit(0) }
        }
        child if child > 0 => libc::pid_t::try_from(child).map_err(io::Error::other),
        _ => Err(io::Error::last_os_error()),
    }
}
