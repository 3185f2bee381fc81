//! The lab against what is known about WSL and Docker, without wsl-mirror: if one of these fails, the model
//! is wrong, and no other scenario means anything.

mod anew;
mod firewall;
mod flows;
mod garbled_ports;
mod ghosts;
mod half_made;
mod ipv6;
mod lan_address;
mod neighbour;
mod never_sent;
mod plain;
mod ports;
mod refusals;

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, GUEST_EPHEMERAL, Gateway, LAN_ADDRESS, Lab, REFLECTION_MAC, Running,
    SCRATCH, Service, SharedLab,
    checks::{self, OrPanic as _},
    loopback, nat, pace,
    process::{COMMAND_LIMIT, run},
    raw::{self, Frame, RawSocket},
    servers, tcp, udp,
};

/// A service of each kind and each way to publish it.
#[track_caller]
fn everything_published(docker: &Docker) -> Running {
    docker
        .run(
            Container::new("everything")
                .serve(Service::TcpEcho { port: 7 })
                .serve(Service::UdpEcho { port: 7 })
                .serve(Service::Http { port: 80 })
                .publish("8080:7")
                .publish("127.0.0.1:8081:7")
                .publish("8080:7/udp")
                .publish("127.0.0.1:8081:7/udp")
                .publish("8082:80"),
        )
        .or_panic()
}

fn tcp_echo(lab: &Lab, windows: bool, port: u16) -> Result<Vec<u8>, tcp::Failure> {
    let from = if windows { lab.windows() } else { lab.guest() };
    tcp::Client::new(from, loopback(port)).echo(b"hello")
}

fn udp_echo(lab: &Lab, windows: bool, port: u16) -> Result<Vec<u8>, udp::Failure> {
    let from = if windows { lab.windows() } else { lab.guest() };
    udp::Client::new(from, loopback(port)).request(b"hello")
}

const HELLO: &[u8] = b"hello";

/// One line both ways over a connection of which both ends are at hand.
fn talk(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; HELLO.len()];
    client.write_all(HELLO)?;
    server.read_exact(&mut buffer)?;
    server.write_all(HELLO)?;
    client.read_exact(&mut buffer)
}

#[test]
fn docker_with_proxy_serves_linux_and_hangs_for_windows() {
    for gateway in [Gateway::Wsl28, Gateway::Wsl29] {
        let lab = Lab::builder().gateway(gateway).build().unwrap();
        let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
        everything_published(&docker);
        for port in [8080, 8081] {
            assert_eq!(tcp_echo(&lab, false, port), Ok(HELLO.to_vec()), "Linux, TCP {port}, {gateway:?}");
            assert_eq!(udp_echo(&lab, false, port), Ok(HELLO.to_vec()), "Linux, UDP {port}, {gateway:?}");
            let before = nat::dnat_packets(lab.guest(), "tcp", port).unwrap();
            assert_eq!(
                tcp_echo(&lab, true, port),
                Err(tcp::Failure::ConnectTimedOut),
                "Windows, TCP {port}, {gateway:?}"
            );
            assert_eq!(
                udp_echo(&lab, true, port),
                Err(udp::Failure::TimedOut),
                "Windows, UDP {port}, {gateway:?}"
            );
            assert!(
                nat::dnat_packets(lab.guest(), "tcp", port).unwrap() > before,
                "it is Docker's DNAT that does it"
            );
        }
        let page = tcp::Client::new(lab.guest(), loopback(8082)).http_get("/");
        assert_eq!(page, Ok(Running::PAGE.into()), "Linux, HTTP");
    }
}

#[test]
fn docker_without_proxy_serves_windows_and_fails_for_linux() {
    let lab = Lab::builder().build().unwrap();
    let docker =
        Docker::start(&lab, &DockerOptions { userland_proxy: false, ..DockerOptions::default() }).unwrap();
    everything_published(&docker);
    let fails_for_linux = lab.is_at_least((6, 7)).unwrap();
    for port in [8080, 8081] {
        assert_eq!(tcp_echo(&lab, true, port), Ok(HELLO.to_vec()), "Windows, TCP {port}");
        assert_eq!(udp_echo(&lab, true, port), Ok(HELLO.to_vec()), "Windows, UDP {port}");
        if fails_for_linux {
            assert!(tcp_echo(&lab, false, port).is_err(), "Linux, TCP {port}");
            assert!(udp_echo(&lab, false, port).is_err(), "Linux, UDP {port}");
        } else {
            // Seen on 6.1; of UDP there nothing is known.
            assert_eq!(tcp_echo(&lab, false, port), Ok(HELLO.to_vec()), "Linux before 6.7, TCP {port}");
        }
    }
}

