//! What the scenarios share: the commands, the counters, an engine's rule without an engine, transfers, frames.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::SockRef;
use wsl_mirror_core::abi::DEFAULT_ALIAS;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, LabBuilder, Service, SharedLab,
    checks::{HELLO, OrPanic as _, RaiseOnDrop, nft, ok, sh, wait_until, windows, windows_udp},
    checksums::{checksum, pseudo_header},
    loopback, nat, pins,
    process::{COMMAND_LIMIT, run},
    raw::{Frame, RawSocket, frame_from_windows},
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

/// A side of `loopback0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

/// Detaches the program of one side, and leaves everything else as it is.
#[track_caller]
pub fn detach(lab: &Lab, side: Side) {
    let (link, hook) = match side {
        Side::Ingress => (pins::path("link"), "ingress"),
        Side::Egress => (pins::path("link_egress"), "egress"),
    };
    sh(lab, &format!("rm {link} 2>/dev/null || tc filter del dev loopback0 {hook}"));
    // The kernel frees a link without a pin a moment later.
    wait_until("the program to be detached", Duration::from_secs(2), || {
        !bpftool(lab, "net show dev loopback0").contains(&format!("/{hook} "))
    });
}

/// An entry's words for the alias as the destination.
pub fn on_alias() -> String {
    format!("dst={}", Ipv4Addr::from(DEFAULT_ALIAS))
}

/// Docker 28's rule about a port that is published on 127.0.0.1: it drops what does not come on `lo`.
#[track_caller]
pub fn raw_drop(lab: &Lab, protocol: &str, port: u16) {
    let rule = format!(
        "iptables -w 5 -t raw -A PREROUTING -p {protocol} -d 127.0.0.1 --dport {port} ! -i lo -j DROP"
    );
    sh(lab, &rule);
}

/// Watches the interfaces on which no packet may ever have the alias.
pub struct Watch {
    sniffers: Vec<(&'static str, RawSocket)>,
    alias: [u8; 4],
}

impl Watch {
    /// From now on.
    #[track_caller]
    pub fn start(lab: &Lab) -> Self {
        let bridge = lab.guest().enter(|| std::fs::exists("/sys/class/net/docker0")).or_panic();
        let guest = ["eth0", "loopback0", "docker0"].into_iter().filter(|nic| *nic != "docker0" || bridge);
        let sniffers = guest
            .map(|nic| (nic, RawSocket::open(lab.guest(), nic).or_panic()))
            .chain(["winlo0", "winlan0"].map(|nic| (nic, RawSocket::open(lab.windows(), nic).or_panic())))
            .collect();
        Self { sniffers, alias: DEFAULT_ALIAS }
    }

    /// The frames with the alias since the last look, by interface.
    #[track_caller]
    pub fn with_alias(&self) -> Vec<(&'static str, Frame)> {
        let mut seen = Vec::new();
        for (nic, sniffer) in &self.sniffers {
            // An ARP request for the alias would be a packet that is about to leave, too.
            let has_alias = |frame: &Frame| match frame.ipv4() {
                Some(packet) => {
                    packet.get(12..16) == Some(&self.alias) || packet.get(16..20) == Some(&self.alias)
                }
                None => frame.bytes.windows(4).any(|window| window == self.alias),
            };
            let frames = sniffer.collect(Duration::from_millis(20), has_alias).or_panic();
            seen.extend(frames.into_iter().map(|frame| (*nic, frame)));
        }
        seen
    }

