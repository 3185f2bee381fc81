//! What the scenarios share: the commands, the counters, an engine's rule without an engine, slow transfers.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::SockRef;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, LabBuilder, Service, SharedLab,
    checks::{HELLO, OrPanic as _, RaiseOnDrop, nft, ok, windows, windows_udp},
    nat, pins,
    process::{COMMAND_LIMIT, run},
    raw::{RawSocket, frame_from_windows},
    services::Pattern,
    tcp, udp,
};

/// How long is waited for what shall not come; an answer takes a thousandth of it.
pub const HANG: Duration = Duration::from_millis(500);
/// Longer than it takes to get through at once, and shorter than the first retransmission, which is due after a second.
pub const AT_ONCE: Duration = Duration::from_millis(700);
/// What [`services`] send to whoever connects to 8019.
pub const PAGE: u64 = 1000;
/// What they send to whoever connects to 8020.
pub const STREAM: u64 = 32 << 20;

/// Docker as installed, with a container that publishes every kind of service: TCP and UDP echo on 8080 of every
/// address and 8081 of 127.0.0.1, a sink on 8009, a source of [`PAGE`] on 8019 and one of [`STREAM`] on 8020, and one
/// more UDP echo on 8017. Shared with other tests.
#[track_caller]
pub fn services() -> SharedLab {
    services_in(Lab::builder(), &DockerOptions::default())
}

/// The same without docker-proxy.
#[track_caller]
pub fn services_without_proxy() -> SharedLab {
    services_in(Lab::builder(), &DockerOptions { userland_proxy: false, ..DockerOptions::default() })
}

/// The same in another lab, by another Docker.
#[track_caller]
pub fn services_in(lab: LabBuilder, options: &DockerOptions) -> SharedLab {
    SharedLab::take(
        lab,
        options,
        Container::new("services")
            .serve(Service::TcpEcho { port: 7 })
            .serve(Service::UdpEcho { port: 7 })
            .serve(Service::UdpEcho { port: 17 })
            .serve(Service::TcpSink { port: 9 })
            .serve(Service::TcpSource { port: 19, bytes: PAGE })
            .serve(Service::TcpSource { port: 20, bytes: STREAM })
            .publish("8080:7")
            .publish("127.0.0.1:8081:7")
            .publish("8080:7/udp")
            .publish("127.0.0.1:8081:7/udp")
            .publish("8017:17/udp")
            .publish("8009:9")
            .publish("8019:19")
            .publish("8020:20"),
    )
    .or_panic()
}

/// That Windows gets no answer from this TCP port.
#[track_caller]
pub fn assert_hangs(lab: &Lab, port: u16) {
    let answer = windows(lab, port).limit(HANG).echo(HELLO);
    assert_eq!(answer, Err(tcp::Failure::ConnectTimedOut), "Windows to TCP port {port}");
}

/// That Windows gets no answer from this UDP port.
#[track_caller]
pub fn assert_hangs_udp(lab: &Lab, port: u16) {
    let answer = windows_udp(lab, port).limit(HANG).request(HELLO);
    assert_eq!(answer, Err(udp::Failure::TimedOut), "Windows to UDP port {port}");
}

/// That Windows is answered by this TCP echo service.
#[track_caller]
pub fn assert_answers(lab: &Lab, port: u16) {
    assert_eq!(windows(lab, port).echo(HELLO), Ok(HELLO.to_vec()), "Windows to TCP port {port}");
}

/// That Windows is answered by this UDP echo service.
#[track_caller]
pub fn assert_answers_udp(lab: &Lab, port: u16) {
    assert_eq!(windows_udp(lab, port).request(HELLO), Ok(HELLO.to_vec()), "Windows to UDP port {port}");
}

/// Takes the program off the interface, and leaves everything else as it is.
#[track_caller]
pub fn detach(lab: &Lab) {
    let link = pins::path("link");
    let script = format!("rm {link} 2>/dev/null || tc filter del dev loopback0 ingress");
    lab.guest().run("sh", ["-c", &script]).or_panic();
}

#[track_caller]
pub fn exempt(lab: &Lab, verb: &str, ports: &str) {
    ok(lab, &["exempt", verb, ports]);
}

/// What happened on a port: the named field of its line in `status`, 0 if there is no line.
#[track_caller]
pub fn port_packets(lab: &Lab, protocol: &str, port: u16, field: &str) -> u64 {
    let status = lab.status().or_panic();
    let ports = status["ports"].as_array().context("status has no ports").or_panic();
    let line = ports.iter().find(|line| line["port"] == port && line["protocol"] == protocol);
    let Some(line) = line else { return 0 };
    line[field].as_u64().with_context(|| format!("no {field} in {line}")).or_panic()
}

