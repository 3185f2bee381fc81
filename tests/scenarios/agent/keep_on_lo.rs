//! Connections within Linux stay on `lo`: the policy route rules as the agent keeps them, hands them on and removes them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::Signal;
use socket2::{SockAddr, Socket};
use wsl_mirror_lab::{
    GUEST_EPHEMERAL, HalfMade, Lab, SCRATCH,
    checks::{HELLO, OrPanic as _, ok, sh, status},
    clients::Clients,
    loopback, pace,
    process::Background,
    servers, tcp, udp,
};

use crate::guest::{Agent, LIMIT, soon};

/// A port on which a Linux program listens.
const PORT: u16 = 8100;
/// The bit of `SO_MARK` if nobody else has it.
const BIT: u32 = 0x40;

/// The rules that keep connections on `lo`, in the kernel's order.
#[track_caller]
fn rules(lab: &Lab) -> String {
    sh(lab, "ip -4 rule | grep 'to 127.0.0.1 .*proto 119' || true")
}

/// Whether the three rules are there, for this block, and the hooks go by them.
#[track_caller]
fn is_kept(lab: &Lab) -> bool {
    let (leased, rules) = (lab.leased(), rules(lab));
    let ports = format!("dport {}-{}", leased.start(), leased.end());
    let report = status(lab).0;
    rules.lines().count() == 3
        && rules.matches(&ports).count() == 2
        && report["keep_on_lo"]["kept"] == true
        && report["keep_on_lo"]["leased"] == serde_json::json!([leased.start(), leased.end()])
}

/// What a Linux program gets from a port.
fn from_linux(clients: &Clients, port: u16) -> io::Result<Vec<u8>> {
    let mut stream = clients.connect(loopback(port))?;
    tcp::exchange(&mut stream, HELLO).map_err(|failure| io::Error::other(format!("{failure:?}")))
}

/// What a Windows program gets from a port; it comes from this port.
fn from_windows(lab: &Lab, from: u16, port: u16) -> Result<Vec<u8>, tcp::Failure> {
    tcp::Client::new(lab.windows(), loopback(port)).from_port(from).reset_on_close().echo(HELLO)
}

/// How many IPv4 packets have left by `loopback0`.
#[track_caller]
fn sent_to_windows(lab: &Lab) -> u64 {
    let counter = sh(lab, "nft list counter ip lab_sent sent");
    let packets = counter.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).context("no counter").or_panic()
}

/// Counts IPv4 packets that leave by `loopback0` from now on. The interface counts what IPv6 sends by itself, too.
#[track_caller]
fn count_sent(lab: &Lab) {
    sh(
        lab,
        "nft add table ip lab_sent
         nft add counter ip lab_sent sent
         nft 'add chain ip lab_sent c { type filter hook postrouting priority 300; }'
         nft 'add rule ip lab_sent c oifname loopback0 counter name sent'",
    );
}

/// Whether a Linux program is answered, and no packet leaves for Windows.
#[track_caller]
fn stays_on_lo(lab: &Lab, clients: &Clients) -> bool {
    let before = sent_to_windows(lab);
    assert_eq!(from_linux(clients, PORT).or_panic(), HELLO);
    sent_to_windows(lab) == before
}

/// A lab with a Linux server, and Linux clients that the hooks see.
#[track_caller]
fn world() -> (Lab, servers::Server, Clients) {
    world_of(Lab::builder().build().or_panic())
}

#[track_caller]
fn world_of(lab: Lab) -> (Lab, servers::Server, Clients) {
    count_sent(&lab);
    let server = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, PORT)).or_panic();
    let clients = Clients::new(&lab).or_panic();
    (lab, server, clients)
}

/// The agent as systemd starts it: it leaves the rules to the unit when it ends.
fn by_systemd(lab: &Lab) -> Agent {
    let mut command = lab.wsl_mirror_command(&["run"]).or_panic();
    Agent::started(command.env("NOTIFY_SOCKET", format!("{SCRATCH}/nobody")), "steering loopback0")
}

/// Every change of policy route rules from now on.
struct Monitor(Background);

impl Monitor {
    #[track_caller]
    fn start(lab: &Lab) -> Self {
        let monitor =
            Self(Background::spawn(lab.guest().command("ip").args(["-4", "monitor", "rule"])).or_panic());
        // It says nothing of itself when it listens.
        soon("the monitor", || {
            sh(lab, "ip rule add pref 9 blackhole; ip rule del pref 9 blackhole");
            monitor.0.output().contains("blackhole")
        });
        monitor
    }

