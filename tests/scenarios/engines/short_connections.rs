//! A crowd on Windows, two engines, and containers that come and go meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, NetworkBackend, Podman, PodmanOptions, Running, Service,
    checks::{HELLO, OrPanic as _, RaiseOnDrop, load},
    pace, tcp,
};

use super::{
    configuration::PODMAN_5_8,
    installed,
    world::{assert_hangs, lab, steered, windows},
};

/// On Windows, at once.
const CLIENTS: u16 = 4;
/// Where each client's ports begin, and how many it has: together all that Windows takes its own from.
const FIRST_PORT: u16 = 49_152;
const PORTS_OF_A_CLIENT: u16 = 4096;
/// How a port of a container goes on to be down when its engine has said that it is up: the last packets that were
/// underway meanwhile.
const MARGIN: Duration = Duration::from_millis(250);
/// How long an exchange may be underway, on a busy machine, before its container's end is no excuse for it.
const EXCHANGE: Duration = Duration::from_millis(250);
/// An answer that takes this long has lost a packet: a SYN is sent once more after a second.
const SLOW: Duration = Duration::from_millis(900);
/// How long containers stay as they are.
const REST: Duration = Duration::from_millis(700);

/// As slow as a machine may be: connections a second, of all clients together.
const SLOWEST: u64 = 70;

/// Each engine has one that stays and two that come and go. Ports are published on all addresses.
const STEADY: [u16; 4] = [0, 1, 2, 3];
const COMING_AND_GOING: [[u16; 3]; 2] = [[4, 5, 6], [7, 8, 9]];
const FIRST: u16 = 8080;
const SECOND: u16 = 8180;

/// An engine of these two, in the words that are needed here.
enum Engine {
    Docker(Docker),
    Podman(Podman),
}

impl Engine {
    #[track_caller]
    fn run(&self, first: u16, ports: &[u16]) -> Running {
        let ports: Vec<u16> = ports.iter().map(|port| first + port).collect();
        let container = Container::new(&format!("web-{}", ports[0])).serve(Service::TcpEcho { port: 7 });
        let container =
            ports.iter().fold(container, |container, port| container.publish(&format!("{port}:7")));
        match self {
            Self::Docker(docker) => docker.run(container),
            Self::Podman(podman) => podman.run(container),
        }
        .or_panic()
    }

    #[track_caller]
    fn stop(&self, container: &Running) {
        match self {
            Self::Docker(docker) => docker.stop(container),
            Self::Podman(podman) => podman.stop(container),
        }
        .or_panic();
    }

    #[track_caller]
    fn start_again(&self, container: &Running) {
        match self {
            Self::Docker(docker) => docker.start_again(container),
            Self::Podman(podman) => podman.start_again(container),
        }
        .or_panic();
    }
}

/// Podman, whose ports its own rules carry, or another Docker. And whether its ports are to be steered.
#[track_caller]
fn second_engine(lab: &Lab) -> (Engine, bool) {
    if let Ok(installed::Installed { root: Some(root), version }) = installed::find(&PODMAN_5_8) {
        println!("with Podman {version}");
        let options = PodmanOptions { root, network: NetworkBackend::Netavark };
        return (Engine::Podman(Podman::start(lab, &options).or_panic()), false);
    }
    println!("with another Docker, since Podman cannot be had");
    let options = DockerOptions { bip: Some("172.30.0.1/16".to_owned()), ..DockerOptions::default() };
    (Engine::Docker(Docker::start(lab, &options).or_panic()), true)
}

/// From when on a port was not up, and until when if it is up again.
type Outage = (Instant, Option<Instant>);

/// When ports were not up, as far as those know who took them down.
#[derive(Debug, Default)]
struct Down(Mutex<BTreeMap<u16, Vec<Outage>>>);

impl Down {
    fn begins(&self, ports: &[u16]) {
        let mut down = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports {
            down.entry(*port).or_default().push((Instant::now(), None));
        }
    }

    fn ends(&self, ports: &[u16]) {
        let mut down = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports {
            if let Some((_, end)) = down.get_mut(port).and_then(|all| all.last_mut()) {
                *end = Some(Instant::now());
            }
        }
    }