/// Every rule of the guest, without the values of counters.
#[track_caller]
pub fn ruleset(lab: &Lab) -> String {
    lab.guest().run("nft", ["--stateless", "list", "ruleset"]).or_panic().stdout
}

/// Counts packets that come in on `loopback0`, after reassembly and before conntrack.
pub struct Probe<'a>(&'a Lab);

impl<'a> Probe<'a> {
    #[track_caller]
    pub fn new(lab: &'a Lab) -> Self {
        nft(lab, "add table ip probe; add chain ip probe in { type filter hook prerouting priority raw; }");
        Self(lab)
    }

    /// Counts, by this name, what the expression matches.
    #[track_caller]
    pub fn add(&self, name: &str, expression: &str) {
        let rule = format!(
            "add rule ip probe in iifname loopback0 {expression} counter name {name} comment \"wsl-mirror: {name}\""
        );
        nft(self.0, &format!("add counter ip probe {name}; {rule}"));
    }

    /// What was counted by now.
    #[track_caller]
    pub fn packets(&self, name: &str) -> u64 {
        counted(&nft(self.0, &format!("list counter ip probe {name}")))
    }
}

/// The number after the word "packets".
#[track_caller]
pub fn counted(listing: &str) -> u64 {
    let mut words = listing.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let number = words.next().with_context(|| format!("no counter in {listing}")).or_panic();
    number.parse().or_panic()
}

/// What an engine does to a published port, without an engine: a DNAT to a container (which nobody will ask
/// for an answer).
#[track_caller]
pub fn engine_rule(lab: &Lab, protocol: &str, port: u16) {
    nft(
        lab,
        &format!(
            "add table ip engine; \
             add chain ip engine pre {{ type nat hook prerouting priority dstnat; }}; \
             add counter ip engine caught; \
             add rule ip engine pre fib daddr type local {protocol} dport {port} counter name caught \
               dnat to 192.0.2.7:80"
        ),
    );
}

/// How many flows [`engine_rule`] has caught.
#[track_caller]
pub fn caught(lab: &Lab) -> u64 {
    counted(&nft(lab, "list counter ip engine caught"))
}

/// Runs `conntrack -F` every 50 ms for as long as `work` takes; says how often.
#[track_caller]
pub fn while_flushing<T>(lab: &Lab, work: impl FnOnce() -> T) -> (T, u32) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flushing = scope.spawn(|| {
            let mut flushes = 0;
            while !stop.load(Ordering::Relaxed) {
                nat::conntrack_flush(lab.guest()).or_panic();
                flushes += 1;
                thread::sleep(Duration::from_millis(50));
            }
            flushes
        });
        let stopping = RaiseOnDrop(&stop);
        let result = work();
        drop(stopping);
        let flushes = flushing.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        (result, flushes)
    })
}

const CHUNK: usize = 64 * 1024;

/// Waits until `done` of `all` is due.
fn pace(started: Instant, over: Duration, done: u64, all: u64) {
    let share = u32::try_from(done * 1000 / all).unwrap_or(1000);
    thread::sleep((over * share / 1000).saturating_sub(started.elapsed()));
}

/// Sends `bytes` bytes to a sink, evenly over this time, which checks them.
pub fn slow_upload(client: &tcp::Client, bytes: u64, over: Duration) -> Result<()> {
    let mut stream = client.connect()?;
    let started = Instant::now();
    let mut pattern = Pattern::default();
    while pattern.position() < bytes {
        let at = pattern.position();
        pattern
            .write(&mut stream, (CHUNK as u64).min(bytes - at))
            .with_context(|| format!("after {at} bytes"))?;
        pace(started, over, pattern.position(), bytes);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("waiting for the sink's answer")?;
    ensure!(answer == format!("OK {bytes}\n"), "the sink says {answer:?}");
    Ok(())
}

/// Streams `bytes` bytes to an echo service and back, evenly over this time, and checks what comes back.
pub fn slow_echo(client: &tcp::Client, bytes: u64, over: Duration) -> Result<()> {
    let mut stream = client.connect()?;
    let mut sender = stream.try_clone()?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<()> {
            let started = Instant::now();
            let mut pattern = Pattern::default();
            while pattern.position() < bytes {
                let at = pattern.position();
                pattern.write(&mut sender, (CHUNK as u64).min(bytes - at))?;
                pace(started, over, pattern.position(), bytes);
            }
            Ok(sender.shutdown(Shutdown::Write)?)
        });
        read_pattern(&mut stream, bytes, |_| ())?;
        sending.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })
}

