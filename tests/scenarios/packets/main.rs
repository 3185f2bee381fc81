//! The loaded program over generated frames: it counts each frame for the reason that the pure function gives on the
//! host, and leaves the frame as it is.
//!
//! Frames reach the program in three ways: by `BPF_PROG_TEST_RUN` ([`program`]), which takes 15 bytes up to what fits
//! a page; as raw frames that Windows sends; and, for headers that lie beyond the linear part of the buffer,
//! from a transmit ring ([`ring`]).

mod model;
mod program;
mod ring;

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use wsl_mirror_core::{
    abi::{FragmentKey, Policy, PortKey, PortPolicy, PortRule, Protocol, Reason, Verdict, Verdicts},
    verdict::Decision,
};
use wsl_mirror_lab::{
    GUEST_MAC, Lab, Sockets,
    checks::{self, OrPanic as _, STEER, load, load_with},
    loopback, nat, pace,
    process::{COMMAND_LIMIT, run_with_input},
    raw::RawSocket,
    servers, tcp,
};
use wsl_mirror_packets::{BY_FORM, Sample, Spec, TO_US, anything, samples_of};

use crate::{
    model::{Foreign, Model},
    program::{NEXT, Outcome, Program, REDIRECT, difference},
    ring::Ring,
};

/// How many frames go through `BPF_PROG_TEST_RUN` in each of the three configurations.
const GENERATED: usize = 100_000;
/// What that call takes at most; the kernel wants its own room in the page.
const TEST_RUN_LONGEST: usize = 3_500;
/// How many frames Windows sends.
const SENT: usize = 4_000;
/// What the wire takes at most.
const WIRE_LONGEST: usize = 1_514;
/// Part of every configuration.
const COMMON: &str = "owners = [{ name = \"left\", policy = \"pass\" }]\ndelivery = \"plain\"\n";
/// After so many frames, and sooner if it takes long, conntrack's table is emptied: entries of flows that get
/// no further than the hook live 5 seconds, and the model knows no time.
const BATCH: usize = 1_000;
const BATCH_LIMIT: Duration = Duration::from_secs(2);
/// Sooner than a datagram's record expires (30 s): the program and the model have different clocks.
const FRAGMENTS_LIMIT: Duration = Duration::from_secs(15);

/// Entries that others have made, where generated frames come by.
const FOREIGN: [Foreign; 10] = {
    const TCP: Foreign = Foreign {
        protocol: Protocol::Tcp,
        ports: (50_000, 8080),
        state: Some(("ESTABLISHED", 3)),
        translated: None,
        answered: true,
    };
    const CONTAINER: Option<&str> = Some("172.17.0.2:80");
    const UDP: Foreign = Foreign { protocol: Protocol::Udp, state: None, answered: false, ..TCP };
    [
        // Linux to Linux, or from before the load.
        TCP,
        UDP,
        // Finished.
        Foreign { ports: (50_002, 8081), state: Some(("TIME_WAIT", 7)), ..TCP },
        Foreign { ports: (50_002, 8080), state: Some(("CLOSE", 8)), ..TCP },
        // Caught by an engine's DNAT.
        Foreign {
            ports: (50_003, 8080),
            state: Some(("SYN_SENT", 1)),
            translated: CONTAINER,
            answered: false,
            ..TCP
        },
        Foreign { ports: (50_002, 8080), translated: CONTAINER, ..UDP },
        Foreign { ports: (50_003, 8081), translated: CONTAINER, ..UDP },
        // Carried by it.
        Foreign { ports: (50_000, 8081), translated: CONTAINER, ..TCP },
        Foreign { ports: (50_001, 8080), translated: CONTAINER, answered: true, ..UDP },
        // Redirected to a program here, which need not answer at all.
        Foreign {
            ports: (50_001, 8081),
            state: Some(("SYN_SENT", 1)),
            translated: Some("127.0.0.1:8082"),
            answered: false,
            ..TCP
        },
    ]
};

/// From which of Windows' ports there are connections to 8080, where frames meet the program alone.
const CONNECTED: [u16; 2] = [50_001, 50_003];

/// Sockets and policies behind the ports that come up often (`wsl_mirror_packets::SERVER_PORTS`), in the guest
/// and in the model of it.
struct World {
    lab: Lab,
    model: Model,
    _servers: Vec<servers::Server>,
    _owners: Vec<Sockets>,
    _connected: UdpSocket,
}

