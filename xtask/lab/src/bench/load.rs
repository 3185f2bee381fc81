//! Traffic: plain blocking threads in Windows' namespace, entered once and not per connection, so that what is
//! measured is the road and not the client.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use wsl_mirror_lab::{Namespace, loopback};

/// Threads of the two kinds that count requests.
const CONNECTIONS: usize = 4;
/// How long anything may take; past it the road is broken, and there is nothing to measure.
const LIMIT: Duration = Duration::from_secs(3);
const REQUEST: [u8; 64] = *b"GET /as/much/as/a/short/request/has?and=nothing-els HTTP/1.1\r\n\r\n";

/// What is measured, per second.
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

    /// For people.
    pub(super) fn show(self, rate: f64) -> String {
        match self {
            Self::Throughput => format!("{:.2} GB/s", rate / 1e9),
            Self::KeepAlive | Self::Connections => format!("{:.1} k/s", rate / 1e3),
        }
    }

    /// Puts load on for `time` and gives what came through per second.
    pub(super) fn run(self, from: &Namespace, ports: Ports, time: Duration) -> Result<f64> {
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

/// How often `work` succeeds per second, on a thread for each of `each`.
fn count<T: Send>(each: Vec<T>, time: Duration, work: impl Fn(&mut T) -> Result<()> + Sync) -> Result<f64> {
    let started = Instant::now();
    let count = |mut one: T| {
        let mut times = 0_u32;
        while started.elapsed() < time {
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
    Ok(counted.into_iter().map(f64::from).sum::<f64>() / started.elapsed().as_secs_f64())
}

/// Bytes per second, until the sink has said that it has read the last one.
fn upload(port: u16, time: Duration) -> Result<f64> {
    let mut stream = connect(port)?;
    // Not what the sink checks for: after the first wrong byte it only reads, and is no bottleneck.
    let zeros = vec![0; 256 * 1024];
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < time {
        stream.write_all(&zeros).context("sending")?;
        sent += zeros.len();
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("waiting for the sink")?;
    anyhow::ensure!(answer == "BAD 0\n", "the sink answered '{answer}'");
    #[expect(clippy::cast_precision_loss, reason = "exact up to petabytes")]
    let sent = sent as f64;
    Ok(sent / started.elapsed().as_secs_f64())
}
