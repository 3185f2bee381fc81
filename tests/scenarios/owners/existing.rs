//! Sockets that were there before the hooks: `load` tags them.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::Result;
use wsl_mirror_lab::{Lab, Sockets, nat, pace};

use crate::{
    PROXY,
    clients::{answers, answers_udp},
    load, process,
};

#[test]
fn what_served_before_the_load_is_steered_by_who_serves_it() -> Result<()> {
    let lab = Lab::builder().build()?;
    nat::trap(lab.guest())?;
    let mut proxy = process(&lab, PROXY)?;
    proxy.serve("0.0.0.0:8080")?;
    proxy.serve("[::]:8083")?;
    proxy.tell("bind u udp 0.0.0.0:8080")?;
    proxy.tell("serve u")?;
    let mut other = process(&lab, "other")?;
    other.serve("0.0.0.0:8081")?;
    let mut daemon = process(&lab, "dockerd")?;
    daemon.tell("bind port tcp 0.0.0.0:8082")?;
    daemon.tell("hand port docker-proxy ask serve")?;
    let mut mine = process(&lab, PROXY)?;
    mine.tell("user 1000")?;
    mine.serve("0.0.0.0:8084")?;
    assert_eq!(answers(&lab, 8080), None, "works without us");
    load(&lab)?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers_udp(&lab, 8080).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 8083).as_deref(), Some(PROXY));
    assert_eq!(answers(&lab, 8082).as_deref(), Some(PROXY), "of two holders, the proxy serves");
    assert_eq!(answers(&lab, 8081), None);
    assert_eq!(answers(&lab, 8084), None, "a user's own program");
    assert_eq!(mine.tell("tag 0.0.0.0:8084")?, "docker-proxy 1000");
    Ok(())
}

/// dockerd binds, writes its rules, listens, and only then starts the proxy: a load may come at any of these points.
#[test]
fn what_was_bound_before_the_load_and_listens_after_it_is_steered_once_its_server_asks_for_its_address()
-> Result<()> {
    let lab = Lab::builder().build()?;
    nat::trap(lab.guest())?;
    let mut daemon = process(&lab, "dockerd")?;
    daemon.tell("bind port tcp 0.0.0.0:8080 later")?;
    load(&lab)?;
    daemon.tell("ask port")?;
    assert_eq!(daemon.tell("tag port")?, "none", "nobody can say who is going to serve it");
    daemon.tell("listen port")?;
    assert_eq!(daemon.tell("tag port")?, "none");
    assert_eq!(answers(&lab, 8080), None);
    daemon.tell("hand port docker-proxy ask serve")?;
    assert_eq!(answers(&lab, 8080).as_deref(), Some(PROXY));
    // What nobody can connect to gets none: everybody asks for the address of such.
    daemon.tell("unbound client")?;
    daemon.tell("ask client")?;
    assert_eq!(daemon.tell("tag client")?, "none");
    Ok(())
}

/// Binding goes on while hooks and tags come and go, and afterwards each socket that lives has its tag.
#[test]
fn no_socket_is_missed_that_is_bound_while_load_runs() -> Result<()> {
    let lab = Lab::builder().build()?;
    nat::trap(lab.guest())?;
    let (before, during) = (pace::rounds(20), AtomicBool::new(true));
    let mut proxy = process(&lab, PROXY)?;
    for round in 0..before {
        during.store(true, Ordering::Relaxed);
        let keys = thread::scope(|scope| -> Result<Vec<String>> {
            let binder = scope.spawn(|| -> Result<Vec<String>> {
                let mut keys = Vec::new();
                while during.load(Ordering::Relaxed) && keys.len() < 400 {
                    let key = format!("{round}-{}", keys.len());
                    proxy.tell(&format!("bind {key} udp 127.0.0.1:0"))?;
                    keys.push(key);
                }
                Ok(keys)
            });
            let loaded = load(&lab);
            during.store(false, Ordering::Relaxed);
            let keys = binder.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
            loaded.map(|()| keys)
        })?;
        for key in keys {
            assert_eq!(proxy.tell(&format!("tag {key}"))?, "docker-proxy 0", "round {round}, socket {key}");
            proxy.tell(&format!("close {key}"))?;
        }
        lab.wsl_mirror(&["unload"])?.success()?;
    }
    Ok(())
}

#[test]
fn five_thousand_ports_at_once_are_tagged_and_bound_in_reasonable_time() -> Result<()> {
    let count = if pace::is_emulated() { 500 } else { 5_000 };
    let lab = Lab::builder().build()?;
    lab.guest().set_sysctls([("net/ipv4/ip_local_port_range", "9000 65000")])?;
    nat::trap(lab.guest())?;
    // Descriptors are limited per process; engines start a proxy for each port.
    let mut proxies: Vec<Sockets> = Vec::new();
    let per_process = 500;
    let bind = |proxies: &mut Vec<Sockets>, when: &str| -> Result<()> {
        for first in (0..count).step_by(per_process) {
            let mut proxy = process(&lab, PROXY)?;
            for index in first..(first + per_process).min(count) {
                proxy.tell(&format!("bind {when}{index} tcp 127.0.0.1:0"))?;
            }
            proxies.push(proxy);
        }
        Ok(())
    };
    bind(&mut proxies, "before")?;
    let start = Instant::now();
    load(&lab)?;
    let took = start.elapsed();
    println!("load with {count} sockets to tag: {took:?}");
    bind(&mut proxies, "after")?;
    let (before, after) = proxies.split_at_mut(count / per_process);
    let mut tags = BTreeSet::new();
    for (when, proxies) in [("before", before), ("after", after)] {
        for (process, proxy) in proxies.iter_mut().enumerate() {
            for index in process * per_process..(process + 1) * per_process {
                tags.insert(proxy.tell(&format!("tag {when}{index}"))?);
            }
        }
    }
    assert_eq!(tags, BTreeSet::from(["docker-proxy 0".to_owned()]));
    if !pace::is_emulated() {
        assert!(took.as_secs_f64() < 3.0, "{took:?}");
    }
    Ok(())
}
