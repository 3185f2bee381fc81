//! Sockets that were there before the hooks: `load` tags them.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use wsl_mirror_lab::{
    Lab, Sockets,
    checks::{OrPanic as _, load, unload},
    lab_sockets, nat, pace,
    sockets::{PROXY, answers, answers_udp},
};

#[test]
fn what_served_before_the_load_is_steered_by_who_serves_it() {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    let mut proxy = lab_sockets!(&lab, PROXY);
    proxy.serve("0.0.0.0:8080").or_panic();
    proxy.serve("[::]:8083").or_panic();
    proxy.tell("bind u udp 0.0.0.0:8080").or_panic();
    proxy.tell("serve u").or_panic();
    let mut other = lab_sockets!(&lab, "other");
    other.serve("0.0.0.0:8081").or_panic();
    let mut daemon = lab_sockets!(&lab, "dockerd");
    daemon.tell("bind port tcp 0.0.0.0:8082").or_panic();
    daemon.tell("hand port docker-proxy ask serve").or_panic();
    let mut mine = lab_sockets!(&lab, PROXY);
    mine.tell("user 1000").or_panic();
    mine.serve("0.0.0.0:8084").or_panic();
    assert_eq!(answers(&lab, 8080), None, "works without us");
    load(&lab);
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers_udp(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 8083).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 8082).as_deref(), Some(PROXY), "of two holders, the proxy serves");
    assert_eq!(answers(&lab, 8081), None);
    assert_eq!(answers(&lab, 8084), None, "a user's own program");
    assert_eq!(mine.tell("tag 0.0.0.0:8084").or_panic(), "docker-proxy 1000");
}

/// dockerd binds, writes its rules, listens, and only then starts the proxy: a load may come at any of these points.
#[test]
fn what_was_bound_before_the_load_and_listens_after_it_is_steered_once_its_server_asks_for_its_address() {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    let mut daemon = lab_sockets!(&lab, "dockerd");
    daemon.tell("bind port tcp 0.0.0.0:8080 later").or_panic();
    load(&lab);
    daemon.tell("ask port").or_panic();
    assert_eq!(daemon.tell("tag port").or_panic(), "none", "nobody can say who is going to serve it");
    daemon.tell("listen port").or_panic();
    assert_eq!(daemon.tell("tag port").or_panic(), "none");
    assert_eq!(answers(&lab, 8080), None);
    daemon.tell("hand port docker-proxy ask serve").or_panic();
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    // What nobody can connect to gets none: everybody asks for the address of such.
    daemon.tell("unbound client").or_panic();
    daemon.tell("ask client").or_panic();
    assert_eq!(daemon.tell("tag client").or_panic(), "none");
}

/// Binding goes on while hooks and tags come and go, and afterwards each socket that lives has its tag.
#[test]
fn no_socket_is_missed_that_is_bound_while_load_runs() {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    let (before, during) = (pace::rounds(20), AtomicBool::new(true));
    let mut proxy = lab_sockets!(&lab, PROXY);
    for round in 0..before {
        during.store(true, Ordering::Relaxed);
        let keys = thread::scope(|scope| {
            let binder = scope.spawn(|| {
                let mut keys = Vec::new();
                while during.load(Ordering::Relaxed) && keys.len() < 400 {
                    let key = format!("{round}-{}", keys.len());
                    proxy.tell(&format!("bind {key} udp 127.0.0.1:0")).or_panic();
                    keys.push(key);
                }
                keys
            });
            load(&lab);
            during.store(false, Ordering::Relaxed);
            binder.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        });
        for key in keys {
            assert_eq!(
                proxy.tell(&format!("tag {key}")).or_panic(),
                "docker-proxy 0",
                "round {round}, socket {key}"
            );
            proxy.tell(&format!("close {key}")).or_panic();
        }
        unload(&lab);
    }
}

#[test]
fn five_thousand_ports_at_once_are_tagged_and_bound_in_reasonable_time() {
    let count = if pace::is_emulated() { 500 } else { 5_000 };
    let lab = Lab::builder().build().or_panic();
    lab.guest().set_sysctls([("net/ipv4/ip_local_port_range", "9000 65000")]).or_panic();
    nat::trap(lab.guest()).or_panic();
    // Descriptors are limited per process; engines start a proxy for each port.
    let mut proxies: Vec<Sockets> = Vec::new();
    let per_process = 500;
    let bind = |proxies: &mut Vec<Sockets>, when: &str| {
        for first in (0..count).step_by(per_process) {
            let mut proxy = lab_sockets!(&lab, PROXY);
            for index in first..(first + per_process).min(count) {
                proxy.tell(&format!("bind {when}{index} tcp 127.0.0.1:0")).or_panic();
            }
            proxies.push(proxy);
        }
    };
    bind(&mut proxies, "before");
    let start = Instant::now();
    load(&lab);
    let took = start.elapsed();
    println!("load with {count} sockets to tag: {took:?}");
    bind(&mut proxies, "after");
    let (before, after) = proxies.split_at_mut(count / per_process);
    let mut tags = BTreeSet::new();
    for (when, proxies) in [("before", before), ("after", after)] {
        for (process, proxy) in proxies.iter_mut().enumerate() {
            for index in process * per_process..(process + 1) * per_process {
                tags.insert(proxy.tell(&format!("tag {when}{index}")).or_panic());
            }
        }
    }
    assert_eq!(tags, BTreeSet::from(["docker-proxy 0".to_owned()]));
    if !pace::is_emulated() {
        assert!(took.as_secs_f64() < 3.0, "{took:?}");
    }
}
