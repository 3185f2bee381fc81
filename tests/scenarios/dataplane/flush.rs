//! `conntrack -F` under established connections.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service,
    checks::{HELLO, OrPanic as _, load, nft, unload, wait_until, windows, windows_udp},
    nat, pace,
    process::wait_for,
    tcp, udp,
};

use crate::world::{detach, services, slow_download, slow_echo, slow_upload, while_flushing};

const BYTES: u64 = 100 << 20;
const TWENTY_SECONDS: Duration = Duration::from_secs(20);

#[test]
fn nothing_breaks_under_a_flush_every_50_ms() {
    let lab = Lab::builder().build().or_panic();
    let docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    docker
        .run(
            Container::new("streams")
                .serve(Service::TcpEcho { port: 7 })
                .serve(Service::UdpEcho { port: 7 })
                .serve(Service::TcpSink { port: 9 })
                .serve(Service::TcpSource { port: 19, bytes: BYTES })
                .publish("8007:7")
                .publish("8007:7/udp")
                .publish("8009:9")
                .publish("8019:19"),
        )
        .or_panic();
    load(&lab);
    let before = nat::dnat_packets(lab.guest(), "tcp", 8007).or_panic();
    let keep_alive = windows(&lab, 8007).keep_alive(Duration::from_millis(1)).or_panic();
    // Most of its time it is silent, so that nothing of it is in flight when the table is flushed.
    let calm = windows(&lab, 8007).keep_alive(Duration::from_millis(130)).or_panic();
    let datagrams = windows_udp(&lab, 8007).connect().or_panic();
    let ((), flushes) = while_flushing(&lab, || {
        for _ in 0..pace::rounds(1) {
            thread::scope(|scope| {
                let (client_up, client_down) = (windows(&lab, 8009), windows(&lab, 8019));
                let client_both = windows(&lab, 8007);
                let transfers = [
                    ("upload", scope.spawn(move || slow_upload(&client_up, BYTES, TWENTY_SECONDS))),
                    ("download", scope.spawn(move || slow_download(&client_down, BYTES, TWENTY_SECONDS))),
                    ("both ways", scope.spawn(move || slow_echo(&client_both, BYTES / 4, TWENTY_SECONDS))),
                ];
                for _ in 0..100 {
                    udp::exchange(&datagrams, HELLO).context("UDP").or_panic();
                    thread::sleep(Duration::from_millis(100));
                }
                for (name, transfer) in transfers {
                    transfer
                        .join()
                        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
                        .context(name)
                        .or_panic();
                }
            });
        }
    });
    assert!(
        u64::from(flushes) > pace::at_least(150),
        "only {flushes} flushes in 20 seconds: the machine is too busy for this test"
    );
    for (name, connection) in [("keep-alive", &keep_alive), ("calm keep-alive", &calm)] {
        assert!(connection.is_alive(), "{name}");
    }
    let report = keep_alive.stop();
    assert_eq!(report.failure, None);
    assert!(report.exchanges > pace::at_least(1000), "{report:?}");
    let picked_up = lab.packets("steer_picked_up").or_panic();
    assert!(picked_up > pace::at_least(100));
    // A packet that the program has seen and the stack has not, at the moment of the flush, does get to the rule.
    let caught = nat::dnat_packets(lab.guest(), "tcp", 8007).or_panic() - before;
    assert!(caught * 50 < picked_up, "Docker's rule saw {caught} packets, and {picked_up} were picked up");

    // And without: the connection outlives the unload, but not a flush that comes while it is silent. One that comes just
    // before the server speaks does not break it.
    unload(&lab);
    thread::sleep(Duration::from_millis(300));
    assert!(calm.is_alive());
    wait_for("a flush to break the connection", Duration::from_secs(5), || {
        nat::conntrack_flush(lab.guest())?;
        thread::sleep(Duration::from_millis(50));
        Ok((!calm.is_alive()).then_some(()))
    })
    .or_panic();
    println!("after a flush without wsl-mirror: {:?}", calm.stop());

    // With the nft remedy, for comparison: its rule sees what is picked up again, too.
    nft(
        &lab,
        "add table ip remedy; \
         add chain ip remedy pre { type nat hook prerouting priority dstnat - 1; }; \
         add rule ip remedy pre iif loopback0 ip daddr 127.0.0.1 meta l4proto { tcp, udp } dnat to 127.0.0.1",
    );
    let remedied = windows(&lab, 8007).keep_alive(Duration::from_millis(1)).or_panic();
    let ((), _) = while_flushing(&lab, || thread::sleep(Duration::from_secs(1)));
    println!("under flushes with the nft remedy: {:?}", remedied.stop());
}

/// A flush between the program and the stack: rare, so it is put together from its parts.
#[test]
fn an_established_flow_that_dockers_rule_caught_in_its_midst_is_taken_back() {
    let lab = services();
    load(&lab);
    let mut connection = windows(&lab, 8080).connect().or_panic();
    tcp::exchange(&mut connection, HELLO).or_panic();
    let before = nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic();

    // Nobody looks for a moment, but what is remembered stays.
    detach(&lab);
    thread::sleep(Duration::from_millis(300));
    nat::conntrack_flush(lab.guest()).or_panic();
    connection.write_all(HELLO).or_panic();
    wait_until("Docker's rule to catch the flow", Duration::from_secs(2), || {
        nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic() > before
    });

    load(&lab);
    let mut answer = vec![0; HELLO.len()];
    connection.set_read_timeout(Some(pace::limit(Duration::from_secs(5)))).or_panic();
    connection.read_exact(&mut answer).context("the retransmission is steered, and answered").or_panic();
    assert_eq!(answer, HELLO);
    assert!(lab.packets("steer_picked_up").or_panic() > 0);
}
