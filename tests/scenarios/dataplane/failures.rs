//! What fails, fails for the program alone: the packet passes, and it is counted.

use std::{
    fmt::Write as _,
    fs,
    net::UdpSocket,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, wait_until, windows, windows_udp},
    loopback, nat, pace,
    process::{COMMAND_LIMIT, run_with_input},
    raw::{RawSocket, frame_from_windows},
    servers, tcp, udp,
};

use crate::direct::machine::{DIRECT, Machine, PORT};
use crate::world::{Probe, caught, engine_rule, ipv4, port_packets, udp_datagram};

/// Sends UDP datagrams from many addresses and ports of Windows, a few at a time: loopback0 takes no more.
#[track_caller]
fn send_datagrams(lab: &Lab, flows: impl Iterator<Item = ([u8; 4], u16, u16)>) {
    let nic = RawSocket::sender(lab.windows(), "winlo0").or_panic();
    for (count, (source, from, to)) in flows.enumerate() {
        nic.send(&frame_from_windows(&ipv4(17, 0, 0, source, &udp_datagram(from, to, HELLO)))).or_panic();
        if count % 200 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One of these tests makes the conntrack table smaller, another one needs it large; it is the machine's.
static TABLE: Mutex<()> = Mutex::new(());

/// Where making an entry takes milliseconds, the machine is a virtual one and ours: its table may be small for a
/// while. The other tests' labs have a few dozen entries each.
struct SmallTable<'a> {
    before: Option<String>,
    _alone: MutexGuard<'a, ()>,
}

impl SmallTable<'_> {
    const MAXIMUM: &'static str = "/proc/sys/net/netfilter/nf_conntrack_max";

    #[track_caller]
    fn on_emulated_machines() -> Self {
        let alone = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = None;
        if pace::is_emulated() {
            before = Some(fs::read_to_string(Self::MAXIMUM).or_panic());
            fs::write(Self::MAXIMUM, "5000").or_panic();
        }
        Self { before, _alone: alone }
    }
}

impl Drop for SmallTable<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(Self::MAXIMUM, before);
        }
    }
}

/// State is conntrack's: no map of ours forgets a flow among many.
#[test]
fn many_live_flows_are_all_carried() {
    const USUAL: usize = 20_000;
    let _alone = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "udp", 8100);
    engine_rule(&lab, "tcp", 8101);
    // Receives nothing, so that nothing is sent back.
    let _silent = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    let _tcp = servers::tcp_echo(lab.guest(), loopback(8101)).or_panic();
    load_with(&lab, STEER);
    let mut old = windows(&lab, 8101).connect().or_panic();
    tcp::exchange(&mut old, HELLO).or_panic();
    let count = pace::rounds(USUAL).min(100_000);
    let flows = || {
        let hosts =
            (1..=9).flat_map(|host| (50_000..62_000).map(move |port| ([127, 0, 1, host], port, 8100)));
        hosts.take(count)
    };
    let before = lab.packets("steer_new").or_panic();
    send_datagrams(&lab, flows());
    let begun = lab.packets("steer_new").or_panic() - before;
    // loopback0 may drop some of a burst.
    assert!(begun > count as u64 * 9 / 10, "only {begun} flows came through");
    let before = lab.packets("steer_established").or_panic();
    send_datagrams(&lab, flows());
    let went_on = lab.packets("steer_established").or_panic() - before;
    let anew = lab.packets("steer_new").or_panic() - begun - 1;
    assert!(went_on + anew > count as u64 * 9 / 10, "only {went_on} datagrams came through");
    assert!(anew <= count as u64 - begun, "{anew} of {begun} flows had been forgotten");
    assert_eq!(caught(&lab), 0);
    assert_eq!(tcp::exchange(&mut old, HELLO), Ok(HELLO.to_vec()), "a connection that was there");
    let mut new = windows(&lab, 8101).connect().or_panic();
    assert_eq!(tcp::exchange(&mut new, HELLO), Ok(HELLO.to_vec()), "a new one");
}

#[test]
fn more_ports_than_are_counted_break_nothing() {
    const ROOM: u16 = 4096;
    let lab = Lab::builder().build().or_panic();
    let _udp = servers::udp_echo(lab.guest(), loopback(8100)).or_panic();
    load_with(&lab, STEER);
    send_datagrams(&lab, (0..ROOM + 2000).map(|count| ([127, 0, 0, 1], 50_000, 10_000 + count)));
    assert!(lab.packets("pass_no_listener").or_panic() > u64::from(ROOM) + 1000);
    let socket = windows_udp(&lab, 8100).connect().or_panic();
    for _ in 0..3 {
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    }
    assert_eq!(port_packets(&lab, "udp", 8100, "steered_packets"), 3, "the newest port is counted");
}