#[test]
fn every_road_without_an_engine_works() {
    for gateway in [Gateway::Wsl28, Gateway::Wsl29] {
        let lab = Lab::builder().gateway(gateway).build().unwrap();
        let route = lab.guest().run("ip", ["route", "show", "table", "127"]).unwrap().stdout;
        assert!(route.contains(&gateway.address().to_string()), "table 127: {route}");

        let _servers = [
            servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8100)).unwrap(),
            servers::udp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8100)).unwrap(),
            servers::tcp_echo(lab.windows(), (Ipv4Addr::LOCALHOST, 9100)).unwrap(),
            servers::udp_echo(lab.windows(), (Ipv4Addr::LOCALHOST, 9100)).unwrap(),
        ];
        for (windows, port, road) in [
            (true, 8100, "Windows to Linux"),
            (false, 8100, "Linux to Linux"),
            (false, 9100, "Linux to Windows"),
        ] {
            assert_eq!(tcp_echo(&lab, windows, port), Ok(HELLO.to_vec()), "{road}, TCP");
            assert_eq!(udp_echo(&lab, windows, port), Ok(HELLO.to_vec()), "{road}, UDP");
        }
        assert_eq!(tcp_echo(&lab, true, 8199), Err(tcp::Failure::Refused), "nobody listens there");
        let _on_windows = servers::tcp_echo(lab.windows(), loopback(9101)).unwrap();
        assert_eq!(tcp_echo(&lab, true, 9101), Ok(HELLO.to_vec()), "Windows to Windows");
    }
}

#[test]
fn the_shared_lan_address_crosses_only_with_host_address_loopback() {
    for on in [false, true] {
        let lab = Lab::builder().host_address_loopback(on).build().unwrap();
        let _server = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8100)).unwrap();
        let sniffer = RawSocket::open(lab.guest(), "eth0").unwrap();
        let from_linux = tcp::Client::new(lab.guest(), (LAN_ADDRESS, 8100)).echo(HELLO);
        assert_eq!(from_linux, Ok(HELLO.to_vec()), "Linux to Linux, {on}");
        let travelled =
            !sniffer.collect(Duration::from_millis(50), |frame| is_tcp_of(frame, 8100)).unwrap().is_empty();
        assert_eq!(travelled, on, "by eth0 and Windows, or by lo");
        let windows = tcp::Client::new(lab.windows(), (LAN_ADDRESS, 8100)).echo(HELLO);
        assert_eq!(windows.is_ok(), on, "Windows to Linux, {on}: {windows:?}");
    }
}

/// Whether a frame belongs to a TCP connection to `port`, in either direction.
fn is_tcp_of(frame: &Frame, port: u16) -> bool {
    matches!(frame.ports(), Some((6, from, to)) if from == port || to == port)
}

#[test]
fn linux_to_linux_leaves_by_loopback0_and_is_reflected_by_windows() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let sniffer = RawSocket::open(lab.guest(), "loopback0").unwrap();
    let on_lo = RawSocket::open(lab.guest(), "lo").unwrap();
    assert_eq!(tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec()));

    let frames = sniffer.collect(Duration::from_millis(100), |frame| is_tcp_of(frame, 8100)).unwrap();
    let (out, back): (Vec<_>, Vec<_>) = frames.iter().partition(|frame| frame.outgoing);
    // SYN, SYN-ACK, ACK, request, reply, and what acknowledges and closes.
    assert!(out.len() >= 7, "only {} frames went out", out.len());
    assert_eq!(out.len(), back.len(), "each of them came back");
    assert!(back.iter().all(|frame| frame.bytes[6..12] == REFLECTION_MAC), "from Windows");
    assert!(
        on_lo.collect(Duration::ZERO, |frame| is_tcp_of(frame, 8100)).unwrap().is_empty(),
        "nothing goes by lo"
    );

    let client =
        out.iter().filter_map(|frame| frame.ports()).find(|ports| ports.2 == 8100).map(|ports| ports.1);
    assert!(
        client.is_some_and(|port| GUEST_EPHEMERAL.contains(&port)),
        "{client:?} is a port leased from Windows"
    );
}

