//! What many ports and many live flows cost: the same packets with few of them and with many.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wsl_mirror_lab::{
    Lab, nat,
    process::{Background, COMMAND_LIMIT, wait_for},
    raw::{RawSocket, frame_from_windows},
};
use xtask::{ExitCode, progress::Step};

use super::{
    bpf::{Direction, Statistics},
    live::Pair,
    packets::stay_on_one_cpu,
    statistics::{Limit, Summary, Verdict},
};
use crate::{output::print, status::Status};

/// What many may cost, as a ratio to few.
pub(super) const LIMIT: Limit = Limit::Between(0.85, 1.15);
/// Where listeners and clients have their ports.
const FIRST_PORT: u16 = 2_000;
const FIRST_CLIENT: u16 = 1_024;
/// Fewer than anybody's limit of descriptors.
const PORTS_OF_A_PROCESS: usize = 15_000;
/// What a process with listeners says when it has them all.
const LISTENING: &str = "listening";
/// The steps in which the flows take their turns: prime, and no flow's neighbour in the table is the next.
const STRIDE: u32 = 7_919;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    pub(super) pairs: u32,
    /// Packets of each measurement.
    pub(super) packets: u32,
}

/// So many live flows, spread over so many ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    ports: u16,
    flows: u32,
}

const FEW: Size = Size { ports: 10, flows: 1_000 };
const MANY_FLOWS: Size = Size { ports: 10, flows: 100_000 };
const MANY_PORTS: Size = Size { ports: 60_000, flows: 100_000 };

/// What came of one size.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Nanoseconds that our program takes for a packet; 0 if it is not loaded.
    program: f64,
    /// Nanoseconds for a packet from its sender to the listener's socket.
    all: f64,
}

/// Many against few.
pub(super) struct Comparison {
    pub(super) what: &'static str,
    pub(super) few: Summary,
    pub(super) many: Summary,
    /// Pair by pair.
    pub(super) ratio: Summary,
    /// Whether the limit is for it.
    pub(super) is_judged: bool,
}

impl Comparison {
    fn of(what: &'static str, is_judged: bool, few: &[f64], many: &[f64]) -> Self {
        let ratios: Vec<_> = many.iter().zip(few).map(|(many, few)| many / few).collect();
        let [few, many, ratio] = [few, many, &ratios].map(Summary::of);
        Self { what, few, many, ratio, is_judged }
    }

    pub(super) fn verdict(&self) -> Verdict {
        if self.is_judged { LIMIT.verdict(self.ratio) } else { Verdict::Holds }
    }
}

/// Measures; wsl-mirror is not loaded.
pub(super) fn measure(lab: &Lab, effort: Effort, progress: &Step) -> Result<Vec<Comparison>> {
    lab.guest().set_sysctls([("net/netfilter/nf_conntrack_udp_timeout", "600")])?;
    lab.guest().enter(|| std::fs::write("/etc/wsl-mirror.toml", "default = \"steer\"\n"))?;
    let _statistics = Statistics::enable()?;
    // Ours with few flows, many flows, many ports; without us with few flows and many flows.
    let mut series: [Vec<Measured>; 5] = std::array::from_fn(|_| Vec::new());
    for pair in 0..effort.pairs {
        progress.set(format!("pair {} of {}", pair + 1, effort.pairs));
        let mut turns = [0, 1, 2, 3, 4];
        if pair % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            let measured = match turn {
                0 => carried(lab, FEW, effort.packets),
                1 => carried(lab, MANY_FLOWS, effort.packets),
                2 => carried(lab, MANY_PORTS, effort.packets),
                3 => plain(lab, FEW, effort.packets),
                _ => plain(lab, MANY_FLOWS, effort.packets),
            };
            series[turn].push(measured?);
        }
    }
    lab.guest().enter(|| std::fs::write("/etc/wsl-mirror.toml", ""))?;
    let [few, flows, ports, plain_few, plain_flows] = &series;
    let all = |series: &[Measured]| series.iter().map(|one| one.all).collect::<Vec<_>>();
    let program = |series: &[Measured]| series.iter().map(|one| one.program).collect::<Vec<_>>();
    Ok(vec![
        Comparison::of("10 and 60,000 ports, a packet's whole way", true, &all(flows), &all(ports)),
        Comparison::of("10 and 60,000 ports, our program", false, &program(flows), &program(ports)),
        Comparison::of("1,000 and 100,000 flows, a packet's whole way", true, &all(few), &all(flows)),
        Comparison::of("1,000 and 100,000 flows, our program", false, &program(few), &program(flows)),
        Comparison::of("the same flows without wsl-mirror", false, &all(plain_few), &all(plain_flows)),
    ])
}

/// Packets of carried flows.
fn carried(lab: &Lab, size: Size, packets: u32) -> Result<Measured> {
    lab.wsl_mirror(&["load"])?.success()?;
    let listeners = listen(lab, size)?;
    let pair = Pair::attach(lab, Direction::Ingress)?;
    send(lab, size, size.flows)?;
    let (of_empty, of_ours, all) = pair.during(|| send(lab, size, packets))?;
    let established = Status::read(lab)?.packets("steer_established")?;
    // A busy machine's backlog may overflow (net.core.netdev_max_backlog), or still hold the last packets.
    ensure!(
        established >= u64::from(packets) / 1_000 * 999,
        "{established} of {packets} packets were carried"
    );
    drop((pair, listeners));
    lab.wsl_mirror(&["unload"])?.success()?;
    nat::conntrack_flush(lab.guest())?;
    Ok(Measured { program: of_ours - of_empty, all })
}

