//! What the hooks cost programs that have nothing to do with containers: connect(2) to other ports and to other machines, and
//! datagrams of many threads, for each of which a hook takes the socket's lock.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockAddr, Socket, Type};
use wsl_mirror_lab::{
    Container, Docker, Lab, NEIGHBOUR_ADDRESS, Service, clients::Clients, loopback, servers,
};
use xtask::progress::Step;

use super::{
    packets::stay_on_one_cpu,
    statistics::{Limit, Summary, Verdict},
};

/// UDP: published, a program's, and nobody's.
const PUBLISHED: u16 = 8017;
const PROGRAM: u16 = 8101;
const NOBODY: u16 = 8102;
/// The discard service of the LAN's neighbour.
const ELSEWHERE: (Ipv4Addr, u16) = (NEIGHBOUR_ADDRESS, 9);
/// Threads that share one socket.
const THREADS: usize = 8;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Each is measured so often without and with wsl-mirror, in turns.
    pub(super) rounds: u32,
    /// System calls of each measurement.
    pub(super) calls: u32,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// connect(2) to a port of 127.0.0.1.
    Port(u16),
    /// connect(2) to another machine.
    Elsewhere,
    /// sendto(2) to another machine, by [`THREADS`] threads on one socket.
    Datagrams,
}

impl Call {
    const ALL: [Self; 4] = [Self::Port(PROGRAM), Self::Port(NOBODY), Self::Elsewhere, Self::Datagrams];

    const fn name(self) -> &'static str {
        match self {
            Self::Port(PROGRAM) => "connect to a program's port",
            Self::Port(_) => "connect to nobody's port",
            Self::Elsewhere => "connect to another machine",
            Self::Datagrams => "sendto another machine, 8 threads, one socket",
        }
    }

    /// How many nanoseconds more it may take.
    const fn limit(self) -> Option<Limit> {
        match self {
            Self::Port(_) => Some(Limit::AtMost(500.0)),
            Self::Elsewhere => Some(Limit::AtMost(50.0)),
            Self::Datagrams => None,
        }
    }

    /// Nanoseconds of one call.
    fn measure(self, clients: &Clients, calls: u32) -> Result<f64> {
        let socket = clients.socket(Domain::IPV4, Type::DGRAM, None)?;
        match self {
            Self::Port(port) => connects(&socket, loopback(port).into(), calls),
            Self::Elsewhere => connects(&socket, ELSEWHERE.into(), calls),
            Self::Datagrams => datagrams(&socket, ELSEWHERE.into(), calls),
        }
        .with_context(|| format!("measuring: {}", self.name()))
    }
}

/// Nanoseconds per call.
pub(super) struct Cost {
    pub(super) what: &'static str,
    pub(super) without: Summary,
    pub(super) with: Summary,
    /// Of the differences, round by round.
    pub(super) over: Summary,
    /// Of the ratios, round by round.
    pub(super) ratio: Summary,
    /// For the difference; none if it is only shown.
    pub(super) limit: Option<Limit>,
}

impl Cost {
    fn of(call: Call, without: &[f64], with: &[f64]) -> Self {
        let over: Vec<_> = with.iter().zip(without).map(|(with, without)| with - without).collect();
        let ratio: Vec<_> = with.iter().zip(without).map(|(with, without)| with / without).collect();
        let [without, with, over, ratio] = [without, with, &over, &ratio].map(Summary::of);
        Self { what: call.name(), without, with, over, ratio, limit: call.limit() }
    }

    /// None without a limit.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.limit.map(|limit| limit.verdict(self.over))
    }
}

/// Measures; wsl-mirror is not loaded.
pub(super) fn measure(lab: &Lab, docker: &Docker, effort: Effort, progress: &Step) -> Result<Vec<Cost>> {
    // UDP's hooks are attached while a UDP port is published.
    let container = Container::new("datagrams").serve(Service::UdpEcho { port: 7 });
    let container = docker.run(container.publish(&format!("{PUBLISHED}:7/udp")))?;
    let _program = servers::udp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, PROGRAM))?;
    let _neighbour = lab.add_neighbour()?;
    let clients = Clients::new(lab)?;

    let mut without: [Vec<f64>; Call::ALL.len()] = std::array::from_fn(|_| Vec::new());
    let mut with = without.clone();
    for round in 0..effort.rounds {
        progress.set(format!("round {} of {}", round + 1, effort.rounds));
        // Neither comes first in all rounds.
        for loaded in [round % 2 == 0, round % 2 != 0] {
            let series = if loaded { &mut with } else { &mut without };
            if loaded {
                lab.wsl_mirror(&["load"])?.success()?;
            }
            for (call, series) in Call::ALL.into_iter().zip(series) {
                series.push(call.measure(&clients, effort.calls)?);
            }
            if loaded {
                lab.wsl_mirror(&["unload"])?.success()?;
            }
        }
    }
    docker.remove(&container)?;
    Ok(Call::ALL
        .into_iter()
        .enumerate()
        .map(|(index, call)| Cost::of(call, &without[index], &with[index]))
        .collect())
}

fn connects(socket: &Socket, to: SocketAddr, calls: u32) -> Result<f64> {
    let to = SockAddr::from(to);
    let work = || {
        stay_on_one_cpu()?;
        let started = cpu_time()?;
        for _ in 0..calls {
            socket.connect(&to)?;
        }
        Ok(cpu_time()?.saturating_sub(started).as_secs_f64() * 1e9 / f64::from(calls))
    };
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(anyhow!("a panic"))))
}

/// How long this thread has had a CPU: connect(2) of UDP waits for nobody, and other processes take turns with it.
fn cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(now.tv_sec.try_into()?, now.tv_nsec.try_into()?))
}

/// In time of the clock: threads wait for each other's lock.
fn datagrams(socket: &Socket, to: SocketAddr, calls: u32) -> Result<f64> {
    let to = SockAddr::from(to);
    let each = calls / u32::try_from(THREADS)?;
    let work = || -> Result<()> {
        for _ in 0..each {
            socket.send_to(b"hello", &to)?;
        }
        Ok(())
    };
    let started = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a panic"))))
    })?;
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_judged_by_its_difference() {
        let cost = |over: f64| Cost::of(Call::Elsewhere, &[1000.0; 15], &[1000.0 + over; 15]);
        assert_eq!(cost(40.0).verdict(), Some(Verdict::Holds));
        assert_eq!(cost(60.0).verdict(), Some(Verdict::Missed));
        assert!(Cost::of(Call::Datagrams, &[1.0; 15], &[9.0; 15]).verdict().is_none());
    }
}