#[test]
fn windows_traffic_comes_in_by_loopback0_with_loopback_addresses() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let sniffer = RawSocket::open(lab.guest(), "loopback0").unwrap();
    let client = tcp::Client::new(lab.windows(), loopback(8100)).from_port(50_000).reset_on_close();
    assert_eq!(client.echo(HELLO), Ok(HELLO.to_vec()));
    // The reset on closing left nothing in TIME_WAIT, here or there: the same port at once.
    assert_eq!(client.echo(HELLO), Ok(HELLO.to_vec()));
    let frames = sniffer.collect(Duration::from_millis(100), |frame| is_tcp_of(frame, 8100)).unwrap();
    let first = frames.first().and_then(Frame::ipv4).map(|packet| packet[12..20].to_vec());
    assert_eq!(first, Some(vec![127, 0, 0, 1, 127, 0, 0, 1]));
    assert_eq!(frames.first().and_then(Frame::ports), Some((6, 50_000, 8100)));
}

#[test]
fn a_new_loopback0_has_another_ifindex_and_carries_everything_again() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).unwrap();
    let ifindex =
        || lab.guest().enter(|| std::fs::read_to_string("/sys/class/net/loopback0/ifindex")).unwrap();
    let before = ifindex();
    let link_before = lab.guest().run("ip", ["-br", "link", "show", "loopback0"]).unwrap().stdout;
    lab.remove_loopback0().unwrap();
    assert!(tcp_echo(&lab, true, 8100).is_err(), "without loopback0");
    lab.add_loopback0().unwrap();
    lab.recreate_loopback0().unwrap();
    assert_ne!(ifindex(), before);
    let mac = |link: &str| link.split_whitespace().nth(2).map(str::to_owned);
    let link_after = lab.guest().run("ip", ["-br", "link", "show", "loopback0"]).unwrap().stdout;
    assert_eq!(mac(&link_after), mac(&link_before), "the MAC stays");
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()), "Windows to Linux");
    assert_eq!(tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec()), "Linux to Linux");
    assert_eq!(tcp_echo(&lab, false, 9100), Ok(HELLO.to_vec()), "Linux to Windows");
}

#[test]
fn loopback0_can_come_late() {
    let lab = Lab::builder().loopback0(false).build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert!(tcp_echo(&lab, true, 8100).is_err());
    lab.add_loopback0().unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
    assert_eq!(tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec()));
}

#[test]
fn services_in_containers_carry_streams_whole_and_thousands_of_connections() {
    const BYTES: u64 = 32 << 20;
    let lab = Lab::builder().build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    let container = docker
        .run(
            Container::new("streams")
                .serve(Service::TcpEcho { port: 7 })
                .serve(Service::TcpSink { port: 9 })
                .serve(Service::TcpSource { port: 19, bytes: BYTES })
                .serve(Service::HttpWithFile { port: 80, bytes: 1 << 20 })
                .publish("8007:7")
                .publish("8009:9")
                .publish("8019:19"),
        )
        .unwrap();
    // Through docker-proxy and the hairpin.
    let client = |port| tcp::Client::new(lab.guest(), loopback(port));
    client(8007).echo_stream(BYTES).unwrap();
    client(8009).upload(BYTES).unwrap();
    client(8019).download(BYTES).unwrap();
    let file = tcp::Client::new(lab.guest(), (container.address, 80)).http_get("/pattern").unwrap();
    assert_eq!(file.len(), 1 << 20);
    let in_use = client(8007).keep_alive(Duration::from_millis(1)).unwrap();
    for _ in 0..1000 {
        client(8007).echo(HELLO).unwrap();
    }
    let report = in_use.stop();
    assert_eq!(report.failure, None);
    assert!(report.exchanges > pace::at_least(100), "{report:?}");
    // A download that ends early, or has more, is no success.
    assert_eq!(client(8019).download(BYTES + 1), Err(tcp::Failure::ClosedEarly { received: BYTES }));
    assert!(matches!(client(8019).download(BYTES - 1), Err(tcp::Failure::Corrupt { .. })));
}