    /// The rules of ours that went away.
    fn gone(&self) -> Vec<String> {
        let lines = self.0.output();
        let gone = lines.lines().filter(|line| line.starts_with("Deleted") && line.contains("to 127.0.0.1"));
        gone.map(str::to_owned).collect()
    }
}

#[test]
fn connections_within_linux_stay_on_lo_with_run_alone() {
    let (lab, _server, clients) = world();
    assert!(!stays_on_lo(&lab, &clients), "without wsl-mirror");
    ok(&lab, &["load"]);
    assert!(!stays_on_lo(&lab, &clients), "with load alone");
    assert_eq!(rules(&lab), "");
    let said = status(&lab).0["keep_on_lo"]["obstacle"].to_string();
    assert!(said.contains("`wsl-mirror run`"), "{said}");
    let agent = Agent::start(&lab, "steering loopback0");
    assert!(is_kept(&lab), "{}", rules(&lab));
    assert!(stays_on_lo(&lab, &clients), "with run");
    agent.end();
    assert_eq!(rules(&lab), "");
    assert!(!stays_on_lo(&lab, &clients), "without an agent");
    let (report, _) = status(&lab);
    assert_eq!(report["keep_on_lo"]["kept"], false, "{report}");
}

#[test]
fn linux_reaches_listeners_on_ports_that_windows_never_sends() {
    let lab = Lab::builder().ignored_ports([8080]).build().unwrap();
    count_sent(&lab);
    let ports = [53, 5004, 8080];
    let _servers = ports.map(|port| servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, port)).unwrap());
    let _names = servers::udp_echo(lab.guest(), loopback(53)).unwrap();
    let clients = Clients::new(&lab).unwrap();
    let query = || {
        let socket = clients.udp().or_panic();
        socket.connect(&SockAddr::from(loopback(53))).or_panic();
        let answer = udp::exchange(&socket.into(), HELLO);
        answer.ok()
    };
    for port in ports {
        assert!(from_linux(&clients, port).is_err(), "{port} without wsl-mirror");
    }
    assert_eq!(query(), None, "53/udp without wsl-mirror");
    let _agent = Agent::start(&lab, "steering loopback0");
    let before = sent_to_windows(&lab);
    for port in ports {
        assert_eq!(from_linux(&clients, port).unwrap(), HELLO, "{port}");
    }
    assert_eq!(query(), Some(HELLO.to_vec()), "53/udp");
    assert_eq!(sent_to_windows(&lab), before, "something has left by loopback0");
}

#[test]
fn a_widened_port_range_is_healed_in_the_leased_block_alone() {
    let (lab, _server, clients) = world();
    let range = |range: &str| lab.guest().set_sysctls([("net/ipv4/ip_local_port_range", range)]).or_panic();
    let _agent = Agent::start(&lab, "steering loopback0");
    range("32768 32868");
    // The reply goes to Windows, which sends the guest its own ports only (WSL#41227).
    assert!(from_linux(&clients, PORT).is_err(), "outside of the block");
    range(&format!("{} {}", GUEST_EPHEMERAL.start() + 10, GUEST_EPHEMERAL.end()));
    assert!(stays_on_lo(&lab, &clients), "in the block");
}

#[test]
fn programs_of_both_sides_reach_both_sides_services() {
    let (lab, _on_linux, clients) = world();
    let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).unwrap();
    let (low, high) = (*GUEST_EPHEMERAL.start(), *GUEST_EPHEMERAL.end());
    let check = |when: &str| {
        for _ in 0..3 {
            assert_eq!(from_linux(&clients, 9100).unwrap(), HELLO, "{when}: Linux to Windows");
            assert_eq!(from_linux(&clients, PORT).unwrap(), HELLO, "{when}: Linux to Linux");
        }
        for from in [low - 1, high + 1, 50_000, 61_000] {
            assert_eq!(from_windows(&lab, from, PORT).unwrap(), HELLO, "{when}: Windows from {from}");
            assert_eq!(
                from_windows(&lab, from, 9100).unwrap(),
                HELLO,
                "{when}: Windows to itself from {from}"
            );
        }
    };
    check("without wsl-mirror");
    let _agent = Agent::start(&lab, "steering loopback0");
    check("with run");
    assert!(stays_on_lo(&lab, &clients));
    let before = sent_to_windows(&lab);
    from_linux(&clients, 9100).unwrap();
    assert!(sent_to_windows(&lab) > before, "Windows' service is on Windows");
}

