//! Containers behind listeners: found by whichever agent can see the engine, a moment after they come.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use wsl_mirror_lab::{
    Lab, PidNamespace, Sockets,
    checks::{OrPanic as _, RaiseOnDrop, load, sh, status},
    lab_sockets, nat, pace,
    sockets::{PROXY, answers, proxy_arguments},
};

use crate::guest::{Agent, median, soon};

/// A container on a bridge's network. Nobody answers there.
const CONTAINER: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 29, 0, 2), 80);
const TARGET: &str = "172.29.0.2:80 172.29.0.1 proxy open";
/// Far more than the agent takes.
const GENEROUS: Duration = Duration::from_secs(2);

/// A lab with an engine's trap, and with the bridge of [`CONTAINER`].
#[track_caller]
fn bridged() -> Lab {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    sh(
        &lab,
        "ip link add br9 type bridge; ip addr add 172.29.0.1/16 dev br9; ip link set br9 up
         ip link add br9-port type veth peer name br9-peer; ip link set br9-peer up; ip link set br9-port master br9 up",
    );
    lab
}

/// A docker-proxy of this port, as it says of itself.
macro_rules! proxy {
    ($lab:expr, $command:expr, $protocol:expr, $port:expr, $container:expr $(,)?) => {
        lab_sockets!($lab, command $command, PROXY, proxy_arguments($protocol, $port, $container))
    };
}

#[track_caller]
fn has_target(process: &mut Sockets, key: &str, target: &str) {
    soon(target, || process.tell(&format!("target {key}")).or_panic() == target);
}

#[test]
fn load_writes_the_container_behind_docker_proxy() {
    let lab = bridged();
    let guest = |program: &str| lab.guest().command(program);
    let mut proxy = proxy!(&lab, guest, "tcp", 8080, CONTAINER);
    proxy.serve("0.0.0.0:8080").or_panic();
    let mut mapped = proxy!(&lab, guest, "tcp", 8081, CONTAINER);
    mapped.serve("[::]:8081").or_panic();
    let mut udp = proxy!(&lab, guest, "udp", 8082, CONTAINER);
    udp.tell("bind u udp 0.0.0.0:8082").or_panic();
    // Behind a gateway, on no network of this machine, on this machine itself.
    let refused = [[8, 8, 8, 8], [172, 30, 0, 2], [172, 29, 0, 1], [127, 0, 0, 5]];
    let mut without: Vec<Sockets> = (8083..)
        .zip(refused)
        .map(|(port, address)| {
            let mut proxy = proxy!(&lab, guest, "tcp", port, (address.into(), 80));
            proxy.serve(&format!("0.0.0.0:{port}")).or_panic();
            proxy
        })
        .collect();
    let mut silent = lab_sockets!(&lab, PROXY);
    silent.serve("0.0.0.0:8090").or_panic();
    let mut other = lab_sockets!(&lab, command guest, "other", proxy_arguments("tcp", 8091, CONTAINER));
    other.serve("0.0.0.0:8091").or_panic();

    load(&lab);
    assert_eq!(proxy.tell("target 0.0.0.0:8080").or_panic(), TARGET);
    assert_eq!(mapped.tell("target [::]:8081").or_panic(), TARGET);
    assert_eq!(udp.tell("target u").or_panic(), TARGET);
    for (port, proxy) in (8083..).zip(&mut without) {
        assert_eq!(proxy.tell(&format!("target 0.0.0.0:{port}")).or_panic(), "none", "{port}");
    }
    assert_eq!(silent.tell("target 0.0.0.0:8090").or_panic(), "none", "it does not say what it serves");
    assert_eq!(other.tell("target 0.0.0.0:8091").or_panic(), "none", "a service of the host");
    let (status, _) = status(&lab);
    let ports: Vec<_> =
        status["targets"].as_array().expect("no targets").iter().map(|row| &row["port"]).collect();
    assert_eq!(ports, [8080, 8081, 8082]);
    assert_eq!(status["targets"][0]["container"], "172.29.0.2");

    // Its network has gone.
    sh(&lab, "ip link del br9");
    load(&lab);
    assert_eq!(proxy.tell("target 0.0.0.0:8080").or_panic(), "none");
}

