//! Many connections to one container at once: docker-proxy dies of them, since each takes one of its 4,096 ports.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use wsl_mirror_core::abi::{Protocol, Service};
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows},
    nat, pace,
};

use super::machine::{Machine, PORT};

#[test]
fn five_thousand_connections_in_ten_seconds_are_all_answered() {
    const CONNECTIONS: usize = 5000;
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let count = if pace::is_emulated() { CONNECTIONS / 10 } else { CONNECTIONS };
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            break;
                        }
                        let answer = windows(lab, PORT).echo(HELLO);
                        assert_eq!(answer, Ok(HELLO.to_vec()), "connection {number}");
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        }
    });
    let took = started.elapsed();
    println!("{count} connections in {took:?}");
    assert!(took < pace::limit(Duration::from_secs(10)) || !pace::judges_costs(), "{took:?}");
    // Windows takes ports again that it used a moment ago.
    assert_eq!(machine.packets("direct_new") + machine.packets("direct_reused"), count as u64);
    assert_eq!(machine.packets("steer_instead"), 0);
    assert_eq!(machine.read(Protocol::Tcp).unanswered_at, 0);
    // Each has left one entry, and no more.
    let entries = nat::conntrack_with(lab.guest(), &["tcp", "src=192.0.0.8"]).or_panic().len();
    assert!(entries <= count, "{entries} entries");
}
