//! TCP clients that tell apart what people mean by "it does not work".

use std::{
    fmt,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::maker::Maker;
use crate::{Namespace, pace, services::Pattern};

/// Long enough that a retransmission (the first is due after a second) fits in, a thousand times what an
/// answer takes: whatever has not happened by then hangs.
pub fn limit() -> Duration {
    pace::limit(Duration::from_millis(1500))
}

/// Until a port can be had again that lingers in `TIME_WAIT` on the client's side.
const PORT_LIMIT: Duration = Duration::from_millis(2200);

/// How a connection, or an exchange over it, failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer to the SYN.
    ConnectTimedOut,
    /// A reset in answer to the SYN: nobody listens.
    Refused,
    /// A reset later on.
    Reset,
    /// Connected, but for the time limit nothing came (or nothing more could be sent).
    Stalled {
        /// How many bytes had come.
        received: u64,
    },
    /// The other side closed too early.
    ClosedEarly {
        /// How many bytes had come.
        received: u64,
    },
    /// Something else came than was due.
    Corrupt {
        /// The position of the first wrong byte.
        offset: u64,
    },
    /// Whatever else the kernel said.
    Other(String),
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectTimedOut => write!(f, "no answer to the SYN"),
            Self::Refused => write!(f, "connection refused"),
            Self::Reset => write!(f, "connection reset"),
            Self::Stalled { received } => write!(f, "nothing more after {received} bytes"),
            Self::ClosedEarly { received } => write!(f, "closed by the other side after {received} bytes"),
            Self::Corrupt { offset } => write!(f, "wrong content at byte {offset}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl Failure {
    fn on_connect(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::ConnectTimedOut,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset => Self::Reset,
            _ => Self::Other(format!("connect: {error}")),
        }
    }

    fn later(error: &io::Error, received: u64) -> Self {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Stalled { received },
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Where to connect: `"127.0.0.1:8080"`, `(address, port)` or a `SocketAddrV4`.
pub trait Destination {
    /// The address.
    fn address(self) -> SocketAddrV4;
}

impl Destination for SocketAddrV4 {
    fn address(self) -> SocketAddrV4 {
        self
    }
}

impl Destination for (Ipv4Addr, u16) {
    fn address(self) -> SocketAddrV4 {
        SocketAddrV4::new(self.0, self.1)
    }
}

impl Destination for &str {
    fn address(self) -> SocketAddrV4 {
        self.parse().unwrap_or_else(|_| panic!("'{self}' is not an IPv4 address with a port"))
    }
}

/// A client that is about to connect. Each method that exchanges something opens its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    namespace: Namespace,
    to: SocketAddrV4,
    from: Option<SocketAddrV4>,
    limit: Duration,
    reset_on_close: bool,
    maker: Option<Maker>,
}

impl Client {
    /// A client in `namespace`.
    pub fn new(namespace: &Namespace, to: impl Destination) -> Self {
        Self {
            namespace: namespace.clone(),
            to: to.address(),
            from: None,
            limit: limit(),
            reset_on_close: false,
            maker: None,
        }
    }

    /// Has somebody else make the sockets.
    #[must_use]
    pub fn made_by(mut self, maker: Maker) -> Self {
        self.maker = Some(maker);
        self
    }

    /// From this port of 127.0.0.1, even if it was in use a moment ago (`SO_REUSEADDR`).
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        self.from((Ipv4Addr::LOCALHOST, port))
    }

    /// From this address and port.
    #[must_use]
    pub fn from(mut self, from: impl Destination) -> Self {
        self.from = Some(from.address());
        self
    }

    /// How long each step may take: the handshake, and every wait for progress after it.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Closes with a reset (`SO_LINGER` 0): no `TIME_WAIT`, so the port is free at once.
    #[must_use]
    pub fn reset_on_close(mut self) -> Self {
        self.reset_on_close = true;
        self
    }

    /// Connects.
    ///
    /// From a port that was in use a moment ago it may take a second: the kernel takes it out of `TIME_WAIT` when the
    /// clock of its seconds has moved on (`tcp_twsk_unique()`), and until then it sends nothing.
    pub fn connect(&self) -> Result<TcpStream, Failure> {
        let to = SockAddr::from(SocketAddr::V4(self.to));
        let deadline = Instant::now() + PORT_LIMIT;
        let socket = loop {
            let socket = self.open()?;
            match socket.connect_timeout(&to, self.limit) {
                Ok(()) => break socket,
                Err(error)
                    if self.from.is_some()
                        && error.kind() == ErrorKind::AddrNotAvailable
                        && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(Failure::on_connect(&error)),
            }
        };
        self.set_up(socket)
    }

    fn open(&self) -> Result<Socket, Failure> {
        let make = || -> Result<Socket> {
            let socket = match &self.maker {
                Some(maker) => maker.make()?,
                None => {
                    self.namespace.enter(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))?
                }
            };
            self.bind(&socket)?;
            Ok(socket)
        };
        make().map_err(|error| Failure::Other(format!("{error:#}")))
    }

    fn set_up(&self, socket: Socket) -> Result<TcpStream, Failure> {
        let stream = TcpStream::from(socket);
        let set_up = || {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.limit))?;
            stream.set_write_timeout(Some(self.limit))
        };
        set_up().map_err(|error| Failure::Other(error.to_string()))?;
        Ok(stream)
    }

    /// A socket stays in its network namespace wherever it is bound from.
    fn bind(&self, socket: &Socket) -> io::Result<()> {
        if let Some(from) = self.from {
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(SocketAddr::V4(from)))?;
        }
        if self.reset_on_close {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// How long the handshake takes, of a connection over which one short request to an echo service is answered.
    pub fn connect_time(&self, request: &[u8]) -> Result<Duration, Failure> {
        let (socket, to) = (self.open()?, SockAddr::from(SocketAddr::V4(self.to)));
        let started = Instant::now();
        socket.connect_timeout(&to, self.limit).map_err(|error| Failure::on_connect(&error))?;
        let took = started.elapsed();
        exchange(&mut self.set_up(socket)?, request).map(|_| took)
    }

    /// One short request to an echo service; gives its reply, which is right.
    pub fn echo(&self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        exchange(&mut self.connect()?, request)
    }

    /// GETs `path` from an HTTP server that closes afterwards; gives the body.
    pub fn http_get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let mut stream = self.connect()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        send(&mut stream, request.as_bytes(), 0)?;
        let mut answer = Vec::new();
        let mut buffer = [0; 16_384];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => answer.extend_from_slice(&buffer[..length]),
                Err(error) => return Err(Failure::later(&error, answer.len() as u64)),
            }
        }
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(head) = head else { return Err(Failure::ClosedEarly { received: answer.len() as u64 }) };
        let status = String::from_utf8_lossy(&answer[..head]).lines().next().unwrap_or_default().to_owned();
        if !status.contains(" 200 ") {
            return Err(Failure::Other(status));
        }
        Ok(answer.split_off(head + 4))
    }

    /// Sends `bytes` bytes to an echo service and checks what comes back, both at once.
    pub fn echo_stream(&self, bytes: u64) -> Result<Transfer, Failure> {
        let stream = self.connect()?;
        let started = Instant::now();
        let mut sender = stream.try_clone().map_err(|error| Failure::Other(error.to_string()))?;
        thread::scope(|scope| {
            let sending = scope.spawn(move || {
                Pattern::default().write(&mut sender, bytes).and_then(|()| sender.shutdown(Shutdown::Write))
            });
            let received = receive_pattern(stream, bytes);
            let sent =
                sending.join().unwrap_or_else(|_| Err(io::Error::other("the sending thread panicked")));
            // What the receiver saw is the better account: it says how far things went.
            received?;
            sent.map_err(|error| Failure::later(&error, bytes))
        })?;
        Ok(Transfer { bytes, took: started.elapsed() })
    }

    /// Sends `bytes` bytes to a sink, which checks them and says so.
    pub fn upload(&self, bytes: u64) -> Result<Transfer, Failure> {
        let mut stream = self.connect()?;
        let started = Instant::now();
        Pattern::default()
            .write(&mut stream, bytes)
            .and_then(|()| stream.shutdown(Shutdown::Write))
            .map_err(|error| Failure::later(&error, 0))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| Failure::later(&error, 0))?;
        let mut words = answer.split_whitespace();
        match (words.next(), words.next().and_then(|number| number.parse::<u64>().ok())) {
            (Some("OK"), Some(received)) if received == bytes => {
                Ok(Transfer { bytes, took: started.elapsed() })
            }
            (Some("OK"), Some(received)) => Err(Failure::ClosedEarly { received }),
            (Some("BAD"), Some(offset)) => Err(Failure::Corrupt { offset }),
            _ => Err(Failure::Other(format!("the sink answered '{answer}'"))),
        }
    }

    /// Takes `bytes` bytes from a source, which has exactly that many, and checks them.
    pub fn download(&self, bytes: u64) -> Result<Transfer, Failure> {
        let stream = self.connect()?;
        let started = Instant::now();
        receive_pattern(stream, bytes)?;
        Ok(Transfer { bytes, took: started.elapsed() })
    }

    /// Connects and goes on with one short exchange after another, `pause` apart, in the background.
    pub fn keep_alive(&self, pause: Duration) -> Result<KeepAlive, Failure> {
        let mut stream = self.connect()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut report = Report { exchanges: 0, longest: Duration::ZERO, failure: None };
            while !stopped.load(Ordering::Relaxed) {
                let started = Instant::now();
                let request = format!("request {}\n", report.exchanges);
                if let Err(failure) = exchange(&mut stream, request.as_bytes()) {
                    report.failure = Some(failure);
                    break;
                }
                report.exchanges += 1;
                report.longest = report.longest.max(started.elapsed());
                thread::sleep(pause);
            }
            report
        });
        Ok(KeepAlive { stop, thread })
    }
}