impl World {
    /// 8080 and 8081 have listeners, the latter Docker's proxy; 8082 has none, 8083 is exempt, 8084 for TCP, where
    /// somebody listens who is `left` alone ([`COMMON`]); 8085 has a TCP listener on another address and a UDP
    /// socket that hears one client.
    fn new() -> Self {
        assert_eq!(TO_US, GUEST_MAC, "generated frames are for loopback0");
        let lab = Lab::builder().build().or_panic();
        // Neighbour discovery and the like would be counted too.
        lab.guest().set_sysctls([("net/ipv6/conf/loopback0/disable_ipv6", "1")]).or_panic();
        lab.windows().set_sysctls([("net/ipv6/conf/winlo0/disable_ipv6", "1")]).or_panic();
        let mut model = Model::new();
        let mut servers = Vec::new();
        for (port, address) in [(8080, Ipv4Addr::LOCALHOST), (8083, Ipv4Addr::UNSPECIFIED)] {
            servers.push(servers::tcp_echo(lab.guest(), (address, port)).or_panic());
            servers.push(servers::udp_echo(lab.guest(), (address, port)).or_panic());
            model.listeners.extend(Protocol::ALL.map(|protocol| ((protocol, port), Policy::Unset)));
        }
        let mut owners = Vec::new();
        for (port, name, policy) in [(8081, "docker-proxy", Policy::Steer), (8084, "left", Policy::Pass)] {
            let mut owner =
                Sockets::start(&lab, lab.guest(), env!("CARGO_BIN_EXE_lab-sockets"), name).or_panic();
            for protocol in Protocol::ALL {
                let name = protocol.name();
                owner.tell(&format!("bind {name} {name} 0.0.0.0:{port}")).or_panic();
                owner.tell(&format!("serve {name}")).or_panic();
                model.listeners.insert((protocol, port), policy);
            }
            owners.push(owner);
        }
        servers.push(servers::tcp_echo(lab.guest(), (Ipv4Addr::new(10, 255, 255, 254), 8085)).or_panic());
        let client = loopback(50_000);
        let connected = lab
            .guest()
            .enter(|| -> std::io::Result<_> {
                let socket = UdpSocket::bind(loopback(8085))?;
                socket.connect(client)?;
                Ok(socket)
            })
            .or_panic();
        model.connected = Some((client.ip().octets(), client.port(), 8085));
        Self { lab, model, _servers: servers, _owners: owners, _connected: connected }
    }

    /// Loads the program with this configuration, and exempts the ports that shall be.
    fn load(&mut self, configuration: &str) {
        load_with(&self.lab, &format!("{configuration}\n{COMMON}"));
        checks::ok(&self.lab, &["exempt", "add", "8083", "8084/tcp"]);
        for (protocol, port) in [(Protocol::Tcp, 8083), (Protocol::Udp, 8083), (Protocol::Tcp, 8084)] {
            self.model.policies.insert(PortKey::new(protocol, port), Policy::Pass);
        }
    }

    /// Empties conntrack's table, and puts in what others could have there.
    fn renew_conntrack(&mut self) {
        nat::conntrack_flush(self.lab.guest()).or_panic();
        self.model.flush_conntrack();
        let mut entries = String::new();
        for foreign in FOREIGN {
            let (protocol, (from, to)) = (foreign.protocol.name(), foreign.ports);
            write!(entries, "-I -p {protocol} -s 127.0.0.1 -d 127.0.0.1 --sport {from} --dport {to} -t 100")
                .or_panic();
            if let Some((name, _)) = foreign.state {
                write!(entries, " --state {name}").or_panic();
            }
            if let Some(to) = foreign.translated {
                write!(entries, " --dst-nat {to}").or_panic();
            }
            if foreign.answered {
                write!(entries, " -u SEEN_REPLY").or_panic();
            }
            entries.push('\n');
            self.model.insert(foreign);
        }
        // All by one process: where CPUs are emulated, starting ten takes as long as a thousand frames.
        let mut conntrack = self.lab.guest().command("conntrack");
        run_with_input(conntrack.args(["-R", "-"]), &entries, COMMAND_LIMIT).or_panic().success().or_panic();
    }

