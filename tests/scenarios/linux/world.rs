//! The machine with its published port, and sockets of Linux' own programs.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use rustix::{
    io::IoSliceMut,
    net::{RecvAncillaryBuffer, RecvFlags, recvmsg},
};
use socket2::{SockAddr, Socket};
use wsl_mirror_core::abi::{Service, Target};
use wsl_mirror_lab::{
    Lab, LabBuilder, Sockets,
    checks::OrPanic as _,
    clients::Clients,
    lab_sockets, loopback,
    published::{
        machine::{FIRST, IN_CONTAINER, Machine, PORT},
        who::{Who, who_over},
    },
    servers::{self, Server},
    services::{TcpService, WHO},
    sockets::{PROXY, proxy_arguments},
    targets, tcp,
};

/// A UDP port that a docker-proxy of the test publishes, so that a `load` attaches the hooks of datagrams.
const OTHER_UDP: u16 = 8099;

/// How long is waited for what shall not come; an answer takes a thousandth of it.
pub const HANG: Duration = Duration::from_millis(400);

/// The machine, and its clients.
pub struct World {
    pub machine: Machine,
    pub clients: Clients,
    _docker_proxy: Sockets,
}

impl World {
    /// One whose published port a process of this kind holds. Nothing is loaded.
    #[track_caller]
    pub fn new(service: Service) -> Self {
        Self::in_lab(Lab::builder(), service)
    }

    /// The same in another lab.
    #[track_caller]
    pub fn in_lab(lab: LabBuilder, service: Service) -> Self {
        let machine = Machine::in_lab(lab, service);
        let container = (machine.target(FIRST).address.into(), IN_CONTAINER);
        let guest = |program: &str| machine.lab.guest().command(program);
        let arguments = proxy_arguments("udp", OTHER_UDP, container);
        let mut docker_proxy = lab_sockets!(&machine.lab, command guest, PROXY, arguments);
        docker_proxy.tell(&format!("bind other udp 0.0.0.0:{OTHER_UDP}")).or_panic();
        let clients = Clients::new(&machine.lab).or_panic();
        Self { machine, clients, _docker_proxy: docker_proxy }
    }

    /// The same, loaded with an empty configuration, the first container its target.
    #[track_caller]
    pub fn loaded(service: Service) -> Self {
        let world = Self::new(service);
        world.load();
        world
    }

    /// Loads with an empty configuration. The first container is the target.
    #[track_caller]
    pub fn load(&self) {
        self.machine.load("");
    }

    pub fn lab(&self) -> &Lab {
        &self.machine.lab
    }

    /// Publishes another UDP port of the first container, by a stand-in for docker-proxy. A named service answers there.
    #[track_caller]
    pub fn publish_udp(&self, port: u16, in_container: u16, number: u64) -> [Server; 2] {
        let at = (Ipv4Addr::UNSPECIFIED, in_container);
        let service = servers::udp(self.machine.container(), at, Some(number)).or_panic();
        [service, self.publish_udp_again(port, in_container)]
    }

    /// Publishes one more UDP port of a service in the first container.
    #[track_caller]
    pub fn publish_udp_again(&self, port: u16, in_container: u16) -> Server {
        let at = (Ipv4Addr::UNSPECIFIED, port);
        let proxy = servers::udp(self.lab().guest(), at, Some(PROXY_NUMBER)).or_panic();
        let target = Target { port: in_container, ..self.machine.target(FIRST) };
        targets::write(self.lab().guest(), &proxy, target).or_panic();
        proxy
    }

    /// Who answers on this TCP port of 127.0.0.1.
    pub fn who(&self, port: u16) -> Result<Who, tcp::Failure> {
        self.who_at(loopback(port))
    }

    /// Who answers there.
    pub fn who_at(&self, to: impl tcp::Destination) -> Result<Who, tcp::Failure> {
        who_at(&self.clients, to)
    }
}

/// That the first container answers over this connection, and that the program is shown this address.
#[track_caller]
pub fn assert_container_over(stream: &mut TcpStream, named: SocketAddr) {
    assert_eq!(stream.peer_addr().or_panic(), named, "getpeername");
    assert_from_first(who_over(stream));
}

/// The number by which a stand-in for docker-proxy says who it is.
const PROXY_NUMBER: u64 = wsl_mirror_lab::published::machine::PROXY;

/// Who answers this client there.
pub fn who_at(clients: &Clients, to: impl tcp::Destination) -> Result<Who, tcp::Failure> {
    let mut stream = clients.connect(to).map_err(|error| failure(&error))?;
    who_over(&mut stream)
}

fn failure(error: &io::Error) -> tcp::Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => tcp::Failure::ConnectTimedOut,
        io::ErrorKind::ConnectionRefused => tcp::Failure::Refused,
        io::ErrorKind::ConnectionReset => tcp::Failure::Reset,
        _ => tcp::Failure::Other(error.to_string()),
    }
}

/// That the first container has answered a Linux client.
#[track_caller]
pub fn assert_from_first<E: std::fmt::Debug>(who: Result<Who, E>) {
    let who = who.unwrap_or_else(|error| panic!("the container was to answer: {error:?}"));
    assert!(Machine::is_from(FIRST, &who), "the container was to answer: {who:?}");
}

/// That the stand-in for docker-proxy has answered: the client was not translated.
#[track_caller]
pub fn assert_from_proxy<E: std::fmt::Debug>(who: Result<Who, E>, when: &str) {
    let who = who.unwrap_or_else(|error| panic!("{when}: the proxy was to answer: {error:?}"));
    assert_eq!(who.number, PROXY_NUMBER, "{when}: the proxy was to answer");
}

/// The published port of 127.0.0.1.
pub fn published() -> SocketAddr {
    loopback(PORT).into()
}

/// A named TCP service in the guest.
#[track_caller]
pub fn linux_program(lab: &Lab, address: impl tcp::Destination, number: u64) -> Server {
    servers::tcp(lab.guest(), address, TcpService::Named { number }).or_panic()
}

/// Asks by a datagram to this address; gives who answered, and under which name recvfrom(2) shows the answer.
pub fn ask(socket: &Socket, to: SocketAddr) -> io::Result<(Who, SocketAddr)> {
    socket.send_to(WHO, &SockAddr::from(to))?;
    receive(socket)
}

/// The next answer, and its name by recvfrom(2).
pub fn receive(socket: &Socket) -> io::Result<(Who, SocketAddr)> {
    let mut answer = Vec::with_capacity(256);
    let (length, from) = socket.recv_from(answer.spare_capacity_mut())?;
    // SAFETY: the kernel has written so many bytes.
    unsafe { answer.set_len(length) };
    named(&answer, from.as_socket())
}

/// The next answer, and its name by recvmsg(2).
pub fn receive_message(socket: &Socket) -> io::Result<(Who, SocketAddr)> {
    let mut answer = [0; 256];
    let mut control = RecvAncillaryBuffer::default();
    let message = {
        let mut parts = [IoSliceMut::new(&mut answer)];
        recvmsg(socket, &mut parts, &mut control, RecvFlags::empty())?
    };
    let from = message.address.map(SocketAddr::try_from).transpose()?;
    named(&answer[..message.bytes], from)
}

fn named(answer: &[u8], from: Option<SocketAddr>) -> io::Result<(Who, SocketAddr)> {
    let who = Who::read(answer).ok_or_else(|| io::Error::other(format!("no name: {answer:?}")))?;
    Ok((who, from.ok_or_else(|| io::Error::other("an answer without an address"))?))
}