    /// When a port was down, counted from this moment.
    fn of(&self, port: u16, from: Instant) -> Vec<(Duration, Option<Duration>)> {
        let down = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = down.get(&port).into_iter().flatten();
        all.map(|(begin, end)| (*begin - from, end.map(|end| end - from))).collect()
    }

    /// Whether that a port was down explains how an attempt went.
    ///
    /// What is reset or closed may have met its container's end at any moment. What was waited for in vain was sent into
    /// the void: that the port went down while somebody waited explains nothing.
    fn explains(&self, attempt: &Attempt) -> bool {
        let latest = if attempt.waited() { attempt.began + EXCHANGE } else { attempt.ended };
        let down = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        down.get(&attempt.to).is_some_and(|all| {
            all.iter()
                .any(|(begin, end)| *begin <= latest && end.is_none_or(|end| attempt.began <= end + MARGIN))
        })
    }
}

/// One that failed, or was slow.
#[derive(Debug)]
struct Attempt {
    from: u16,
    to: u16,
    began: Instant,
    ended: Instant,
    /// `None` if it was answered after all.
    failure: Option<tcp::Failure>,
}

impl Attempt {
    /// Whether nothing came for a long time, rather than something that ends a connection.
    fn waited(&self) -> bool {
        match &self.failure {
            None | Some(tcp::Failure::ConnectTimedOut | tcp::Failure::Stalled { .. }) => true,
            Some(_) => false,
        }
    }

    /// For people.
    fn told(&self, beginning: Instant, down: &Down) -> String {
        let outcome = self.failure.as_ref().map_or_else(|| "answered".to_owned(), ToString::to_string);
        format!(
            "{} to {} after {:.3?}, for {:.3?}: {outcome}; it was down {:.3?}",
            self.from,
            self.to,
            self.began - beginning,
            self.ended - self.began,
            down.of(self.to, beginning)
        )
    }
}

/// What a client has seen.
#[derive(Debug, Default)]
struct Seen {
    answers: BTreeMap<u16, u64>,
    failures: Vec<Attempt>,
    /// Answered, but so late that a packet must have been lost.
    slow: Vec<Attempt>,
    longest: Duration,
}

/// One client's connections, a short exchange over each, one after the other. No pair of ports comes twice: how those
/// fare is another test's (`dataplane::reuse`). Every other one ends by a reset.
fn client(lab: &Lab, number: u16, connections: usize, ports: &[u16]) -> Seen {
    let own: Vec<u16> =
        (0..PORTS_OF_A_CLIENT).map(|port| FIRST_PORT + number * PORTS_OF_A_CLIENT + port).collect();
    let pairs = (0..ports.len()).flat_map(|turn| {
        own.iter().enumerate().map(move |(index, from)| (*from, ports[(index + turn) % ports.len()]))
    });
    let mut seen = Seen::default();
    let end = Instant::now() + Duration::from_secs(connections as u64 * u64::from(CLIENTS) / SLOWEST);
    for (count, (from, to)) in pairs.take(connections).enumerate() {
        let mut client = windows(lab, to).from((Ipv4Addr::LOCALHOST, from)).limit(tcp::limit());
        if count % 2 == 0 {
            client = client.reset_on_close();
        }
        let began = Instant::now();
        if began >= end {
            break;
        }
        let failure = client.echo(HELLO).err();
        let attempt = Attempt { from, to, began, ended: Instant::now(), failure };
        if attempt.failure.is_some() {
            seen.failures.push(attempt);
            continue;
        }
        *seen.answers.entry(to).or_default() += 1;
        let took = attempt.ended - attempt.began;
        seen.longest = seen.longest.max(took);
        if took > SLOW {
            seen.slow.push(attempt);
        }
    }
    seen
}

