//! What the programs cost per packet, against an empty one: `BPF_PROG_TEST_RUN`.

use std::{
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use wsl_mirror_lab::{
    GUEST_MAC, LAN_ADDRESS, Lab, WINDOWS_MAC, loopback, pins,
    raw::{RawSocket, frame_from_windows},
    servers, tcp,
};

use super::{
    bpf::{Direction, Program, Restored},
    statistics::{Limit, Summary, Verdict},
};
use xtask::progress::Step;

use crate::status::Status;

/// Before anything is measured: long enough for caches and clock to settle.
const WARM_UP: u32 = 100_000;
/// Offset of an IPv4 packet's destination address in the frame, in bytes.
const DESTINATION: u16 = 14 + 16;
/// The published port's client on Windows, and that of the port that is never carried.
const CLIENTS: [u16; 2] = [50_123, 50_124];
/// A program's own port.
const PLAIN: u16 = 8100;

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
    pub(super) direction: Direction,
    frame: Vec<u8>,
    /// What the program changes in it.
    restored: Option<Restored>,
    /// The counter that must count it: what shows that the packet measured is the packet meant. Egress counts nothing
    /// of what passes.
    reason: Option<&'static str>,
    /// How many nanoseconds it may cost more than the empty program.
    pub(super) limit: Limit,
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
        self.packet.limit.verdict(self.over)
    }
}

/// Measures; `echo` is the published port of an echo service, and wsl-mirror is loaded.
pub(super) fn measure(lab: &Lab, echo: u16, effort: Effort, progress: &Step) -> Result<Vec<Cost>> {
    let _plain = servers::tcp_echo(lab.guest(), loopback(PLAIN))?;
    // The connections stay open: the program looks up the conntrack entry of the one, and must not of the other.
    let (_carried, carried) = established_flow(lab, CLIENTS[0], echo)?;
    let (_never_carried, never_carried) = established_flow(lab, CLIENTS[1], PLAIN)?;
    let mut costs = Vec::new();
    for packet in packets(carried, never_carried) {
        progress.set(format!("{}: {} runs of {}", packet.name, effort.runs, effort.repeats));
        let counted = |reason: Option<_>| reason.map_or(Ok(0), |reason| Status::read(lab)?.packets(reason));
        let before = counted(packet.reason)?;
        let (empty, ours) = lab
            .guest()
            .enter(|| one_packet(&packet, effort))
            .with_context(|| format!("measuring a packet: {}", packet.name))?;
        let counted = counted(packet.reason)? - before;
        let sent = u64::from(effort.runs) * u64::from(effort.repeats) + u64::from(WARM_UP);
        if let Some(reason) = packet.reason {
            ensure!(counted >= sent, "{}: {sent} runs, {counted} counted as {reason}", packet.name);
        }
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

/// What is measured. Replies of carried flows are not: the packets of `BPF_PROG_TEST_RUN` have no conntrack entry.
fn packets(carried: Vec<u8>, never_carried: Vec<u8>) -> [Packet; 6] {
    use Direction::{Egress, Ingress};
    let packet = |name, direction, frame, reason, limit| Packet {
        name,
        direction,
        frame,
        restored: None,
        reason,
        limit: Limit::AtMost(limit),
    };
    let reply = turned_round(&never_carried);
    let restored = Restored { offset: DESTINATION, address: Ipv4Addr::LOCALHOST.octets() };
    [
        packet("ARP", Ingress, arp(), Some("pass_not_ipv4"), 3.0),
        packet("UDP to a LAN address", Ingress, udp_to_lan(), Some("pass_not_loopback"), 3.0),
        packet("established, port never carried", Ingress, never_carried, Some("pass_never_carried"), 15.0),
        Packet {
            restored: Some(restored),
            ..packet("carried", Ingress, carried, Some("steer_established"), 200.0)
        },
        packet("UDP to a LAN address", Egress, udp_to_lan(), None, 3.0),
        packet("established, port never carried", Egress, reply, None, 3.0),
    ]
}

/// Runs of the empty program and of ours, neighbours in time, the first of each two in turns. On the thread of
/// the guest, whose interfaces the kernel takes the index from.
fn one_packet(packet: &Packet, effort: Effort) -> Result<(Vec<f64>, Vec<f64>)> {
    stay_on_one_cpu()?;
    let (mut empty, mut ours) = (Program::empty()?, ours(packet.direction)?);
    if let Some(restored) = packet.restored {
        (empty, ours) = (Program::restoring(restored, &empty)?, Program::restoring(restored, &ours)?);
    }
    let index = loopback0()?;
    let run = |program: &Program, repeats| program.time(&packet.frame, index, repeats);
    run(&empty, WARM_UP)?;
    run(&ours, WARM_UP)?;
    let (mut of_empty, mut of_ours) = (Vec::new(), Vec::new());
    for round in 0..effort.runs {
        if round % 2 == 0 {
            of_empty.push(run(&empty, effort.repeats)?);
            of_ours.push(run(&ours, effort.repeats)?);
        } else {
            of_ours.push(run(&ours, effort.repeats)?);
            of_empty.push(run(&empty, effort.repeats)?);
        }
    }
    Ok((of_empty, of_ours))
}

/// Keeps the calling thread on the CPU that it is on.
pub(super) fn stay_on_one_cpu() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu());
    sched_setaffinity(None, &cpu).context("staying on one CPU")
}

/// The program of this side of `loopback0`; in the guest.
pub(super) fn ours(direction: Direction) -> Result<Program> {
    Program::pinned(&pins::path(match direction {
        Direction::Ingress => "program",
        Direction::Egress => "program_egress",
    }))
}

/// The index of `loopback0`; in the guest.
pub(super) fn loopback0() -> Result<u32> {
    let index =
        std::fs::read_to_string("/sys/class/net/loopback0/ifindex").context("looking up loopback0")?;
    index.trim().parse().context("the index of loopback0")
}

/// A real connection from Windows, and a frame of it as `loopback0` received it.
fn established_flow(lab: &Lab, client: u16, echo: u16) -> Result<(TcpStream, Vec<u8>)> {
    let sniffer = RawSocket::open(lab.guest(), "loopback0")?;
    let mut connection = tcp::Client::new(lab.windows(), loopback(echo)).from_port(client).connect()?;
    tcp::exchange(&mut connection, b"a request")?;
    let ours =
        |frame: &wsl_mirror_lab::raw::Frame| !frame.outgoing && frame.ports() == Some((6, client, echo));
    // SYN, ACK, the request: the last of them.
    let Some(frame) = sniffer.collect(Duration::from_millis(100), ours)?.pop() else {
        bail!("no frame of the connection from port {client} to {echo} came in on loopback0");
    };
    Ok((connection, frame.bytes))
}

/// The frame as one of the other direction: MAC addresses, addresses and ports change places.
fn turned_round(frame: &[u8]) -> Vec<u8> {
    let mut turned = frame.to_vec();
    for (first, second, length) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        let (left, right) = turned.split_at_mut(second);
        left[first..first + length].swap_with_slice(&mut right[..length]);
    }
    turned
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_turned_round_twice_is_itself() {
        let frame: Vec<u8> = (0..60).collect();
        let once = turned_round(&frame);
        assert_eq!(
            (&once[..12], &once[26..38]),
            (
                &[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5][..],
                &[30, 31, 32, 33, 26, 27, 28, 29, 36, 37, 34, 35][..]
            )
        );
        assert_eq!(turned_round(&once), frame);
    }
}