/// A listener in the leased block itself: `bind` to port 0.
#[test]
fn a_listener_in_the_leased_block_serves_both_sides() {
    let (lab, _server, clients) = world();
    let port = GUEST_EPHEMERAL.start() + 100;
    let _in_block = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let _agent = Agent::start(&lab, "steering loopback0");
    assert_eq!(from_linux(&clients, port).unwrap(), HELLO);
    assert_eq!(from_windows(&lab, 50_000, port).unwrap(), HELLO);
}

#[test]
fn a_block_that_moves_takes_the_rules_along() {
    let (lab, _server, clients) = world();
    let agent = Agent::start(&lab, "steering loopback0");
    let old = [*GUEST_EPHEMERAL.start(), *GUEST_EPHEMERAL.end()];
    for _ in 0..3 {
        assert!(stays_on_lo(&lab, &clients));
        lab.lease_another_block().unwrap();
        let since = Instant::now();
        soon("rules for the new block", || is_kept(&lab));
        assert!(since.elapsed() < pace::limit(Duration::from_secs(2)), "after {:?}", since.elapsed());
    }
    assert_ne!(lab.leased(), GUEST_EPHEMERAL, "an odd number of times");
    for from in old {
        assert_eq!(from_windows(&lab, from, PORT).unwrap(), HELLO, "Windows has port {from} again");
    }
    assert!(stays_on_lo(&lab, &clients));
    let said = agent.end();
    assert!(said.contains("no connection is kept on lo any more"), "{said}");
}

#[test]
fn rules_go_while_nobody_knows_the_block() {
    let (lab, _server, clients) = world();
    let agent = Agent::start(&lab, "steering loopback0");
    sh(&lab, "nft flush chain ip nat WSLPOSTROUTING");
    soon("the rules to go", || rules(&lab).is_empty());
    soon("a warning", || {
        status(&lab).0["agent"]["warnings"].to_string().contains("no connection is kept on lo")
    });
    assert!(!stays_on_lo(&lab, &clients), "they go by Windows");
    lab.lease_another_block().unwrap();
    soon("rules for the new block", || is_kept(&lab));
    assert!(stays_on_lo(&lab, &clients));
    agent.end();
}

#[test]
fn rules_go_with_the_way_to_windows_and_come_back() {
    let (lab, _server, clients) = world();
    let _agent = Agent::start(&lab, "steering loopback0");
    for missing in [HalfMade::NoTable127, HalfMade::NoLoopback0] {
        lab.half_make_network(missing).unwrap();
        soon("the rules to go", || rules(&lab).is_empty());
        lab.complete_network(missing).unwrap();
        soon("the rules to come back", || is_kept(&lab));
        assert!(stays_on_lo(&lab, &clients), "{missing:?}");
    }
    lab.make_network_anew().unwrap();
    soon("rules for the new network", || is_kept(&lab));
    assert!(stays_on_lo(&lab, &clients));
}

#[test]
fn a_restart_hands_the_rules_on_without_a_gap() {
    let (lab, _server, clients) = world();
    let monitor = Monitor::start(&lab);
    let mut agent = by_systemd(&lab);
    assert!(is_kept(&lab));
    let before = rules(&lab);
    for kill in [false, true, false] {
        if kill {
            agent.kill();
        } else {
            agent.end();
        }
        assert_eq!(rules(&lab), before, "they stay for the next agent");
        assert!(stays_on_lo(&lab, &clients));
        agent = by_systemd(&lab);
        assert!(is_kept(&lab) && stays_on_lo(&lab, &clients));
        assert_eq!(rules(&lab), before);
    }
    assert_eq!(monitor.gone(), [""; 0]);
    // The unit's own way to stop.
    agent.end();
    ok(&lab, &["stopped"]);
    assert_eq!(rules(&lab), "");
    assert_eq!(monitor.gone().len(), 3);
    assert_eq!(status(&lab).0["keep_on_lo"]["kept"], false);
}

#[test]
fn stopped_leaves_a_living_agents_rules_alone() {
    let (lab, _server, _clients) = world();
    let agent = Agent::start(&lab, "steering loopback0");
    ok(&lab, &["stopped"]);
    assert!(is_kept(&lab));
    // systemd is not there to be asked, and without it nobody starts an agent again.
    agent.kill();
    ok(&lab, &["stopped", "--unit=wsl-mirror.service"]);
    assert_eq!(rules(&lab), "");
}