/// Takes containers down and up again, one after the other, until the clients are done. Says how often.
#[track_caller]
fn come_and_go(engine: &Engine, containers: &[(Running, Vec<u16>)], down: &Down, done: &AtomicBool) -> u32 {
    let mut times = 0;
    for (container, ports) in containers.iter().cycle() {
        thread::sleep(REST);
        if done.load(Ordering::Relaxed) {
            break;
        }
        down.begins(ports);
        engine.stop(container);
        thread::sleep(REST);
        engine.start_again(container);
        down.ends(ports);
        times += 1;
    }
    times
}

/// That a port answers, and leaves no port of Windows in `TIME_WAIT`, which one of the crowd is going to take.
#[track_caller]
fn assert_answers_once(lab: &Lab, port: u16, when: &str) {
    let answer = windows(lab, port).reset_on_close().echo(HELLO);
    assert_eq!(answer, Ok(HELLO.to_vec()), "port {port} {when}");
}

/// What a thread came to.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

#[track_caller]
fn only_ports_that_were_down_fail(connections: usize) {
    let lab = lab();
    // Of flows that are over, conntrack shall not keep a hundred thousand.
    lab.guest()
        .set_sysctls([
            ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
            ("net/netfilter/nf_conntrack_tcp_timeout_close", "2"),
            // Docker's proxy opens a connection of its own to the container for each of these, from the 4096 ports that the
            // guest has; a port is free again after a minute. More than 68 a second to one container, and it finds none and
            // hangs up, with wsl-mirror or without. With this it may take one again after a second.
            ("net/ipv4/tcp_tw_reuse", "1"),
        ])
        .or_panic();
    let docker = Engine::Docker(Docker::start(&lab, &DockerOptions::default()).or_panic());
    let (second, second_is_steered) = second_engine(&lab);
    let mut containers = Vec::new();
    for (engine, first) in [(&docker, FIRST), (&second, SECOND)] {
        engine.run(first, &STEADY);
        let mut of_engine = Vec::new();
        for ports in COMING_AND_GOING {
            let running = engine.run(first, &ports);
            of_engine.push((running, ports.iter().map(|port| first + port).collect::<Vec<_>>()));
        }
        containers.push((engine, of_engine));
    }
    if !second_is_steered {
        // Docker drops what is forwarded for others, Podman's containers included; this is where it asks the user.
        for direction in ["-i", "-o"] {
            let rule = ["-w", "5", "-I", "DOCKER-USER", direction, "podman0", "-j", "ACCEPT"];
            lab.guest().run("iptables", rule).or_panic();
        }
        assert_answers_once(&lab, SECOND, "without the program");
    }
    assert_hangs(&lab, FIRST, "without the program");
    load(&lab);
    let all: Vec<u16> = (0..10).map(|port| FIRST + port).chain((0..10).map(|port| SECOND + port)).collect();
    for port in &all {
        assert_answers_once(&lab, *port, "after the load");
    }

    let (down, done) = (Down::default(), AtomicBool::new(false));
    let share = connections / usize::from(CLIENTS);
    let began = Instant::now();
    let (seen, times) = thread::scope(|scope| {
        let (lab, all, down, done) = (&lab, &all, &down, &done);
        let going: Vec<_> = containers
            .iter()
            .map(|(engine, containers)| scope.spawn(move || come_and_go(engine, containers, down, done)))
            .collect();
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || client(lab, number, share, all))).collect();
        let ending = RaiseOnDrop(done);
        let seen: Vec<Seen> = clients.into_iter().map(joined).collect();
        drop(ending);
        let times: Vec<u32> = going.into_iter().map(joined).collect();
        (seen, times)
    });
    let took = began.elapsed();

    let answers: u64 = seen.iter().flat_map(|seen| seen.answers.values()).sum();
    let failures: Vec<&Attempt> = seen.iter().flat_map(|seen| &seen.failures).collect();
    // How long something takes on emulated CPUs says nothing.
    let slow: Vec<&Attempt> =
        if pace::is_emulated() { Vec::new() } else { seen.iter().flat_map(|seen| &seen.slow).collect() };
    let mut ways: BTreeMap<(bool, String), u32> = BTreeMap::new();
    for attempt in &failures {
        let failure = attempt.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        *ways.entry((attempt.to >= SECOND, failure)).or_default() += 1;
    }
    let longest = seen.iter().map(|seen| seen.longest).max().unwrap_or_default();
    println!(
        "{answers} answers and {} failures in {took:.1?}, {} connections a second; {} answers were late, the longest took \
         {longest:.1?}; containers came and went {times:?} times; of the second engine or not, failures: {ways:?}",
        failures.len(),
        u128::from(answers + failures.len() as u64) * 1000 / took.as_millis().max(1),
        slow.len(),
    );
    let unexplained = |attempts: &[&Attempt]| -> Vec<String> {
        let left = attempts.iter().filter(|attempt| !down.explains(attempt));
        left.map(|attempt| attempt.told(began, &down)).collect()
    };
    for (what, wrong) in [("failed", unexplained(&failures)), ("lost a packet", unexplained(&slow))] {
        assert!(
            wrong.is_empty(),
            "{} to ports that were up {what}:\n{}",
            wrong.len(),
            wrong[..wrong.len().min(20)].join("\n")
        );
    }
    let (done, wanted) = (answers + failures.len() as u64, u64::from(CLIENTS) * share as u64);
    assert!(
        done == wanted,
        "only {done} of {wanted} connections in {took:.1?}: the machine has too much to do"
    );
    assert!(
        times.iter().all(|times| *times > 0),
        "containers of both engines were to come and go: {times:?}"
    );
    let answered: BTreeSet<u16> = seen.iter().flat_map(|seen| seen.answers.keys().copied()).collect();
    assert!(answered.len() == all.len(), "only {answered:?} answered");
    for port in &all {
        let answers = seen.iter().filter_map(|seen| seen.answers.get(port)).sum();
        expect_steered(&lab, *port, answers, *port < SECOND || second_is_steered);
        assert_answers_once(&lab, *port, "in the end");
    }
}