#[test]
fn a_holders_container_follows_the_rules() {
    let lab = bridged();
    let rule = |what: &str, container: &str| {
        sh(
            &lab,
            &format!(
                "iptables -t nat {what} PREROUTING -p tcp -m addrtype --dst-type LOCAL --dport 9080 \
                 -j DNAT --to-destination {container}:80"
            ),
        )
    };
    let mut daemon = lab_sockets!(&lab, "dockerd");
    daemon.serve("0.0.0.0:9080").or_panic();
    let mut service = lab_sockets!(&lab, "nginx");
    service.serve("127.0.0.1:9081").or_panic();
    rule("-A", "172.29.0.2");
    load(&lab);
    assert_eq!(daemon.tell("target 0.0.0.0:9080").or_panic(), "172.29.0.2:80 172.29.0.1 holder open");
    let _agent = Agent::start(&lab, "steering loopback0");
    rule("-D", "172.29.0.2");
    has_target(&mut daemon, "0.0.0.0:9080", "none");
    rule("-A", "172.29.0.7");
    has_target(&mut daemon, "0.0.0.0:9080", "172.29.0.7:80 172.29.0.1 holder open");
    sh(&lab, "iptables -t raw -A PREROUTING -d 127.0.0.1 -p tcp --dport 9080 ! -i lo -j DROP");
    has_target(&mut daemon, "0.0.0.0:9080", "172.29.0.7:80 172.29.0.1 holder dropped");
    sh(
        &lab,
        "ip addr add 172.29.9.9/16 dev br9; ip addr del 172.29.0.1/16 dev br9; ip addr add 172.29.9.9/16 dev br9 || true",
    );
    has_target(&mut daemon, "0.0.0.0:9080", "172.29.0.7:80 172.29.9.9 holder dropped");
    sh(&lab, "iptables -t nat -A PREROUTING -p tcp --dport 9081 -j DNAT --to-destination 172.29.0.2:80");
    daemon.serve("0.0.0.0:9082").or_panic();
    sh(&lab, "iptables -t nat -A PREROUTING -p tcp --dport 9082 -j DNAT --to-destination 172.29.0.2:80");
    has_target(&mut daemon, "0.0.0.0:9082", "172.29.0.2:80 172.29.9.9 holder open");
    assert_eq!(service.tell("target 127.0.0.1:9081").or_panic(), "none", "a service of the host");
}

#[test]
fn dockerd_hands_its_listener_to_the_proxy() {
    let lab = bridged();
    let _agent = Agent::start(&lab, "steering loopback0");
    let guest = |program: &str| lab.guest().command(program);
    // Rules name another container than the proxy does: as long as dockerd has the socket, rules count.
    sh(&lab, "iptables -t nat -A PREROUTING -p tcp --dport 9080 -j DNAT --to-destination 172.29.0.7:80");
    let mut daemon = lab_sockets!(&lab, command guest, "dockerd", proxy_arguments("tcp", 9080, CONTAINER));
    daemon.tell("bind p tcp 0.0.0.0:9080").or_panic();
    has_target(&mut daemon, "p", "172.29.0.7:80 172.29.0.1 holder open");
    daemon.tell("hand p docker-proxy ask serve proxy").or_panic();
    has_target(&mut daemon, "p", TARGET);
}

/// Each distribution of WSL has a PID namespace of its own.
#[test]
fn an_agent_and_an_engine_in_one_pid_namespace_find_each_other() {
    let lab = bridged();
    let distribution = PidNamespace::new(lab.guest()).or_panic();
    let run = lab.wsl_mirror_command(&["run"]).or_panic();
    let _agent = Agent::started(&mut distribution.wrap(&run), "steering loopback0");
    let inside = |program: &str| distribution.command(program);
    let mut proxy = proxy!(&lab, inside, "tcp", 8080, CONTAINER);
    proxy.serve("0.0.0.0:8080").or_panic();
    has_target(&mut proxy, "0.0.0.0:8080", TARGET);
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
}

#[test]
fn an_engine_in_another_pid_namespace_stays_steered() {
    let lab = bridged();
    let (ours, theirs) =
        (PidNamespace::new(lab.guest()).or_panic(), PidNamespace::new(lab.guest()).or_panic());
    let run = lab.wsl_mirror_command(&["run"]).or_panic();
    let _agent = Agent::started(&mut ours.wrap(&run), "steering loopback0");
    let here = |program: &str| ours.command(program);
    let there = |program: &str| theirs.command(program);
    // The agent's own distribution has processes of the same name and arguments, under the same numbers.
    let decoy = (Ipv4Addr::new(172, 29, 0, 66), 80);
    let mut decoys: Vec<Sockets> = (0..20).map(|_| proxy!(&lab, here, "tcp", 8080, decoy)).collect();
    let mut engines: Vec<Sockets> = (0..20).map(|_| proxy!(&lab, there, "tcp", 8080, CONTAINER)).collect();
    let numbers: Vec<String> = decoys.iter_mut().map(|decoy| decoy.tell("pid").or_panic()).collect();
    let same = engines.iter_mut().position(|engine| numbers.contains(&engine.tell("pid").or_panic()));
    let engine = &mut engines[same.expect("no number is the same")];
    engine.serve("0.0.0.0:8080").or_panic();
    // The agent is at work.
    let mut own = proxy!(&lab, here, "tcp", 8081, CONTAINER);
    own.serve("0.0.0.0:8081").or_panic();
    has_target(&mut own, "0.0.0.0:8081", TARGET);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(engine.tell("target 0.0.0.0:8080").or_panic(), "none");
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY), "by its owner");
}