/// A transfer that came through whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// How much, in each direction that was used.
    pub bytes: u64,
    /// From the handshake's end to the last byte.
    pub took: Duration,
}

/// A connection in use, see [`Client::keep_alive`].
#[derive(Debug)]
pub struct KeepAlive {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Report>,
}

/// How a connection in use fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Requests answered.
    pub exchanges: u64,
    /// The longest that one took.
    pub longest: Duration,
    /// What ended it, if anything did.
    pub failure: Option<Failure>,
}

impl KeepAlive {
    /// Whether it still goes on; if not, it has failed.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    }
}

/// One request to an echo service over a connection that is there; gives the reply, which is right.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>, Failure> {
    send(stream, request, 0)?;
    let mut reply = vec![0; request.len()];
    let mut received = 0;
    while received < reply.len() {
        match stream.read(&mut reply[received..]) {
            Ok(0) => return Err(Failure::ClosedEarly { received: received as u64 }),
            Ok(length) => received += length,
            Err(error) => return Err(Failure::later(&error, received as u64)),
        }
    }
    match reply.iter().zip(request).position(|(got, sent)| got != sent) {
        Some(offset) => Err(Failure::Corrupt { offset: offset as u64 }),
        None => Ok(reply),
    }
}

/// The next line, its end included.
pub fn read_line(stream: &mut TcpStream) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        match stream.read(&mut byte) {
            Ok(0) => return Err(Failure::ClosedEarly { received: line.len() as u64 }),
            Ok(_) => line.extend(byte),
            Err(error) => return Err(Failure::later(&error, line.len() as u64)),
        }
    }
    Ok(line)
}

fn send(stream: &mut TcpStream, bytes: &[u8], received: u64) -> Result<(), Failure> {
    stream.write_all(bytes).map_err(|error| Failure::later(&error, received))
}

/// Reads `bytes` bytes of the pattern and then the end.
fn receive_pattern(mut stream: TcpStream, bytes: u64) -> Result<(), Failure> {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let received = pattern.position();
        match stream.read(&mut buffer) {
            Ok(0) if received == bytes => return Ok(()),
            Ok(0) => return Err(Failure::ClosedEarly { received }),
            Ok(length) => pattern.check(&buffer[..length]).map_err(|offset| Failure::Corrupt { offset })?,
            Err(error) => return Err(Failure::later(&error, received)),
        }
        if pattern.position() > bytes {
            return Err(Failure::Corrupt { offset: bytes });
        }
    }
}