#[test]
fn a_block_that_moves_without_an_agent_is_found_by_the_next() {
    let (lab, _server, clients) = world();
    for stopped in [Signal::TERM, Signal::KILL] {
        let agent = by_systemd(&lab);
        assert!(is_kept(&lab));
        agent.0.signal(stopped).unwrap();
        agent.0.finish(LIMIT).unwrap();
        lab.lease_another_block().unwrap();
        let agent = by_systemd(&lab);
        assert!(is_kept(&lab), "{stopped:?}: {}", rules(&lab));
        assert!(stays_on_lo(&lab, &clients));
        agent.end();
    }
}

/// What the documentation warns of: without an agent, the rules of a block that has moved are poison for Windows' programs.
#[test]
fn rules_of_a_killed_agent_are_removed_by_the_next_command() {
    let (lab, _server, clients) = world();
    for command in ["load", "run", "unload"] {
        Agent::start(&lab, "steering loopback0").kill();
        let old = lab.leased();
        lab.lease_another_block().unwrap();
        for from in [*old.start() + 7, *old.end()] {
            let hung = from_windows(&lab, from, PORT);
            assert_eq!(hung, Err(tcp::Failure::ConnectTimedOut), "{command}: from {from}");
        }
        let agent = (command == "run").then(|| Agent::start(&lab, "steering loopback0"));
        if agent.is_none() {
            ok(&lab, &[command]);
            assert_eq!(rules(&lab), "", "{command}");
        }
        // From other ports: Linux still answers the SYNs of those before.
        for from in [*old.start() + 9, *old.end() - 1] {
            let answer = from_windows(&lab, from, PORT);
            assert_eq!(answer, Ok(HELLO.to_vec()), "{command}: from {from}, {}", rules(&lab));
        }
        assert_eq!(stays_on_lo(&lab, &clients), agent.is_some(), "{command}");
    }
}

#[test]
fn load_beside_an_agent_leaves_its_rules_alone() {
    let (lab, _server, clients) = world();
    let _agent = Agent::start(&lab, "steering loopback0");
    let monitor = Monitor::start(&lab);
    ok(&lab, &["load"]);
    assert!(is_kept(&lab) && stays_on_lo(&lab, &clients));
    assert_eq!(monitor.gone(), [""; 0]);
}

#[test]
fn switched_off_no_rule_is_made() {
    let lab = Lab::builder().configuration("keep_on_lo = \"off\"\n").build().unwrap();
    let _agent = Agent::start(&lab, "steering loopback0");
    assert_eq!(rules(&lab), "");
    let said = status(&lab).0["keep_on_lo"]["obstacle"].to_string();
    assert!(said.contains("keep_on_lo"), "{said}");
    lab.guest().enter(|| std::fs::write("/etc/wsl-mirror.toml", "")).unwrap();
    soon("the rules", || is_kept(&lab));
    lab.guest().enter(|| std::fs::write("/etc/wsl-mirror.toml", "keep_on_lo = \"off\"\n")).unwrap();
    soon("the rules to go", || rules(&lab).is_empty());
}

#[test]
fn the_bit_is_another_one_where_somebody_uses_it() {
    let (lab, _server, clients) = world();
    sh(&lab, "ip rule add pref 100 fwmark 0x40/0x40 lookup main");
    sh(&lab, "nft add table ip theirs; nft 'add chain ip theirs c { type filter hook output priority 10; }'");
    sh(&lab, "nft add rule ip theirs c meta mark and 0x20 == 0x20 counter");
    let agent = Agent::start(&lab, "steering loopback0");
    assert!(rules(&lab).contains("fwmark 0x10/0x10"), "{}", rules(&lab));
    assert!(stays_on_lo(&lab, &clients));
    sh(&lab, "ip rule add pref 101 fwmark 0x10/0x10 lookup main");
    soon("another bit", || rules(&lab).contains("fwmark 0x8/0x8") && is_kept(&lab));
    assert!(stays_on_lo(&lab, &clients));
    agent.end();
}

#[test]
fn the_bit_goes_when_the_socket_connects_elsewhere() {
    let (lab, _server, clients) = world();
    let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).unwrap();
    let _agent = Agent::start(&lab, "steering loopback0");
    let disconnected = SockAddr::from(SocketAddr::from(([0, 0, 0, 0], 0)));
    for own in [0, 0x400] {
        let socket: Socket = clients.tcp().unwrap();
        socket.set_mark(own).unwrap();
        socket.connect(&SockAddr::from(loopback(PORT))).unwrap();
        assert_eq!(socket.mark().unwrap(), own | BIT);
        let mut stream = TcpStream::from(socket.try_clone().unwrap());
        assert_eq!(tcp::exchange(&mut stream, HELLO).unwrap(), HELLO);
        // SAFETY: an address of the family AF_UNSPEC, which dissolves the connection (connect(2)).
        let dissolved = unsafe { dissolve(&socket, &disconnected) };
        assert_eq!(dissolved, 0);
        let before = sent_to_windows(&lab);
        socket.connect(&SockAddr::from(loopback(9100))).unwrap();
        assert_eq!(socket.mark().unwrap(), own, "the program's own bits stay");
        assert_eq!(tcp::exchange(&mut stream, HELLO).unwrap(), HELLO);
        assert!(sent_to_windows(&lab) > before);
    }
}