#[test]
fn from_the_socket_to_the_target_it_takes_a_moment() {
    let lab = bridged();
    let _agent = Agent::start(&lab, "steering loopback0");
    let guest = |program: &str| lab.guest().command(program);
    let mut times = Vec::new();
    for round in 0..pace::rounds(50) {
        let port = 8100 + u16::try_from(round % 400).or_panic();
        let mut proxy = proxy!(&lab, guest, "tcp", port, CONTAINER);
        let took = proxy.tell(&format!("timed t tcp 0.0.0.0:{port}")).or_panic();
        times.push(Duration::from_micros(took.parse().or_panic()));
        thread::sleep(Duration::from_millis(100));
    }
    let median = median("from docker-proxy's socket to its target (50 ms are the aim)", times);
    assert!(median < pace::limit(GENEROUS), "{median:?}");
}

/// Rules by this program; gives the median from a rule to the target.
#[track_caller]
fn from_rules(lab: &Lab, iptables: &str, what: &str) -> Duration {
    let mut daemon = lab_sockets!(lab, "dockerd");
    let mut times = Vec::new();
    for round in 0..pace::rounds(50) {
        let port = 9100 + u16::try_from(round % 400).or_panic();
        daemon.tell(&format!("bind {port} tcp 0.0.0.0:{port}")).or_panic();
        thread::sleep(Duration::from_millis(100));
        let rule =
            format!("-t nat -A PREROUTING -p tcp --dport {port} -j DNAT --to-destination 172.29.0.2:80");
        lab.guest().run(iptables, rule.split(' ')).or_panic();
        let since = Instant::now();
        soon("a target", || daemon.tell(&format!("target {port}")).or_panic() != "none");
        times.push(since.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    median(what, times)
}

#[test]
fn from_the_rule_to_the_target_it_takes_a_moment() {
    let lab = bridged();
    let _agent = Agent::start(&lab, "steering loopback0");
    let median =
        from_rules(&lab, "iptables-nft", "from a rule of iptables-nft to the target (50 ms are the aim)");
    assert!(median < pace::limit(GENEROUS), "{median:?}");
}

#[test]
fn rules_of_iptables_legacy_are_found_after_sockets() {
    let lab = bridged();
    sh(
        &lab,
        "iptables-legacy -t nat -A PREROUTING -p tcp --dport 9000 -j DNAT --to-destination 172.29.0.2:80",
    );
    let _agent = Agent::start(&lab, "steering loopback0");
    let mut times = Vec::new();
    for round in 0..pace::rounds(10) {
        let mut daemon = lab_sockets!(&lab, "dockerd");
        let port = 9100 + u16::try_from(round % 400).or_panic();
        // As dockerd from 28.0 on does: the socket comes first.
        daemon.tell(&format!("bind {port} tcp 0.0.0.0:{port}")).or_panic();
        let rule =
            format!("-t nat -A PREROUTING -p tcp --dport {port} -j DNAT --to-destination 172.29.0.2:80");
        lab.guest().run("iptables-legacy", rule.split(' ')).or_panic();
        let since = Instant::now();
        soon("a target", || daemon.tell(&format!("target {port}")).or_panic() != "none");
        times.push(since.elapsed());
    }
    let median = median("from a rule of iptables-legacy to the target (1 s is the aim)", times);
    assert!(median < pace::limit(GENEROUS), "{median:?}");
}

#[test]
fn under_a_storm_of_sockets_the_agents_pace_wins() {
    let lab = bridged();
    let agent = Agent::start(&lab, "steering loopback0");
    let guest = |program: &str| lab.guest().command(program);
    let (mut binder, done) = (lab_sockets!(&lab, "binder"), AtomicBool::new(false));
    let mut proxy = proxy!(&lab, guest, "tcp", 8080, CONTAINER);
    thread::sleep(Duration::from_secs(1));
    let (took, share, rate) = thread::scope(|scope| {
        let raise = RaiseOnDrop(&done);
        let storm = scope.spawn(|| {
            let mut binds = 0;
            let start = Instant::now();
            while !done.load(Ordering::Relaxed) {
                binder.tell("binds 100").or_panic();
                binds += 100;
                // 10,000 a second.
                thread::sleep(
                    (start + Duration::from_micros(100) * binds).saturating_duration_since(Instant::now()),
                );
            }
            f64::from(binds) / start.elapsed().as_secs_f64()
        });
        thread::sleep(Duration::from_secs(1));
        let (cpu, since) = (agent.cpu_time(), Instant::now());
        thread::sleep(Duration::from_secs(4));
        let share = agent.cpu_time().saturating_sub(cpu).as_secs_f64() / since.elapsed().as_secs_f64();
        let took: u64 = proxy.tell("timed t tcp 0.0.0.0:8080").or_panic().parse().or_panic();
        drop(raise);
        let rate = storm.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        (Duration::from_micros(took), share, rate)
    });
    println!("{rate:.0} binds a second: {:.1} % of a core; a target within {took:?}", share * 100.0);
    assert!(took < pace::limit(Duration::from_secs(5)), "{took:?}");
    assert!(!pace::judges_costs() || share <= 0.2, "{:.1} % of a core", share * 100.0);
}