/// The limit is one for the machine, so it is reached by that many entries of this namespace, which must be
/// in use as far as conntrack knows: it makes room by throwing out others.
#[test]
fn a_full_conntrack_table_costs_no_flow_that_exists() {
    const MOST: usize = 300_000;
    let machine = Machine::new(Service::Proxy);
    let lab = &machine.lab;
    let _tcp = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    let _udp = servers::udp_echo(lab.guest(), loopback(8100)).or_panic();
    let probe = Probe::new(lab);
    probe.add("seen", "tcp sport 50000");
    machine.load(&format!("{DIRECT}{STEER}"));
    let connection = windows(lab, 8100).keep_alive(Duration::from_millis(10)).or_panic();
    let datagrams = windows_udp(lab, 8100).connect().or_panic();
    udp::exchange(&datagrams, HELLO).or_panic();
    let direct = windows(lab, PORT).keep_alive(Duration::from_millis(10)).or_panic();
    let direct_datagrams = windows_udp(lab, PORT).connect().or_panic();
    udp::exchange(&direct_datagrams, HELLO).or_panic();
    assert_eq!((lab.packets("steer_new").or_panic(), lab.packets("direct_new").or_panic()), (2, 2));

    let _small = SmallTable::on_emulated_machines();
    let limit: usize = lab.guest().sysctl("net/netfilter/nf_conntrack_max").or_panic().parse().or_panic();
    assert!(limit <= MOST, "nf_conntrack_max is {limit}: too many entries to make; lower it for this test");
    let mut entries = String::new();
    for number in 0..limit {
        let (host, port) = (number / 50_000, 1_000 + number % 50_000);
        writeln!(
            entries,
            "-I -p tcp -s 10.9.{host}.1 -d 10.8.0.1 --sport {port} --dport 80 --state ESTABLISHED \
             --status ASSURED,SEEN_REPLY -t 100"
        )
        .or_panic();
    }
    // Where filling takes minutes, the datagrams' own entry would not live to see its end.
    let fill = thread::scope(|scope| {
        let filling = scope.spawn(|| {
            run_with_input(lab.guest().command("conntrack").args(["-R", "-"]), &entries, 3 * COMMAND_LIMIT)
        });
        while !filling.is_finished() {
            for socket in [&datagrams, &direct_datagrams] {
                udp::exchange(socket, HELLO).context("while the table is filled").or_panic();
            }
            thread::sleep(Duration::from_millis(200));
        }
        filling.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })
    .or_panic();
    let count: usize = lab.guest().sysctl("net/netfilter/nf_conntrack_count").or_panic().parse().or_panic();
    assert!(
        count + 8 >= limit,
        "only {count} of {limit} entries: {}",
        fill.stderr.lines().next().unwrap_or_default()
    );
    // What is no connection of a test, such as the bridge's own multicast, gives way first (`early_drop`).
    wait_until("the table to have no more room", Duration::from_secs(5), || {
        windows(lab, 8100).limit(Duration::from_millis(300)).echo(HELLO).is_err()
    });
    let answer = windows(lab, 8100).from_port(50_000).limit(Duration::from_millis(300)).echo(HELLO);
    assert_eq!(answer, Err(tcp::Failure::ConnectTimedOut), "the stack drops it, as it does without us");
    let failed = lab.packets("failed_alloc").or_panic();
    assert!(failed > 0);
    let answer = windows(lab, PORT).limit(Duration::from_millis(300)).echo(HELLO);
    assert_eq!(answer, Err(tcp::Failure::ConnectTimedOut), "neither direct nor steered");
    assert!(lab.packets("failed_alloc").or_panic() > failed);
    assert_eq!(probe.packets("seen"), 1, "it passed the program");
    for socket in [&datagrams, &direct_datagrams] {
        assert_eq!(udp::exchange(socket, HELLO), Ok(HELLO.to_vec()));
    }
    for connection in [connection, direct] {
        let report = connection.stop();
        assert_eq!(report.failure, None, "{report:?}");
    }
    nat::conntrack_flush(lab.guest()).or_panic();
    for port in [8100, PORT] {
        assert_eq!(windows(lab, port).echo(HELLO), Ok(HELLO.to_vec()), "port {port}");
    }
}