/// Takes `bytes` bytes from a source evenly over this time, and checks them.
pub fn slow_download(client: &tcp::Client, bytes: u64, over: Duration) -> Result<()> {
    let mut stream = client.connect()?;
    let started = Instant::now();
    read_pattern(&mut stream, bytes, |received| pace(started, over, received, bytes))
}

/// Takes `bytes` bytes and checks them; `after_each` is told how many there are so far.
fn read_pattern(stream: &mut TcpStream, bytes: u64, mut after_each: impl FnMut(u64)) -> Result<()> {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let at = pattern.position();
        match stream.read(&mut buffer).with_context(|| format!("after {at} bytes"))? {
            0 if at == bytes => return Ok(()),
            0 => bail!("closed after {at} bytes"),
            length => check(&mut pattern, &buffer[..length])?,
        }
        after_each(pattern.position());
    }
}

fn check(pattern: &mut Pattern, bytes: &[u8]) -> Result<()> {
    pattern.check(bytes).map_err(|offset| anyhow::anyhow!("wrong content at byte {offset}"))
}

/// `bpftool` in the guest.
#[track_caller]
pub fn bpftool(lab: &Lab, arguments: &str) -> String {
    let finished =
        run(lab.guest().command("bpftool").args(arguments.split_whitespace()), COMMAND_LIMIT).or_panic();
    finished.success().or_panic().stdout
}

/// Ends a connection by a reset, at once: to close the descriptor may not, since another thread may be about
/// to start a program, which holds a copy of it for a moment.
pub fn reset(stream: &TcpStream) -> Result<()> {
    Ok(rustix::net::connect_unspec(stream)?)
}

/// Reads until the other side closes, then closes this one, at once (see [`reset`]).
pub fn read_to_the_end(stream: &mut TcpStream) -> Result<u64> {
    let bytes = std::io::copy(stream, &mut std::io::sink())?;
    stream.shutdown(Shutdown::Write)?;
    Ok(bytes)
}

/// The next connection, which waits no longer than [`tcp::limit`], neither for itself nor for what is read.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    SockRef::from(listener).set_read_timeout(Some(tcp::limit()))?;
    let (stream, from) = listener.accept().context("waiting for a connection")?;
    stream.set_read_timeout(Some(tcp::limit()))?;
    Ok((stream, from))
}

/// One line both ways over a connection of which both ends are at hand.
pub fn talk(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 5];
    client.write_all(HELLO)?;
    server.read_exact(&mut buffer).context("the server waits for the client")?;
    server.write_all(HELLO)?;
    client.read_exact(&mut buffer).context("the client waits for the server")?;
    Ok(())
}

/// An IPv4 packet with this payload; checksums are right.
pub fn ipv4(protocol: u8, id: u16, fragment: u16, source: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend([127, 0, 0, 1]);
    let sum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// Sends a datagram from Windows in six fragments, in this order, with this identification.
#[track_caller]
pub fn send_in_fragments(nic: &RawSocket, datagram: &[u8], id: u16, order: [usize; 6]) {
    let fragments: Vec<_> = datagram.chunks(1480).collect();
    assert_eq!(fragments.len(), order.len());
    for index in order {
        let more = if index + 1 < fragments.len() { 0x2000 } else { 0 };
        let offset = u16::try_from(index * 1480 / 8).or_panic() | more;
        nic.send(&frame_from_windows(&ipv4(17, id, offset, [127, 0, 0, 1], fragments[index]))).or_panic();
    }
}

/// A UDP datagram without a checksum, which IPv4 allows.
pub fn udp_datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    for field in [from, to, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

/// A bare SYN from 127.0.0.1.
pub fn syn(from: u16, to: u16, sequence: u32) -> Vec<u8> {
    let mut segment = Vec::from(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    // The addresses twice 127.0.0.1, the protocol and the length.
    let sum = checksum(&segment, 2 * (0x7f00 + 0x0001) + 6 + 20);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(6, 1, 0, [127, 0, 0, 1], &segment)
}

/// The internet checksum of these bytes and what was summed up before.
fn checksum(bytes: &[u8], before: u32) -> u16 {
    let mut sum = before;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