    /// Has `deliver` bring every sample to the program, and compares what the program counts with what the pure
    /// function says over the model. To be called inside the guest.
    fn compare(
        &mut self,
        program: &mut Program,
        samples: impl Iterator<Item = Sample>,
        mut deliver: impl FnMut(&Program, &Sample, Decision),
    ) -> Verdicts {
        let mut seen = Verdicts::default();
        let mut started = Instant::now();
        let mut fragments_since = Instant::now();
        for (index, sample) in samples.enumerate() {
            if index % BATCH == 0 || started.elapsed() > BATCH_LIMIT {
                self.renew_conntrack();
                started = Instant::now();
            }
            if index % BATCH == BATCH / 2 {
                // From here on it is not remembered who carries the flows that began before.
                program.forget_flows().or_panic();
                self.model.forget_flows();
            }
            if fragments_since.elapsed() > FRAGMENTS_LIMIT {
                program.forget_fragments().or_panic();
                self.model.forget_fragments();
                fragments_since = Instant::now();
            }
            let expected = self.model.judge(&sample);
            let before = program.counted().or_panic();
            deliver(program, &sample, expected);
            let counted = wait_for_count(program, &before);
            assert!(
                counted == [(expected.reason, 1)],
                "frame {index}: counted as {counted:?}, the pure function says {expected:?}: {sample:?}"
            );
            *seen.counter(expected.reason) += 1;
        }
        seen
    }
}

/// What was counted since `before`: at once, or soon, if the frame is still on its way.
fn wait_for_count(program: &Program, before: &Verdicts) -> Vec<(Reason, u64)> {
    let started = Instant::now();
    loop {
        let counted = difference(before, &program.counted().or_panic());
        if !counted.is_empty() || started.elapsed() > pace::limit(Duration::from_secs(2)) {
            return counted;
        }
    }
}

/// Runs the program once; but for the mark's own bits on a steered packet, and for the destination of one that is
/// delivered by `lo`, everything has to stay as it is.
fn run_and_expect_untouched(program: &Program, sample: &Sample, decision: Decision, mark: u32) {
    let bits = if decision.reason.verdict() == Verdict::Steer { program.mark } else { 0 };
    let frame = sample.bytes();
    let mut expected = Outcome { action: NEXT, data: frame.clone(), mark: mark | bits };
    if decision.by_lo {
        expected.action = REDIRECT;
        expected.data[..6].fill(0);
    }
    let outcome = program.run(&frame, mark).or_panic();
    assert!(
        outcome == expected,
        "{sample:?}, {decision:?}, mark {mark:#x} before:\n{outcome:x?}, expected\n{expected:x?}"
    );
}

/// Frames that the way to the program can carry. A tag beside the bytes cannot be handed over; from one in the
/// bytes of a frame on the wire the kernel makes one.
fn frames(
    series: u64,
    longest: usize,
    can_carry: impl Fn(&[u8]) -> bool,
    count: usize,
) -> impl Iterator<Item = Sample> {
    samples_of(anything(), series, usize::MAX)
        .filter(move |sample| !sample.vlan_tag && sample.len() <= longest && can_carry(&sample.head))
        .take(count)
}

/// `BPF_PROG_TEST_RUN` refuses frames that end within the Ethernet header or an IP header without options.
fn test_run_can_carry(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        None => return false,
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        Some(_) => 15,
    };
    frame.len() >= shortest
}

/// A packet socket refuses frames that end within the Ethernet header, and the kernel drops before any hook what
/// ends within a VLAN tag (`skb_vlan_untag`).
fn wire_can_carry(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        None => false,
        Some([0x81, 0x00] | [0x88, 0xa8]) => frame.len() >= 14 + 6,
        Some(_) => true,
    }
}

fn expect_agreement(
    series: u64,
    configuration: &str,
    mark: u32,
    change: impl FnOnce(&mut World, &mut Program) + Send,
) -> Verdicts {
    let mut world = World::new();
    // Flows of which there is a socket at this end: one without an entry, and one whose entry a DNAT has caught. From
    // before the load, so nothing is remembered of them.
    let mut connections = Vec::new();
    for client in CONNECTED {
        connections.push(
            tcp::Client::new(world.lab.windows(), loopback(8080)).from_port(client).connect().or_panic(),
        );
        world.model.connections.insert((client, 8080));
    }
    world.load(configuration);
    let guest = world.lab.guest().clone();
    // Without a carrier nothing comes in that we have not sent.
    world.lab.windows().run("ip", ["link", "set", "winlo0", "down"]).or_panic();
    guest.enter(move || {
        let mut program = Program::open().or_panic();
        assert_eq!(program.mark, mark);
        change(&mut world, &mut program);
        // None of our bits, all of them, those of others.
        let mut marks = [0, mark, !0, !mark, 0x00ff_2f01].into_iter().cycle();
        world.compare(
            &mut program,
            frames(series, TEST_RUN_LONGEST, test_run_can_carry, GENERATED),
            |program, sample, decision| {
                run_and_expect_untouched(program, sample, decision, marks.next().unwrap_or(0));
            },
        )
    })
}