    /// That none of them had it.
    #[track_caller]
    pub fn never_saw_the_alias(&self, when: &str) {
        let seen = self.with_alias();
        assert!(seen.is_empty(), "{when}: {} frames, first of all {:x?}", seen.len(), seen[0]);
    }
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

/// Runs `conntrack -F` at this interval for as long as `work` takes; says how often.
#[track_caller]
pub fn while_flushing<T>(lab: &Lab, interval: Duration, work: impl FnOnce() -> T) -> (T, u32) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flushing = scope.spawn(|| {
            let mut flushes = 0;
            while !stop.load(Ordering::Relaxed) {
                nat::conntrack_flush(lab.guest()).or_panic();
                flushes += 1;
                thread::sleep(interval);
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

/// Takes `bytes` bytes from a source and checks them. Calls `halfway` when half of them are there.
pub fn download(client: &tcp::Client, bytes: u64, halfway: impl FnOnce()) -> Result<()> {
    let mut stream = client.connect()?;
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut halfway = Some(halfway);
    loop {
        let at = pattern.position();
        if at >= bytes / 2
            && let Some(halfway) = halfway.take()
        {
            halfway();
        }
        match stream.read(&mut buffer).with_context(|| format!("after {at} bytes"))? {
            0 if at == bytes => return Ok(()),
            0 => bail!("closed after {at} bytes"),
            length => pattern
                .check(&buffer[..length])
                .map_err(|offset| anyhow::anyhow!("wrong content at byte {offset}"))?,
        }
    }
}

/// Sends `bytes` bytes to a sink, which checks them. Calls `halfway` when half of them are sent.
pub fn upload(client: &tcp::Client, bytes: u64, halfway: impl FnOnce()) -> Result<()> {
    let mut stream = client.connect()?;
    let mut pattern = Pattern::default();
    pattern.write(&mut stream, bytes / 2).context("in the first half")?;
    halfway();
    pattern.write(&mut stream, bytes - bytes / 2).context("in the second half")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("waiting for the sink's answer")?;
    ensure!(answer == format!("OK {bytes}\n"), "the sink says {answer:?}");
    Ok(())
}

/// Publishes port 8300 of a container's port 7, TCP and UDP, as CNI's portmap does: a DNAT, and a masquerade for what
/// comes from 127.0.0.1.
#[track_caller]
pub fn publish_by_masquerade(lab: &Lab, address: Ipv4Addr) {
    lab.guest().set_sysctls([("net/ipv4/conf/docker0/route_localnet", "1")]).or_panic();
    lab.guest()
        .run("iptables", ["-w", "5", "-I", "FORWARD", "-d", &address.to_string(), "-j", "ACCEPT"])
        .or_panic();
    let ruleset = format!(
        "add table ip portmap; \
         add chain ip portmap pre {{ type nat hook prerouting priority dstnat; }}; \
         add chain ip portmap post {{ type nat hook postrouting priority srcnat; }}; \
         add rule ip portmap pre fib daddr type local tcp dport 8300 dnat to {address}:7; \
         add rule ip portmap pre fib daddr type local udp dport 8300 dnat to {address}:7; \
         add rule ip portmap post ip saddr 127.0.0.1 ip daddr {address} masquerade"
    );
    nft(lab, &ruleset);
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

/// A datagram's fragments as Windows sends them, with this identification.
pub fn fragments(datagram: &[u8], id: u16) -> Vec<Vec<u8>> {
    let count = datagram.len().div_ceil(1480);
    let fragment = |(index, part): (usize, &[u8])| {
        let more = if index + 1 < count { 0x2000 } else { 0 };
        let offset = u16::try_from(index * 1480 / 8).unwrap_or(u16::MAX) | more;
        frame_from_windows(&ipv4(17, id, offset, [127, 0, 0, 1], part))
    };
    datagram.chunks(1480).enumerate().map(fragment).collect()
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
    let sum = checksum(&segment, pseudo_header([127, 0, 0, 1], [127, 0, 0, 1], 6, 20));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(6, 1, 0, [127, 0, 0, 1], &segment)
}

/// A datagram to this port, and an answer back.
#[track_caller]
pub fn there_and_back(client: &UdpSocket, server: &UdpSocket, port: u16, payload: &[u8], answer: &[u8]) {
    let mut buffer = vec![0; 65_536];
    client.send_to(payload, loopback(port)).or_panic();
    let (length, from) = server.recv_from(&mut buffer).or_panic();
    assert!(&buffer[..length] == payload, "{length} bytes reached the server");
    server.send_to(answer, from).or_panic();
    let (length, _) = client.recv_from(&mut buffer).or_panic();
    assert!(&buffer[..length] == answer, "{length} bytes reached the client");
}