#[test]
fn containers_stop_start_and_outlive_nothing() {
    let lab = Lab::builder().ghosts(false).build().unwrap();
    let mut docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    let echo =
        docker.run(Container::new("echo").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
    docker.stop(&echo).unwrap();
    assert_eq!(tcp_echo(&lab, false, 8080), Err(tcp::Failure::Refused), "stopped");
    let echo = docker.start_again(&echo).unwrap();
    assert_eq!(tcp_echo(&lab, false, 8080), Ok(HELLO.to_vec()), "started again");
    let echo = docker.restart(&echo).unwrap();
    docker.restart_daemon().unwrap();
    let echo = docker.start_again(&echo).unwrap();
    assert_eq!(tcp_echo(&lab, false, 8080), Ok(HELLO.to_vec()), "after a restart of the daemon");
    docker.remove(&echo).unwrap();
    assert!(nat::dnat_packets(lab.guest(), "tcp", 8080).is_err(), "its rule is gone");
}

#[test]
fn conntrack_is_listed_and_flushed() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::udp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(udp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
    let flow = ["udp", "src=127.0.0.1", "dport=8100"];
    assert_eq!(nat::conntrack_with(lab.guest(), &flow).unwrap().len(), 1);
    nat::conntrack_flush(lab.guest()).unwrap();
    assert!(nat::conntrack_with(lab.guest(), &flow).unwrap().is_empty());
}

#[test]
fn a_frame_of_our_own_making_reaches_the_guest() {
    let lab = Lab::builder().build().unwrap();
    let sniffer = RawSocket::open(lab.guest(), "loopback0").unwrap();
    let frame = raw::frame_from_windows(&[0x45, 0xff]);
    RawSocket::open(lab.windows(), "winlo0").unwrap().send(&frame).unwrap();
    let seen = sniffer.collect(Duration::from_millis(200), |seen| seen.bytes.starts_with(&frame)).unwrap();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].outgoing);
}

