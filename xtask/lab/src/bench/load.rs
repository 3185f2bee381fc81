//! Traffic: plain blocking threads in the client's namespace, entered once and not per connection, so that what is
//! measured is the road and not the client.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use wsl_mirror_lab::{Namespace, loopback};

use super::{cpu, statistics::median};

/// Threads of the two kinds that count requests.
const CONNECTIONS: usize = 4;
/// How long anything may take; past it the road is broken, and there is nothing to measure.
const LIMIT: Duration = Duration::from_secs(3);
const REQUEST: [u8; 64] = *b"GET /as/much/as/a/short/request/has?and=nothing-els HTTP/1.1\r\n\r\n";

/// What came through.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// Bytes, requests or connections.
    pub(super) per_second: f64,
    /// CPU seconds for each of them.
    pub(super) cpu: f64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// Bytes of an upload over one connection.
    Throughput,
    /// Requests over connections that stay open.
    KeepAlive,
    /// Connect, request, answer, close.
    Connections,
}

impl Load {
    pub(super) const ALL: [Self; 3] = [Self::Throughput, Self::KeepAlive, Self::Connections];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::KeepAlive => "keep-alive requests",
            Self::Connections => "short connections",
        }
    }

    /// Puts load on for `time` and gives what came through.
    pub(super) fn run(self, from: &Namespace, ports: Ports, time: Duration) -> Result<Rate> {
        from.enter(|| match self {
            Self::Throughput => upload(ports.sink, time),
            Self::KeepAlive => {
                // Connected before the clock starts.
                let streams = (0..CONNECTIONS).map(|_| connect(ports.echo)).collect::<Result<Vec<_>>>()?;
                count(streams, time, exchange)
            }
            Self::Connections => count(vec![(); CONNECTIONS], time, |()| exchange(&mut connect(ports.echo)?)),
        })
        .with_context(|| format!("measuring {}", self.name()))
    }
}

/// Connects one after the other for `time`, and gives the median of how long connect(2) took, in seconds.
pub(super) fn connect_time(from: &Namespace, ports: Ports, time: Duration) -> Result<f64> {
    let times = from.enter(|| {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < time {
            let before = Instant::now();
            let stream = connect_plainly(ports.echo)?;
            times.push(before.elapsed().as_secs_f64());
            drop(stream);
        }
        anyhow::Ok(times)
    });
    Ok(median(&times.context("measuring connects")?))
}

/// Without the system calls around connect(2) that [`connect`] makes for its time limits.
fn connect_plainly(port: u16) -> Result<TcpStream> {
    TcpStream::connect(SocketAddr::V4(loopback(port))).context("connecting")
}

/// Since when is counted.
struct Start {
    at: Instant,
    cpu: f64,
}

impl Start {
    fn now() -> Result<Self> {
        Ok(Self { cpu: cpu::seconds()?, at: Instant::now() })
    }

    /// So many have come through since.
    fn rate(&self, times: f64) -> Result<Rate> {
        let per_second = times / self.at.elapsed().as_secs_f64();
        Ok(Rate { per_second, cpu: (cpu::seconds()? - self.cpu) / times })
    }
}

/// Published ports on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) echo: u16,
    pub(super) sink: u16,
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(loopback(port)), LIMIT).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; REQUEST.len()];
    stream.write_all(&REQUEST).context("sending a request")?;
    stream.read_exact(&mut answer).context("waiting for the answer")
}

/// How often `work` succeeds, on a thread for each of `each`.
fn count<T: Send>(each: Vec<T>, time: Duration, work: impl Fn(&mut T) -> Result<()> + Sync) -> Result<Rate> {
    let start = Start::now()?;
    let count = |mut one: T| {
        let mut times = 0_u32;
        while start.at.elapsed() < time {
            work(&mut one)?;
            times += 1;
        }
        Ok(times)
    };
    let counted = thread::scope(|scope| {
        let count = &count;
        let threads: Vec<_> = each.into_iter().map(|one| scope.spawn(move || count(one))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a panic"))));
        joined.collect::<Result<Vec<u32>>>()
    })?;
    start.rate(counted.into_iter().map(f64::from).sum())
}

/// Bytes, until the sink has said that it has read the last one.
fn upload(port: u16, time: Duration) -> Result<Rate> {
    let mut stream = connect(port)?;
    // Not what the sink checks for: after the first wrong byte it only reads, and is no bottleneck.
    let zeros = vec![0; 256 * 1024];
    let start = Start::now()?;
    let mut sent = 0;
    while start.at.elapsed() < time {
        stream.write_all(&zeros).context("sending")?;
        sent += zeros.len();
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("waiting for the sink")?;
    anyhow::ensure!(answer == "BAD 0\n", "the sink answered '{answer}'");
    #[expect(clippy::cast_precision_loss, reason = "exact up to petabytes")]
    let sent = sent as f64;
    start.rate(sent)
}