/// Fails unless each of these came up.
fn expect_all(seen: &Verdicts, reasons: &[Reason]) {
    let missing: Vec<_> = reasons.iter().filter(|reason| seen.get(**reason) == 0).collect();
    assert!(missing.is_empty(), "no frame came out as {missing:?}");
}

#[test]
fn the_program_agrees_with_the_pure_function_on_every_frame() {
    let seen = expect_agreement(0, STEER, 0x1000, |_, _| {});
    expect_all(&seen, &BY_FORM);
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::Reused,
            Reason::Healed,
            Reason::PickedUp,
            Reason::NotOurs,
            Reason::EngineNat,
            Reason::Reply,
            Reason::Exempt,
            Reason::OwnerPolicy,
            Reason::NoListener,
            Reason::NoSocket,
            Reason::Stray,
        ],
    );
}

#[test]
fn the_program_agrees_with_another_mark_and_default_pass() {
    let seen = expect_agreement(1, "mark = 0x50000\n", 0x50000, |world, program| {
        world.model.default = Policy::Pass;
        for protocol in Protocol::ALL {
            for port in [8082, 8085] {
                let key = PortKey::new(protocol, port);
                program.write_policy(key, PortPolicy { cli: Policy::Steer as u8, config: 0 }).or_panic();
                world.model.policies.insert(key, Policy::Steer);
            }
        }
    });
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::OwnerPolicy,
            Reason::DefaultPolicy,
            Reason::Exempt,
            Reason::NoListener,
        ],
    );
}

#[test]
fn the_program_agrees_where_a_rule_wants_delivery_by_lo() {
    let seen = expect_agreement(2, STEER, 0x1000, |world, program| {
        world.model.lo = true;
        program.deliver_by_lo().or_panic();
        for protocol in Protocol::ALL {
            let key = PortKey::new(protocol, 8081);
            program.write_rule(key, PortRule::NotOnLo).or_panic();
            world.model.rules.insert(key, PortRule::NotOnLo);
        }
        let closed = PortKey::new(Protocol::Udp, 8080);
        program.write_rule(closed, PortRule::Closed).or_panic();
        world.model.rules.insert(closed, PortRule::Closed);
    });
    expect_all(
        &seen,
        &[
            Reason::New,
            Reason::Established,
            Reason::Learned,
            Reason::Local,
            Reason::Fragment,
            Reason::LaterFragment,
            Reason::NotOurs,
            Reason::EngineNat,
        ],
    );
}

/// A fragment that overtakes its first one may have the number of an earlier datagram.
#[test]
fn fragments_follow_their_first_one_by_lo_for_30_seconds() {
    let mut world = World::new();
    world.load(STEER);
    let guest = world.lab.guest().clone();
    guest.enter(move || {
        let mut program = Program::open().or_panic();
        program.deliver_by_lo().or_panic();
        let later = Spec { fragment: 100, ..Spec::udp(50_000, 8080, 100) };
        let frame = later.build().bytes();
        let identification = u16::from_be_bytes([frame[18], frame[19]]);
        let datagram = FragmentKey::new(Protocol::Udp, [127, 0, 0, 1], identification);
        assert_eq!(program.run(&frame, 0).or_panic().action, NEXT, "its first one has not come");
        for (seconds, action) in [(0, REDIRECT), (28, REDIRECT), (31, NEXT)] {
            program.remember_fragments(datagram, Duration::from_secs(seconds)).or_panic();
            assert_eq!(program.run(&frame, 0).or_panic().action, action, "after {seconds} s");
        }
    });
}

#[test]
fn frames_from_windows_count_as_the_pure_function_says() {
    let mut world = World::new();
    world.load(STEER);
    // Behind the hook everything ends: what comes back would bring more frames.
    world.lab.guest().run(
        "nft",
        ["add table netdev end; add chain netdev end here { type filter hook ingress device loopback0 priority 0; policy drop; }"],
    ).or_panic();
    let windows = RawSocket::open(world.lab.windows(), "winlo0").or_panic();
    let guest = world.lab.guest().clone();
    let seen = guest.enter(move || {
        let mut program = Program::open().or_panic();
        let frames = frames(0, WIRE_LONGEST, wire_can_carry, SENT);
        world.compare(&mut program, frames, |_, sample, _| windows.send(&sample.bytes()).or_panic())
    });
    expect_all(&seen, &BY_FORM);
    expect_all(&seen, &[Reason::New, Reason::Established, Reason::Exempt, Reason::NoListener]);
}