/// Who was answered by docker-proxy was steered, and nobody else.
#[track_caller]
fn expect_steered(lab: &Lab, port: u16, answers: u64, by_docker_proxy: bool) {
    let flows = steered(lab, port);
    assert!(
        if by_docker_proxy { flows >= answers } else { flows == 0 },
        "port {port}: {answers} answers and {flows} steered flows"
    );
}

#[test]
fn a_hang_is_not_excused_by_a_port_that_goes_down_while_it_waits() {
    let began = Instant::now();
    let after = |milliseconds| began + Duration::from_millis(milliseconds);
    let down =
        Down(Mutex::new(BTreeMap::from([(7, vec![(after(1000), Some(after(3000))), (after(9000), None)])])));
    let attempt =
        |began, ended, failure| Attempt { from: 1, to: 7, began: after(began), ended: after(ended), failure };
    let explains = |began, ended, failure| down.explains(&attempt(began, ended, Some(failure)));
    for (began, hang) in
        [(0, false), (700, false), (900, true), (2900, true), (3200, true), (3300, false), (9500, true)]
    {
        let ended = began + 1500;
        assert_eq!(explains(began, ended, tcp::Failure::ConnectTimedOut), hang, "no answer from {began} on");
        assert_eq!(
            explains(began, ended, tcp::Failure::Stalled { received: 0 }),
            hang,
            "stalled from {began} on"
        );
        assert_eq!(down.explains(&attempt(began, began + 1001, None)), hang, "late from {began} on");
    }
    assert!(explains(0, 1100, tcp::Failure::Reset), "its container ended meanwhile");
    assert!(explains(0, 1100, tcp::Failure::ClosedEarly { received: 0 }));
    assert!(!explains(0, 900, tcp::Failure::Reset) && !explains(3300, 3400, tcp::Failure::Refused));
    assert!(!Down::default().explains(&attempt(0, 1, Some(tcp::Failure::Reset))));
}

#[test]
fn of_ten_thousand_short_connections_only_those_to_a_port_that_was_down_fail() {
    only_ports_that_were_down_fail(10_000);
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn of_a_hundred_thousand_short_connections_only_those_to_a_port_that_was_down_fail() {
    only_ports_that_were_down_fail(100_000);
}
