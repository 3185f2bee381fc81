//! Containers come, go and change their addresses under clients that never stop: no answer is another's.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Running, Service,
    checks::{OrPanic as _, RaiseOnDrop, ok, status, windows, windows_udp},
    pace,
    services::WHO,
    udp,
};

use crate::guest::{Agent, soon};

/// How long a client waits for an answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);

/// The number of the server that answers `7 172.17.0.1:40000\n`.
fn number(answer: &[u8]) -> Option<u64> {
    std::str::from_utf8(answer).ok()?.split_once(' ')?.0.parse().ok()
}

/// Who answers Windows by TCP.
fn who_tcp(lab: &Lab, port: u16) -> Option<Vec<u8>> {
    let limit = pace::limit(ANSWER_LIMIT);
    let mut stream = windows(lab, port).reset_on_close().limit(limit).connect().ok()?;
    stream.write_all(WHO).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(answer)
}

/// The flows of a port that went direct so far.
#[track_caller]
fn direct_flows(lab: &Lab, port: u16, protocol: &str) -> u64 {
    let (status, _) = status(lab);
    let ports = status["ports"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let port = ports.iter().find(|entry| entry["port"] == port && entry["protocol"] == protocol);
    port.and_then(|port| port["direct_flows"].as_u64()).unwrap_or(0)
}

/// The container behind a port, as `status` has it.
#[track_caller]
fn container_of(lab: &Lab, port: u16) -> Option<String> {
    let (status, _) = status(lab);
    let row = status["targets"].as_array()?.iter().find(|row| row["port"] == port)?;
    row["container"].as_str().map(str::to_owned)
}

/// Its clients never stop, TCP and UDP; the UDP client keeps its socket, so that its flow never ends by itself.
#[test]
fn a_container_with_another_address_answers_its_clients() {
    for userland_proxy in [true, false] {
        println!("userland_proxy = {userland_proxy}");
        let lab = Lab::builder().build().or_panic();
        let docker =
            Docker::start(&lab, &DockerOptions { userland_proxy, ..DockerOptions::default() }).or_panic();
        let named = |name: &str, number| {
            Container::new(name)
                .serve(Service::TcpNamed { port: 7, number })
                .serve(Service::UdpNamed { port: 53, number })
        };
        let one = docker.run(named("one", 1).publish("8080:7").publish("8053:53/udp")).or_panic();
        let _agent = Agent::start(&lab, "steering loopback0");
        ok(&lab, &["policy", "set", "8080", "8053", "direct"]);
        let address = one.address.to_string();
        soon("the container to be known", || container_of(&lab, 8053).as_ref() == Some(&address));
        soon("an answer", || who_tcp(&lab, 8080).is_some());
        let (done, strangers) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let (tcp, udp) = (AtomicU64::new(0), AtomicU64::new(0));
        let note = |answer: &[u8], count: &AtomicU64| match number(answer) {
            Some(1) => drop(count.fetch_add(1, Ordering::Relaxed)),
            _ => strangers.lock().or_panic_poisoned().push(String::from_utf8_lossy(answer).into_owned()),
        };
        thread::scope(|scope| {
            let raise = RaiseOnDrop(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    who_tcp(&lab, 8080).inspect(|answer| note(answer, &tcp));
                }
            });
            scope.spawn(|| {
                let client = windows_udp(&lab, 8053).limit(Duration::from_millis(20)).connect().or_panic();
                while !done.load(Ordering::Relaxed) {
                    if let Ok(answer) = udp::ask(&client, WHO) {
                        note(&answer, &udp);
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let answered = || {
                let before = (tcp.load(Ordering::Relaxed), udp.load(Ordering::Relaxed));
                soon("answers of both", || {
                    tcp.load(Ordering::Relaxed) > before.0 + 2 && udp.load(Ordering::Relaxed) > before.1 + 2
                });
            };
            answered();
            for round in 0..3 {
                let old = one_address(&lab);
                docker.cli(&["stop", "--time", "0", "one"]).or_panic();
                let name = format!("stranger-{round}");
                let stranger = docker.run(named(&name, 99)).or_panic();
                let again = docker.start_again(&one).or_panic();
                assert_ne!(again.address.to_string(), old, "the stranger has {}", stranger.address);
                let address = again.address.to_string();
                soon("the new address", || container_of(&lab, 8053).as_ref() == Some(&address));
                soon("the new address", || container_of(&lab, 8080).as_ref() == Some(&address));
                answered();
                assert!(direct_flows(&lab, 8080, "tcp") > 0 && direct_flows(&lab, 8053, "udp") > 0);
            }
            drop(raise);
        });
        let strangers = strangers.into_inner().unwrap_or_default();
        assert!(strangers.is_empty(), "answers of others: {strangers:?}");
    }
}

#[track_caller]
fn one_address(lab: &Lab) -> String {
    let mut address = None;
    soon("its address", || {
        address = container_of(lab, 8080);
        address.is_some()
    });
    address.unwrap_or_default()
}

/// A published port, and which of the servers publishes it.
#[derive(Clone, Copy)]
struct Published {
    port: u16,
    is_udp: bool,
    number: u64,
}

const CONTAINERS: u16 = 5;
const PORTS: u16 = 10;

/// The ports of one container. Each server has a number of its own.
fn ports_of(container: u16) -> impl Iterator<Item = Published> {
    (0..PORTS).map(move |index| Published {
        port: 8000 + container * 100 + index,
        is_udp: index % 2 == 1,
        number: u64::from(container * 100 + index),
    })
}

/// A container that publishes all its ports.
fn container(number: u16) -> Container {
    ports_of(number).fold(Container::new(&format!("c{number}")), |container, published| {
        let Published { port, is_udp, number } = published;
        if is_udp {
            container.serve(Service::UdpNamed { port, number }).publish(&format!("{port}:{port}/udp"))
        } else {
            container.serve(Service::TcpNamed { port, number }).publish(&format!("{port}:{port}"))
        }
    })
}

/// What the clients of all ports have seen.
#[derive(Default)]
struct Seen {
    /// Right answers, by port.
    right: Vec<AtomicU64>,
    /// Answers of other servers than the port's, and of ports that nobody publishes any more.
    wrong: Mutex<Vec<String>>,
    /// Ports that nobody publishes any more.
    gone: Mutex<Vec<u16>>,
}

impl Seen {
    fn note(&self, index: usize, published: Published, answer: &[u8], asked_gone: bool) {
        if number(answer) == Some(published.number) && !asked_gone {
            self.right[index].fetch_add(1, Ordering::Relaxed);
            return;
        }
        let answer = String::from_utf8_lossy(answer).into_owned();
        self.wrong
            .lock()
            .or_panic_poisoned()
            .push(format!("port {}, published: {}: {answer:?}", published.port, !asked_gone));
    }

    /// Whether nobody publishes the port, before it is asked.
    fn is_gone(&self, port: u16) -> bool {
        self.gone.lock().or_panic_poisoned().contains(&port)
    }
}

/// What is known of a port that does not answer.
#[track_caller]
fn described(lab: &Lab, port: u16) -> String {
    let entries = lab.guest().run("conntrack", ["-L", "-p", "udp", "--orig-port-dst", &port.to_string()]);
    let entries = entries.map_or_else(|error| format!("{error:#}"), |listed| listed.stdout);
    let (status, _) = status(lab);
    let of_port = |field: &str| -> Vec<Value> {
        let rows = status[field].as_array().cloned().unwrap_or_default();
        rows.into_iter().filter(|row| row["port"] == port).collect()
    };
    format!("targets {:?}, counters {:?}, conntrack:\n{entries}", of_port("targets"), of_port("ports"))
}

trait OrPanicPoisoned<T> {
    fn or_panic_poisoned(self) -> T;
}

impl<T, E> OrPanicPoisoned<T> for Result<T, E> {
    #[track_caller]
    fn or_panic_poisoned(self) -> T {
        self.unwrap_or_else(|_| panic!("a client panicked"))
    }
}

/// Containers and dockerd are restarted again and again, dockerd with its proxy and without. Half of the ports are direct.
#[test]
fn no_port_is_answered_by_another_container_through_restarts() {
    let restarts = if pace::is_soak() { 200 } else { 5 };
    let lab = Lab::builder().build().or_panic();
    let mut docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    let mut running: Vec<Running> =
        (0..CONTAINERS).map(|number| docker.run(container(number)).or_panic()).collect();
    let leaving = docker.run(container(CONTAINERS)).or_panic();
    let _agent = Agent::start(&lab, "steering loopback0");
    let all: Vec<Published> = (0..=CONTAINERS).flat_map(ports_of).collect();
    // Two of four, TCP and UDP.
    let direct: Vec<String> = all
        .iter()
        .filter(|published| published.port % 4 < 2)
        .map(|published| published.port.to_string())
        .collect();
    let words = ["policy", "set"].into_iter().chain(direct.iter().map(String::as_str)).chain(["direct"]);
    ok(&lab, &words.collect::<Vec<_>>());
    let done = AtomicBool::new(false);
    let seen = Seen { right: all.iter().map(|_| AtomicU64::new(0)).collect(), ..Seen::default() };
    thread::scope(|scope| {
        let raise = RaiseOnDrop(&done);
        for (index, published) in all.iter().copied().enumerate() {
            let (lab, done, seen) = (&lab, &done, &seen);
            scope.spawn(move || {
                let port = published.port;
                let client = windows_udp(lab, port).limit(pace::limit(ANSWER_LIMIT));
                let client = published.is_udp.then(|| client.connect().or_panic());
                while !done.load(Ordering::Relaxed) {
                    let is_gone = seen.is_gone(port);
                    let answer = match &client {
                        Some(client) => udp::ask(client, WHO).ok(),
                        None => who_tcp(lab, port).filter(|answer| !answer.is_empty()),
                    };
                    answer.inspect(|answer| seen.note(index, published, answer, is_gone));
                    thread::sleep(Duration::from_millis(30));
                }
            });
        }
        let all_answer = |containers: u16| {
            let before: Vec<u64> = seen.right.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            let ports = usize::from(containers * PORTS);
            let missing = || -> Vec<u16> {
                (0..ports)
                    .filter(|index| seen.right[*index].load(Ordering::Relaxed) <= before[*index])
                    .map(|index| all[index].port)
                    .collect()
            };
            let deadline = Instant::now() + pace::limit(Duration::from_secs(20));
            while !missing().is_empty() {
                let missing = missing();
                assert!(
                    Instant::now() < deadline,
                    "ports {missing:?} do not answer any more; of the first, {}",
                    described(&lab, missing.first().copied().unwrap_or(0))
                );
                thread::sleep(Duration::from_millis(20));
            }
        };
        all_answer(CONTAINERS + 1);
        docker.remove(&leaving).or_panic();
        // An answer may be on its way.
        thread::sleep(pace::limit(ANSWER_LIMIT * 2));
        seen.gone.lock().or_panic_poisoned().extend(ports_of(CONTAINERS).map(|published| published.port));
        for round in 0..restarts {
            match round % 5 {
                // The container that starts first gets the first address.
                1 | 3 => {
                    if round % 10 < 5 {
                        docker.restart_daemon_without_proxy().or_panic();
                    } else {
                        docker.restart_daemon_with_proxy().or_panic();
                    }
                    running.rotate_left(1);
                    for container in &mut running {
                        *container = docker.start_again(container).or_panic();
                    }
                }
                2 => {
                    for container in &running {
                        docker.stop(container).or_panic();
                    }
                    running.reverse();
                    for container in &mut running {
                        *container = docker.start_again(container).or_panic();
                    }
                }
                _ => {
                    let index = round % running.len();
                    running[index] = docker.restart(&running[index]).or_panic();
                }
            }
            all_answer(CONTAINERS);
            let wrong = seen.wrong.lock().or_panic_poisoned().clone();
            assert!(wrong.is_empty(), "round {round}: {} wrong answers: {:?}", wrong.len(), wrong.first());
        }
        drop(raise);
    });
    let right: u64 = seen.right.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    println!("{restarts} restarts, {right} right answers");
    assert!(
        direct_flows(&lab, 8000, "tcp") > 0 && direct_flows(&lab, 8001, "udp") > 0,
        "nothing went direct"
    );
}