/// A server that tells what it hears.
fn listener(lab: &Lab, port: u16) -> UdpSocket {
    let socket = lab.guest().enter(|| UdpSocket::bind(loopback(port))).or_panic();
    socket.set_read_timeout(Some(pace::limit(Duration::from_secs(2)))).or_panic();
    socket
}

/// The next datagram: from which port, and what is in it.
fn hear(socket: &UdpSocket) -> (u16, Vec<u8>) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).context("nothing came").or_panic();
    buffer.truncate(length);
    (from.port(), buffer)
}

fn payload(spec: &Spec) -> Vec<u8> {
    spec.build().bytes().split_off(14 + spec.ip_header() + spec.transport_header())
}

#[test]
fn steered_datagrams_reach_their_listener_unchanged() {
    let lab = Lab::builder().configuration(STEER).build().or_panic();
    load(&lab);
    let windows = RawSocket::open(lab.windows(), "winlo0").or_panic();
    let server = listener(&lab, 8080);
    let program = lab.guest().enter(Program::open).or_panic();
    let expect = |what: &str, frames: &[Sample], reasons: &[Reason], port: u16, content: &[u8]| {
        for (frame, reason) in frames.iter().zip(reasons) {
            let before = program.counted().or_panic();
            windows.send(&frame.bytes()).or_panic();
            assert!(wait_for_count(&program, &before).contains(&(*reason, 1)), "{what}: {reason:?}");
        }
        assert!(hear(&server) == (port, content.to_vec()), "{what}: other content");
    };

    let plain = Spec::udp(50_000, 8080, 700);
    expect("plain", &[plain.build()], &[Reason::New], 50_000, &payload(&plain));
    expect("plain again", &[plain.build()], &[Reason::Established], 50_000, &payload(&plain));

    // No-operations up to the longest header that there is.
    let options = Spec { options: vec![1; 40], ..Spec::udp(50_001, 8080, 700) };
    expect("options", &[options.build()], &[Reason::New], 50_001, &payload(&options));

    let padded = Spec { padding: 25, ..Spec::udp(50_002, 8080, 10) };
    let content = payload(&Spec { padding: 0, ..padded.clone() });
    expect("padding", &[padded.build()], &[Reason::New], 50_002, &content);

    // Two fragments: 8 of UDP's header and 72, then the rest, whose first bytes stand where the ports would.
    let whole = Spec::udp(50_003, 8080, 200);
    let content = payload(&whole);
    let first = Spec {
        fragment: 0x2000,
        transport: wsl_mirror_packets::Transport::Udp { length: Some(208) },
        payload: 72,
        ..whole.clone()
    };
    let mut later = Spec { fragment: 80 / 8, payload: 120, ..whole }.build();
    later.tail = 0;
    later.head.truncate(34);
    later.head.extend(&content[72..]);
    fix_ip_header(&mut later.head);
    expect("fragments", &[first.build(), later], &[Reason::New, Reason::LaterFragment], 50_003, &content);
}

/// Length and checksum of a frame's IP header, after the packet behind it was changed.
fn fix_ip_header(frame: &mut [u8]) {
    let total = u16::try_from(frame.len() - 14).unwrap_or(0);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn headers_beyond_the_linear_part_are_pulled_in() {
    let lab = Lab::builder().configuration(STEER).build().or_panic();
    load(&lab);
    let ring = Ring::open(lab.windows(), "winlo0").or_panic();
    let server = listener(&lab, 8080);
    let program = lab.guest().enter(Program::open).or_panic();
    let mut port = 50_000;
    for options in [Vec::new(), vec![1; 40]] {
        let headers = 14 + 20 + options.len() + 8;
        // From the Ethernet header alone to all of them.
        for linear in 14..=headers {
            port += 1;
            let spec = Spec { options: options.clone(), ..Spec::udp(port, 8080, 100) };
            let before = program.counted().or_panic();
            ring.send(&spec.build().bytes(), linear).or_panic();
            let counted = wait_for_count(&program, &before);
            assert_eq!(counted, [(Reason::New, 1)], "{linear} bytes linear of {headers} bytes of headers");
            assert_eq!(hear(&server), (port, payload(&spec)), "{linear} bytes linear");
        }
    }
    // What is too short stays so, however much is pulled.
    let cut = Spec::udp(50_000, 8080, 100).build().truncated(60);
    let before = program.counted().or_panic();
    ring.send(&cut.bytes(), 14).or_panic();
    assert_eq!(wait_for_count(&program, &before), [(Reason::Truncated, 1)]);
}
