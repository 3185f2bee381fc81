//! Datagrams have no beginning: an entry lives as long as the client sends, and its container may not.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use wsl_mirror_core::abi::{EngineWay, Service, Target};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service as Serves,
    checks::{HELLO, OrPanic as _, RaiseOnDrop, STEER, load_with, nft, wait_until, windows, windows_udp},
    loopback, nat, pace, servers, tcp, udp,
};

use super::{
    machine::{DIRECT, FIRST, Machine, PORT, PROXY, SECOND},
    who::{Who, who, who_from, who_udp},
};
use crate::world::raw_drop;

/// A client that asks every few milliseconds from one socket who answers, and never stops.
struct Asking<'a> {
    answers: &'a Mutex<Vec<u64>>,
}

impl Asking<'_> {
    /// Who has answered since the last look.
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Waits until this many answers have come since now.
    #[track_caller]
    fn wait(&self, count: usize, when: &str) -> Vec<u64> {
        self.take();
        let mut all = Vec::new();
        wait_until(&format!("answers {when}"), Duration::from_secs(5), || {
            all.extend(self.take());
            all.len() >= count
        });
        all
    }
}

/// Asks in the background for as long as `work` takes.
#[track_caller]
fn while_asking<T>(lab: &Lab, work: impl FnOnce(&Asking<'_>) -> T) -> T {
    let socket =
        windows_udp(lab, PORT).from_port(40_000).limit(Duration::from_millis(20)).connect().or_panic();
    let (answers, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Refused or unanswered: it goes on.
                if let Ok(Who { number, .. }) = who_from(&socket) {
                    answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(number);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        let stopping = RaiseOnDrop(&stop);
        let result = work(&Asking { answers: &answers });
        drop(stopping);
        asking.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        result
    })
}

#[test]
fn a_client_that_never_stops_gets_the_ports_new_container() {
    let machine = Machine::direct(Service::Proxy);
    let moment = || thread::sleep(Duration::from_millis(50));
    while_asking(&machine.lab, |asking| {
        let answers = asking.wait(5, "at first");
        assert!(answers.iter().all(|number| *number == u64::from(FIRST)), "{answers:?}");
        machine.aim(SECOND);
        moment();
        let answers = asking.wait(5, "of the other container");
        assert!(answers.iter().all(|number| *number == u64::from(SECOND)), "{answers:?}");
        assert_eq!((machine.packets("direct_new"), machine.packets("direct_reused")), (1, 1));
        // The listener goes. What passes then meets the engine's rule, and no container answers 127.0.0.1.
        machine.unlisten();
        moment();
        asking.take();
        moment();
        assert_eq!(asking.take(), Vec::<u64>::new(), "nobody listens");
        // Another one comes, whose target is not known yet, and then is.
        load_with(&machine.lab, &format!("{DIRECT}{STEER}"));
        machine.listen();
        moment();
        let answers = asking.wait(5, "of the new listener");
        assert!(answers.iter().all(|number| *number == PROXY), "{answers:?}");
    });
    machine.aim(FIRST);
    let answer = who_udp(&windows_udp(&machine.lab, PORT));
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
}

/// The container's address stays, and another of its ports is published: the old one answers nobody any more.
#[test]
fn a_client_that_never_stops_gets_the_containers_new_port() {
    let machine = Machine::direct(Service::Proxy);
    let at = (Ipv4Addr::UNSPECIFIED, 90);
    let _other = servers::udp(machine.container(), at, Some(90)).or_panic();
    while_asking(&machine.lab, |asking| {
        let answers = asking.wait(5, "at first");
        assert!(answers.iter().all(|number| *number == u64::from(FIRST)), "{answers:?}");
        machine.write(Target { port: 90, ..machine.target(FIRST) });
        thread::sleep(Duration::from_millis(50));
        let answers = asking.wait(5, "of the other port");
        assert!(answers.iter().all(|number| *number == 90), "{answers:?}");
    });
}

/// A container stops, another one takes its address, and the first comes back with a new one.
#[test]
fn an_address_that_another_container_took_answers_nobody() {
    let lab = Lab::builder().sends_always([PORT..=PORT]).build().or_panic();
    let docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    let named = |name: &str, number| Container::new(name).serve(Serves::UdpNamed { port: 80, number });
    let first = docker.run(named("first", 7).publish("8080:80/udp")).or_panic();
    load_with(&lab, DIRECT);
    while_asking(&lab, |asking| {
        let answers = asking.wait(5, "at first");
        assert!(answers.iter().all(|number| *number == 7), "{answers:?}");
        assert_eq!(lab.packets("direct_new").or_panic(), 1);
        docker.stop(&first).or_panic();
        let second = docker.run(named("second", 9)).or_panic();
        assert_eq!(second.address, first.address, "the address was taken");
        let again = docker.start_again(&first).or_panic();
        assert_ne!(again.address, first.address);
        let answers = asking.wait(5, "before the next load");
        assert!(answers.iter().all(|number| *number == 7), "{answers:?}");
        load_with(&lab, DIRECT);
        let answers = asking.wait(5, "after it");
        assert!(answers.iter().all(|number| *number == 7), "{answers:?}");
    });
    let answer = who_udp(&windows_udp(&lab, PORT)).or_panic();
    assert_eq!((answer.number, answer.client.ip()), (7, &Ipv4Addr::new(172, 17, 0, 1)));
    assert!(lab.packets("direct_reply").or_panic() > 0);
}

/// The client was there first: its datagrams reached a holder that never answers, and it never stops.
#[test]
fn older_datagrams_go_direct_beside_their_entry() {
    let machine = Machine::new(Service::Holder);
    let lab = &machine.lab;
    // The container is not published yet.
    nft(lab, "flush chain ip engine pre");
    load_with(lab, DIRECT);
    let socket = windows_udp(lab, PORT).from_port(40_000).limit(pace::limit(Duration::from_millis(100)));
    let socket = socket.connect().or_panic();
    for _ in 0..3 {
        assert_eq!(who_from(&socket), Err(udp::Failure::TimedOut));
    }
    let own = ["udp", "src=127.0.0.1", "dst=127.0.0.1", "sport=40000", "dport=8080"];
    assert_eq!(nat::conntrack_with(lab.guest(), &own).or_panic().len(), 1);
    machine.aim(FIRST);
    socket.set_read_timeout(Some(udp::limit())).or_panic();
    for _ in 0..3 {
        let answer = who_from(&socket);
        assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
    }
    assert_eq!((machine.packets("direct_new"), machine.packets("direct_established")), (1, 2));
}

/// A service of the machine that never answers, as a log's: its datagrams stay what they were.
#[test]
fn one_way_datagrams_to_a_host_service_arrive_all() {
    let lab = Lab::builder().build().or_panic();
    let sink = lab.guest().enter(|| UdpSocket::bind(loopback(8101))).or_panic();
    sink.set_read_timeout(Some(udp::limit())).or_panic();
    let log = windows_udp(&lab, 8101).connect().or_panic();
    let arrives = |when: &str| {
        for _ in 0..3 {
            log.send(HELLO).or_panic();
            let length = sink.recv(&mut [0; 64]).unwrap_or_else(|error| panic!("{when}: {error}"));
            assert_eq!(length, HELLO.len());
        }
    };
    arrives("without us");
    load_with(&lab, DIRECT);
    arrives("path direct");
    load_with(&lab, &format!("{DIRECT}{STEER}"));
    arrives("default steer");
    assert_eq!(lab.packets("steer_new").or_panic() + lab.packets("direct_new").or_panic(), 0);
    assert_eq!(nat::conntrack_with(lab.guest(), &["udp", "dport=8101"]).or_panic().len(), 1);
}

/// Linux' own datagrams come back by Windows. Unanswered or not, they are none of Windows' clients.
#[test]
fn linux_clients_over_the_hairpin_are_untouched() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let of_linux = udp::Client::new(lab.guest(), loopback(PORT)).connect().or_panic();
    let mut connection = tcp::Client::new(lab.guest(), loopback(PORT)).connect().or_panic();
    // Windows' clients beside them.
    let of_windows = windows_udp(lab, PORT).connect().or_panic();
    let mut windows_connection = windows(lab, PORT).connect().or_panic();
    for round in 0..5 {
        let linux = [who_from(&of_linux).ok(), super::who::who_over(&mut connection).ok()];
        assert!(linux.iter().flatten().filter(|who| who.number == PROXY).count() == 2, "{round}: {linux:?}");
        let windows = [who_from(&of_windows).ok(), super::who::who_over(&mut windows_connection).ok()];
        assert!(
            windows.iter().flatten().filter(|who| Machine::is_from(FIRST, who)).count() == 2,
            "{windows:?}"
        );
        if round == 2 {
            nat::conntrack_flush(lab.guest()).or_panic();
        }
    }
    assert_eq!(machine.packets("steer_new") + machine.packets("steer_instead"), 0);
    // A silent listener leaves the entry of Linux' flow unanswered.
    let silent = Machine::direct(Service::Holder);
    let lab = &silent.lab;
    let limit = pace::limit(Duration::from_millis(50));
    let of_linux = udp::Client::new(lab.guest(), loopback(PORT)).limit(limit).connect().or_panic();
    for _ in 0..3 {
        assert!(who_from(&of_linux).is_err());
    }
    assert!(silent.packets("pass_not_ours") >= 3, "it came back by Windows");
    assert_eq!(silent.packets("direct_new"), 0);
    // Its rule drops what is not direct; the same client of Windows is.
    raw_drop(lab, "udp", PORT);
    silent.write(Target { flags: EngineWay::Dropped as u8, ..silent.target(FIRST) });
    assert!(who_udp(&windows_udp(lab, PORT)).is_ok());
    let answer = who(&windows(lab, PORT).reset_on_close());
    assert!(answer.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{answer:?}");
}