#[test]
fn each_distribution_has_its_own_files_and_bpffs_but_one_network() {
    let lab = Lab::builder().build().unwrap();
    let other = lab.another_distribution().unwrap();
    let write = |path: &str| lab.guest().enter(|| std::fs::write(path, "guest"));
    for path in ["/etc/wsl-mirror.toml", "/run/wsl-mirror-test", "/var/lib/wsl-mirror-test"] {
        write(path).unwrap();
        assert!(!std::fs::exists(path).unwrap(), "{path} is not the machine's");
        assert!(!other.enter(|| std::fs::exists(path)).unwrap(), "{path} is not the other distribution's");
    }
    lab.guest().enter(|| std::fs::create_dir("/sys/fs/bpf/one")).unwrap();
    assert!(!other.enter(|| std::fs::exists("/sys/fs/bpf/one")).unwrap());
    let mode = lab.guest().enter(|| std::fs::metadata("/sys/fs/bpf")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(other.enter(|| std::fs::exists("/sys/class/net/loopback0")).unwrap());
    assert!(!std::fs::exists(SCRATCH).unwrap(), "the scratch directory is seen by nobody else");

    let without = Lab::builder().bpffs(false).build().unwrap();
    assert!(without.guest().enter(|| std::fs::create_dir("/sys/fs/bpf/one")).is_err());
}

#[test]
fn lab_and_engine_go_in_any_order() {
    let lab = Lab::builder().build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    let echo = docker.run(Container::new("echo").serve(Service::TcpEcho { port: 7 })).unwrap();
    let guest = lab.guest().clone();
    drop(lab);
    assert_eq!(tcp::Client::new(&guest, (echo.address, 7)).echo(HELLO), Ok(HELLO.to_vec()));
    let started = Instant::now();
    drop(docker);
    assert!(started.elapsed() < pace::limit(Duration::from_secs(2)), "{:?}", started.elapsed());
    println!("dockerd and all of its were gone after {:?}", started.elapsed());
}

#[test]
fn labs_run_side_by_side_in_one_process() {
    std::thread::scope(|scope| {
        let one = || {
            let lab = Lab::builder().build().unwrap();
            let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
            docker
                .run(Container::new("same-name").serve(Service::TcpEcho { port: 7 }).publish("8080:7"))
                .unwrap();
            assert_eq!(tcp_echo(&lab, false, 8080), Ok(HELLO.to_vec()));
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        }
    });
}

#[test]
fn the_guest_has_a_wslinfo_unless_told_otherwise() {
    let lab = Lab::builder().build().unwrap();
    let mode = lab.guest().run("wslinfo", ["--networking-mode"]).unwrap().stdout;
    assert_eq!(mode.trim(), "mirrored");
    let without = Lab::builder().wslinfo(false).build().unwrap();
    assert!(without.guest().run("wslinfo", ["--networking-mode"]).is_err());
}

/// The machine's own files stand for another Linux here.
#[test]
fn docker_of_another_root_runs_too() {
    let lab = Lab::builder().build().unwrap();
    let docker =
        Docker::start(&lab, &DockerOptions { root: Some("/".into()), ..DockerOptions::default() }).unwrap();
    docker.run(Container::new("echo").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
    assert_eq!(tcp_echo(&lab, false, 8080), Ok(HELLO.to_vec()));
}

#[track_caller]
fn shared() -> SharedLab {
    let container = Container::new("echo").serve(Service::TcpEcho { port: 7 }).publish("8080:7");
    SharedLab::take(Lab::builder(), &DockerOptions::default(), container).or_panic()
}

#[test]
fn a_lab_is_shared_only_as_long_as_it_cannot_be_told_from_a_new_one() {
    let mut lab = shared();
    let guest = lab.guest().clone();
    let sh = |script: &str| drop(guest.run("sh", ["-ec", script]).unwrap());
    // What tests leave lying about is removed.
    sh("nft 'add table ip probe; add chain ip probe in { type filter hook input priority 0; drop; }'");
    sh(&format!("echo text >{SCRATCH}/a-file"));
    assert_eq!(tcp_echo(&lab, false, 8080), Err(tcp::Failure::ConnectTimedOut), "the table drops everything");
    lab.tidy_up().unwrap();
    assert_eq!(tcp_echo(&lab, false, 8080), Ok(HELLO.to_vec()));
    lab.tidy_up().unwrap();
    assert!(!guest.enter(|| std::fs::exists(format!("{SCRATCH}/a-file"))).unwrap());
    // Everything else has to be taken back by whoever has done it.
    let changes = [
        ("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", "ip_forward = 0"),
        (
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1",
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0",
            "be_liberal = 1",
        ),
        ("ip rule add pref 7 lookup 99", "ip rule del pref 7", "lookup 99"),
        ("ip route add 192.0.2.1/32 dev eth0 table 99", "ip route del 192.0.2.1/32 table 99", "192.0.2.1"),
        ("ip addr add 192.0.2.2/32 dev lo", "ip addr del 192.0.2.2/32 dev lo", "192.0.2.2"),
        ("ip link add more type bridge", "ip link del more", ": more: "),
        ("ip link set eth0 gso_max_segs 7", "ip link set eth0 gso_max_segs 65535", "gso_max_segs 7"),
        ("tc qdisc add dev loopback0 clsact", "tc qdisc del dev loopback0 clsact", "clsact"),
        ("mkdir /sys/fs/bpf/theirs", "rmdir /sys/fs/bpf/theirs", "theirs"),
        ("echo >/run/more", "rm /run/more", "/run/more"),
        ("echo >/etc/wsl-mirror.toml", "rm /etc/wsl-mirror.toml", "wsl-mirror.toml"),
        ("mount -n -t tmpfs more /mnt", "umount -n /mnt; rm -rf /run/mount", "/mnt"),
    ];
    let found =
        |lab: &mut SharedLab| lab.tidy_up().err().map(|error| format!("{error:#}")).unwrap_or_default();
    sh(&changes.map(|(change, ..)| change).join("\n"));
    let all = found(&mut lab);
    for (change, _, word) in changes {
        assert!(all.contains(word), "after `{change}`: {all}");
    }
    sh(&changes.map(|(_, take_back, _)| take_back).join("\n"));
    lab.tidy_up().expect("when all was taken back");
    sh("nft add chain ip nat MORE");
    assert!(found(&mut lab).contains("the ruleset is another one"), "a chain in a table that was there");
    sh("nft delete chain ip nat MORE");
    lab.tidy_up().expect("without the chain");
    let listening = servers::tcp_echo(&guest, loopback(8100)).unwrap();
    assert!(lab.tidy_up().is_err(), "somebody listens");
    drop(listening);
    lab.tidy_up().expect("when nobody listens any more");
    let connection = tcp::Client::new(lab.windows(), loopback(8100));
    let server = servers::tcp_echo(&guest, loopback(8100)).unwrap();
    let mut connection = connection.connect().unwrap();
    tcp::exchange(&mut connection, HELLO).unwrap();
    drop(server);
    assert!(lab.tidy_up().is_err(), "a connection is open");
    drop(connection);
    lab.tidy_up().expect("when it is closed");
}

/// A lab of the pool with this container, which no other test orders.
#[track_caller]
fn pooled(name: &str) -> SharedLab {
    let container = Container::new(name).serve(Service::TcpEcho { port: 7 });
    SharedLab::take(Lab::builder(), &DockerOptions::default(), container).or_panic()
}

/// The lab's identity: the inode of its guest's network namespace.
#[track_caller]
fn id(lab: &Lab) -> u64 {
    rustix::fs::fstat(lab.guest().netns_fd()).or_panic().st_ino
}

#[test]
fn a_lab_is_shared_after_a_test_that_passes() {
    let lab = pooled("passes");
    let first = id(&lab);
    drop(lab);
    assert_eq!(id(&pooled("passes")), first);
}

#[test]
fn a_lab_is_not_shared_after_a_test_that_panics() {
    let lab = pooled("panics");
    let first = id(&lab);
    // Held: the kernel would give the inode to another namespace.
    let _held = lab.guest().clone();
    let test = std::thread::spawn(move || {
        let _lab = lab;
        std::panic::resume_unwind(Box::new("the test fails"));
    });
    assert!(test.join().is_err());
    assert_ne!(id(&pooled("panics")), first);
}

#[test]
fn a_lab_that_differs_is_not_shared_although_its_test_passes() {
    let lab = pooled("differs");
    let first = id(&lab);
    let _held = lab.guest().clone();
    lab.guest().run("ip", ["rule", "add", "pref", "7", "lookup", "99"]).unwrap();
    drop(lab);
    assert_ne!(id(&pooled("differs")), first);
}

/// Set for the process in which [`a_check_to_fail`] fails.
const FAIL: &str = "WSL_MIRROR_LAB_FAIL";

#[test]
#[ignore = "another test runs it, in a process of its own"]
fn a_check_to_fail() {
    if std::env::var_os(FAIL).is_none() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    println!("called at {}:{}:", file!(), line!() + 1);
    checks::sh(&lab, "echo because >&2; false");
}

#[test]
fn a_failed_check_panics_at_its_callers_line() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_check_to_fail", "--ignored", "--nocapture"]).env(FAIL, "1");
    let failed = run(&mut command, COMMAND_LIMIT).unwrap();
    let (_, place) = failed.stdout.split_once("called at ").unwrap();
    let place = place.lines().next().unwrap();
    assert!(!failed.status.success() && failed.stderr.contains(place), "{failed}");
    assert!(failed.stderr.contains("because"), "{failed}");
}

#[test]
fn threads_beside_a_check_end_when_it_panics() {
    let done = AtomicBool::new(false);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        std::thread::scope(|scope| {
            let _raise = checks::RaiseOnDrop(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            });
            std::panic::resume_unwind(Box::new("the check fails"));
        });
    }));
    assert!(panicked.is_err());
}

/// Not a promise, but whoever makes the lab slow shall notice: it is half a second on two idle cores. The best
/// of three, for others may be using them.
#[test]
fn the_first_container_answers_within_three_seconds() {
    let mut best = Duration::MAX;
    for _ in 0..if pace::is_emulated() { 1 } else { 3 } {
        let started = Instant::now();
        let lab = Lab::builder().build().unwrap();
        let lab_took = started.elapsed();
        let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
        let docker_took = started.elapsed();
        docker.run(Container::new("first").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
        best = best.min(started.elapsed());
        println!(
            "lab {lab_took:?}, dockerd and image up {docker_took:?}, first container answers {:?}",
            started.elapsed()
        );
    }
    assert!(best < Duration::from_secs(3) || pace::is_emulated(), "{best:?}");
}