/// # Safety
/// `address` is an address of this machine's C library.
unsafe fn dissolve(socket: &Socket, address: &SockAddr) -> i32 {
    use std::os::fd::AsRawFd as _;
    let mut unspecified = address.clone();
    // SAFETY: the family is the first field of every address.
    unsafe { (*unspecified.as_ptr().cast_mut().cast::<libc::sockaddr>()).sa_family = 0 };
    let _ = &mut unspecified;
    // SAFETY: the pointer and the length are the address'.
    unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), unspecified.len()) }
}

/// A reply gets the mark of what it answers by `tcp_fwmark_accept` and by a restored conntrack mark. Packets from Windows never
/// carry the bit, so replies to Windows leave by `loopback0`.
#[test]
fn replies_to_windows_leave_by_loopback0_despite_restored_marks() {
    let (lab, _server, clients) = world();
    lab.guest().set_sysctls([("net/ipv4/tcp_fwmark_accept", "1")]).unwrap();
    sh(
        &lab,
        "nft add table ip theirs
         nft 'add chain ip theirs in { type filter hook prerouting priority mangle; }'
         nft 'add chain ip theirs out { type route hook output priority mangle; }'
         nft add rule ip theirs in ct mark set meta mark
         nft add rule ip theirs out meta mark set ct mark",
    );
    let _agent = Agent::start(&lab, "steering loopback0");
    let (low, high) = (*GUEST_EPHEMERAL.start(), *GUEST_EPHEMERAL.end());
    for from in [low - 1, high + 1, 50_000] {
        let before = sent_to_windows(&lab);
        assert_eq!(from_windows(&lab, from, PORT).unwrap(), HELLO, "from {from}");
        assert!(sent_to_windows(&lab) > before, "from {from}");
    }
    assert!(from_linux(&clients, PORT).is_ok());
}

/// Windows goes on to see one direction of them.
#[test]
fn flows_from_before_the_rules_go_on() {
    let (lab, _server, clients) = world_of(Lab::builder().watches_handshakes(true).build().unwrap());
    let mut old = clients.connect(loopback(PORT)).unwrap();
    assert_eq!(tcp::exchange(&mut old, HELLO).unwrap(), HELLO);
    let agent = Agent::start(&lab, "steering loopback0");
    let mut kept = clients.connect(loopback(PORT)).unwrap();
    for stream in [&mut old, &mut kept] {
        assert_eq!(tcp::exchange(stream, HELLO).unwrap(), HELLO);
    }
    agent.end();
    assert_eq!(rules(&lab), "");
    assert_eq!(tcp::exchange(&mut old, HELLO).unwrap(), HELLO);
    // Of this one Windows has seen nothing.
    assert!(tcp::exchange(&mut kept, HELLO).is_err());
    assert_eq!(from_linux(&clients, PORT).unwrap(), HELLO);
}

#[test]
fn unload_leaves_no_rule_behind() {
    let (lab, _server, _clients) = world();
    let before = sh(&lab, "ip -4 rule");
    let agent = by_systemd(&lab);
    assert!(is_kept(&lab));
    agent.end();
    assert_ne!(rules(&lab), "");
    ok(&lab, &["unload"]);
    assert_eq!(sh(&lab, "ip -4 rule"), before);
}

#[test]
fn another_distributions_rules_are_left_alone() {
    let (lab, _server, clients) = world();
    let other = lab.another_distribution().unwrap();
    let agent = Agent::start(&lab, "steering loopback0");
    assert!(is_kept(&lab));
    let monitor = Monitor::start(&lab);
    // It has nothing loaded; and then it stands aside.
    lab.wsl_mirror_in(&other, &["unload"]).unwrap();
    lab.wsl_mirror_in(&other, &["load"]).unwrap();
    let aside =
        Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"]).unwrap(), "another distribution");
    aside.end();
    lab.wsl_mirror_in(&other, &["stopped"]).unwrap();
    assert_eq!(monitor.gone(), [""; 0]);
    assert!(is_kept(&lab) && stays_on_lo(&lab, &clients));
    agent.end();
}
