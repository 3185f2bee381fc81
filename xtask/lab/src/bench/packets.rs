//! What the program costs per packet, against an empty one: `BPF_PROG_TEST_RUN`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use wsl_mirror_lab::{
    GUEST_MAC, LAN_ADDRESS, Lab, WINDOWS_MAC, loopback, pins,
    raw::{RawSocket, frame_from_windows},
    tcp,
};

use super::{
    bpf::Program,
    statistics::{Summary, Verdict},
};
use xtask::progress::Step;

use crate::status::Status;

/// Before anything is measured: long enough for caches and clock to settle.
const WARM_UP: u32 = 100_000;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Runs of each program on each packet, in turns.
    pub(super) runs: u32,
    /// How often a run repeats the program.
    pub(super) repeats: u32,
}

/// A kind of packet.
pub(super) struct Packet {
    pub(super) name: &'static str,
    frame: Vec<u8>,
    /// The counter that must count it: what shows that the packet measured is the packet meant.
    reason: &'static str,
    /// How many nanoseconds it may cost more than the empty program.
    pub(super) limit: f64,
}

/// Nanoseconds per packet.
pub(super) struct Cost {
    pub(super) packet: Packet,
    pub(super) empty: Summary,
    pub(super) ours: Summary,
    /// Of the differences between neighbouring runs.
    pub(super) over: Summary,
}

impl Cost {
    pub(super) fn verdict(&self) -> Verdict {
        if self.over.median <= self.packet.limit { Verdict::Holds } else { Verdict::Missed }
    }
}

/// Measures; `echo` is the published port of an echo service, and wsl-mirror is loaded.
pub(super) fn measure(lab: &Lab, echo: u16, effort: Effort, progress: &Step) -> Result<Vec<Cost>> {
    // The connection stays open: its conntrack entry is what the program looks up.
    let (_connection, established) = established_flow(lab, echo)?;
    let packets = [
        Packet { name: "ARP", frame: arp(), reason: "pass_not_ipv4", limit: 3.0 },
        Packet { name: "UDP to a LAN address", frame: udp_to_lan(), reason: "pass_not_loopback", limit: 3.0 },
        Packet {
            name: "established steered flow",
            frame: established,
            reason: "steer_established",
            limit: 150.0,
        },
    ];
    let empty = Program::empty()?;
    let mut costs = Vec::new();
    for packet in packets {
        progress.set(format!("{}: {} runs of {}", packet.name, effort.runs, effort.repeats));
        let before = Status::read(lab)?.packets(packet.reason)?;
        let (empty, ours) = lab
            .guest()
            .enter(|| one_packet(&empty, &packet, effort))
            .with_context(|| format!("measuring a packet: {}", packet.name))?;
        let counted = Status::read(lab)?.packets(packet.reason)? - before;
        let sent = u64::from(effort.runs) * u64::from(effort.repeats) + u64::from(WARM_UP);
        ensure!(counted >= sent, "{}: {sent} runs, {counted} counted as {}", packet.name, packet.reason);
        let over: Vec<f64> = ours.iter().zip(&empty).map(|(ours, empty)| ours - empty).collect();
        costs.push(Cost {
            packet,
            empty: Summary::of(&empty),
            ours: Summary::of(&ours),
            over: Summary::of(&over),
        });
    }
    Ok(costs)
}

/// Runs of the empty program and of ours, neighbours in time, the first of each two in turns. On the thread of
/// the guest, whose interfaces the kernel takes the index from.
fn one_packet(empty: &Program, packet: &Packet, effort: Effort) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu());
    sched_setaffinity(None, &cpu).context("staying on one CPU")?;
    let ours = Program::pinned(&pins::path("program"))?;
    let index =
        std::fs::read_to_string("/sys/class/net/loopback0/ifindex").context("looking up loopback0")?;
    let index = index.trim().parse().context("the index of loopback0")?;
    let run = |program: &Program, repeats| program.time(&packet.frame, index, repeats);
    run(empty, WARM_UP)?;
    run(&ours, WARM_UP)?;
    let (mut of_empty, mut of_ours) = (Vec::new(), Vec::new());
    for round in 0..effort.runs {
        if round % 2 == 0 {
            of_empty.push(run(empty, effort.repeats)?);
            of_ours.push(run(&ours, effort.repeats)?);
        } else {
            of_ours.push(run(&ours, effort.repeats)?);
            of_empty.push(run(empty, effort.repeats)?);
        }
    }
    Ok((of_empty, of_ours))
}

/// A real connection from Windows, and a frame of it as `loopback0` received it.
fn established_flow(lab: &Lab, echo: u16) -> Result<(std::net::TcpStream, Vec<u8>)> {
    const CLIENT: u16 = 50_123;
    let sniffer = RawSocket::open(lab.guest(), "loopback0")?;
    let mut connection = tcp::Client::new(lab.windows(), loopback(echo)).from_port(CLIENT).connect()?;
    tcp::exchange(&mut connection, b"a request")?;
    let ours =
        |frame: &wsl_mirror_lab::raw::Frame| !frame.outgoing && frame.ports() == Some((6, CLIENT, echo));
    // SYN, ACK, the request: the last of them.
    let Some(frame) = sniffer.collect(Duration::from_millis(100), ours)?.pop() else {
        bail!("no frame of the connection from port {CLIENT} to {echo} came in on loopback0");
    };
    Ok((connection, frame.bytes))
}

/// Who has the address of Linux? Tell Windows.
fn arp() -> Vec<u8> {
    let mut frame = [&GUEST_MAC[..], &WINDOWS_MAC, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    frame.resize(60, 0);
    frame
}

fn udp_to_lan() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 192, 168, 50, 20];
    packet.extend(LAN_ADDRESS.octets());
    packet.extend([0xc0, 0x00, 0x1f, 0x90, 0, 26, 0, 0]);
    packet.resize(46, 0);
    frame_from_windows(&packet)
}