/// The same packets without wsl-mirror.
fn plain(lab: &Lab, size: Size, packets: u32) -> Result<Measured> {
    let listeners = listen(lab, size)?;
    send(lab, size, size.flows)?;
    let all = send(lab, size, packets)?;
    drop(listeners);
    nat::conntrack_flush(lab.guest())?;
    Ok(Measured { program: 0.0, all })
}

/// Processes with a socket on each port. One of them has as many as its limit of descriptors allows.
fn listen(lab: &Lab, size: Size) -> Result<Vec<Background>> {
    let program = std::env::current_exe().context("where this program lies")?;
    let ports: Vec<u16> = (FIRST_PORT..FIRST_PORT + size.ports).collect();
    ports
        .chunks(PORTS_OF_A_PROCESS)
        .map(|ports| {
            let arguments = ["listen".to_owned(), ports[0].to_string(), ports.len().to_string()];
            let listening = Background::spawn(lab.guest().command(&program).args(arguments))?;
            wait_for("sockets on many ports", COMMAND_LIMIT, || {
                Ok(listening.output().contains(LISTENING).then_some(()))
            })
            .with_context(|| listening.output())?;
            Ok(listening)
        })
        .collect()
}

/// Has a socket on each of these UDP ports until it is killed: a process of `bench`, in the guest
#[derive(Args)]
pub(crate) struct Listen {
    first: u16,
    ports: u16,
}

impl Listen {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raising RLIMIT_NOFILE")?;
        let sockets = (self.first..self.first + self.ports)
            .map(|port| {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))
                    .with_context(|| format!("listening on UDP port {port}"))?;
                drop_everything(&socket)?;
                Ok(socket)
            })
            .collect::<Result<Vec<_>>>()?;
        print(LISTENING)?;
        loop {
            // The sockets live as long as the process.
            std::hint::black_box(&sockets);
            std::thread::park();
        }
    }
}

/// Attaches a socket filter that accepts no byte: what a full buffer costs is not measured.
fn drop_everything(socket: &UdpSocket) -> Result<()> {
    // BPF_RET | BPF_K with 0.
    let mut code = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    let length = libc::socklen_t::try_from(size_of_val(&program))?;
    // SAFETY: the structure is the option's, and its filter outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context("SO_ATTACH_FILTER") }
}

/// Sends datagrams of all flows in turns; nanoseconds for each, the kernel's way to the socket included: over a pair
/// of virtual interfaces, sending a frame is receiving it.
fn send(lab: &Lab, size: Size, packets: u32) -> Result<f64> {
    let windows = RawSocket::open(lab.windows(), "winlo0")?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            stay_on_one_cpu()?;
            let mut frame = frame_from_windows(&datagram());
            let started = Instant::now();
            let mut flow = 0;
            for _ in 0..packets {
                address(&mut frame, size, flow);
                windows.send(&frame)?;
                flow = (flow + STRIDE) % size.flows;
            }
            Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(packets))
        });
        sender.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a panic")))
    })
}

const IPV4: usize = 20;
const UDP_LENGTH: usize = 8 + 18;

/// From 127.0.0.1 to 127.0.0.1, without ports and without the checksum of UDP.
fn datagram() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
    let checksum = checksum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend([0, 0, 0, 0, 0, 26, 0, 0]);
    packet.resize(IPV4 + UDP_LENGTH, 0);
    packet
}

/// Writes a flow's ports and its checksum into the frame.
fn address(frame: &mut [u8], size: Size, flow: u32) {
    let ports = u32::from(size.ports);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "less than 60,000, and at most 10,000 clients a port"
    )]
    let (port, client) = ((flow % ports) as u16 + FIRST_PORT, (flow / ports) as u16 + FIRST_CLIENT);
    let udp = &mut frame[14 + IPV4..];
    udp[..2].copy_from_slice(&client.to_be_bytes());
    udp[2..4].copy_from_slice(&port.to_be_bytes());
    udp[6..8].fill(0);
    let sum = checksum(&[&[127, 0, 0, 1, 127, 0, 0, 1, 0, 17, 0, 26], &*udp].concat());
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet's checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "no more than 16 bits are left")]
    let sum = sum as u16;
    !sum
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flow_has_its_own_ports_and_takes_its_turn() {
        for size in [FEW, MANY_FLOWS, MANY_PORTS] {
            let mut frame = frame_from_windows(&datagram());
            let (mut flows, mut flow) = (BTreeSet::new(), 0);
            for _ in 0..size.flows {
                address(&mut frame, size, flow);
                flows.insert(frame[34..38].to_vec());
                flow = (flow + STRIDE) % size.flows;
            }
            assert_eq!(flows.len(), size.flows as usize, "{size:?}");
        }
    }

    #[test]
    fn checksums_cancel_out() {
        let mut frame = frame_from_windows(&datagram());
        address(&mut frame, FEW, 7);
        assert_eq!(checksum(&frame[14..34]), 0);
        let pseudo = [127, 0, 0, 1, 127, 0, 0, 1, 0, 17, 0, 26];
        assert_eq!(checksum(&[&pseudo, &frame[34..]].concat()), 0);
    }

    #[test]
    fn what_is_not_judged_misses_no_limit() {
        let [few, many] = [vec![100.0; 15], vec![300.0; 15]];
        assert_eq!(Comparison::of("", true, &few, &many).verdict(), Verdict::Missed);
        assert_eq!(Comparison::of("", false, &few, &many).verdict(), Verdict::Holds);
        assert_eq!(Comparison::of("", true, &few, &few).verdict(), Verdict::Holds);
    }
}
