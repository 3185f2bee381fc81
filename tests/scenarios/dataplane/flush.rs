//! `conntrack -F` under established connections, at full speed: a client that is limited in its rate hides what a wrong
//! window does to a flow.

use std::{io::Read as _, net::TcpListener, thread, time::Duration};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, Namespace, Service, SharedLab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, windows, windows_udp},
    loopback, nat, pace, tcp, udp,
};

use crate::world::{AT_ONCE, accept, download, raw_drop, talk, upload, while_flushing};

/// What is sent at full speed: several times the largest window.
const BYTES: u64 = 64 << 20;
/// A lost packet costs its sender less.
const PATIENCE: Duration = Duration::from_secs(4);

#[track_caller]
fn streams() -> SharedLab {
    let container = Container::new("streams")
        .serve(Service::TcpEcho { port: 7 })
        .serve(Service::UdpEcho { port: 7 })
        .serve(Service::TcpSink { port: 9 })
        .serve(Service::TcpSource { port: 19, bytes: BYTES })
        .publish("8007:7")
        .publish("8007:7/udp")
        .publish("8009:9")
        .publish("8019:19");
    let lab = SharedLab::take(Lab::builder(), &DockerOptions::default(), container).or_panic();
    for namespace in [lab.guest(), lab.windows()] {
        assert_eq!(namespace.sysctl("net/ipv4/tcp_window_scaling").or_panic(), "1");
    }
    lab
}

fn client(from: &Namespace, port: u16) -> tcp::Client {
    tcp::Client::new(from, loopback(port)).limit(pace::limit(PATIENCE))
}

#[test]
fn one_flush_ends_no_transfer() {
    let lab = streams();
    load(&lab);
    let flush = || nat::conntrack_flush(lab.guest()).or_panic();
    for round in 0..pace::rounds(20) {
        download(&client(lab.windows(), 8019), BYTES, flush)
            .with_context(|| format!("down, {round}"))
            .or_panic();
        upload(&client(lab.windows(), 8009), BYTES, flush).with_context(|| format!("up, {round}")).or_panic();
    }
    let picked_up = lab.packets("pass_picked_up").or_panic();
    assert!(picked_up >= pace::at_least(10) / 10, "no client was the first to speak");
}

#[test]
fn flushes_every_20_ms_end_no_transfer() {
    let lab = streams();
    load(&lab);
    let keep_alive = client(lab.windows(), 8007).keep_alive(Duration::from_millis(1)).or_panic();
    // Most of its time it is silent, so that nothing of it is in flight when the table is flushed.
    let calm = client(lab.windows(), 8007).keep_alive(Duration::from_millis(130)).or_panic();
    let of_linux = client(lab.guest(), 8007).keep_alive(Duration::from_millis(5)).or_panic();
    let datagrams = windows_udp(&lab, 8007).connect().or_panic();
    let ((), flushes) = while_flushing(&lab, Duration::from_millis(20), || {
        thread::scope(|scope| {
            let up = scope.spawn(|| {
                for round in 0..pace::rounds(20) {
                    upload(&client(lab.windows(), 8009), BYTES, || ())
                        .with_context(|| format!("up, {round}"))
                        .or_panic();
                }
            });
            let linux = scope.spawn(|| {
                for round in 0..pace::rounds(5) {
                    download(&client(lab.guest(), 8019), BYTES, || ())
                        .with_context(|| format!("Linux, {round}"))
                        .or_panic();
                }
            });
            for round in 0..pace::rounds(20) {
                download(&client(lab.windows(), 8019), BYTES, || ())
                    .with_context(|| format!("down, {round}"))
                    .or_panic();
                udp::exchange(&datagrams, HELLO).context("UDP").or_panic();
            }
            for transfers in [up, linux] {
                transfers.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            }
        });
    });
    assert!(u64::from(flushes) >= pace::at_least(50), "only {flushes} flushes");
    for (name, connection) in [("busy", keep_alive), ("calm", calm), ("Linux", of_linux)] {
        let report = connection.stop();
        assert_eq!(report.failure, None, "{name}: {report:?}");
    }
    assert!(lab.packets("pass_picked_up").or_panic() >= pace::at_least(20));
}

/// In the middle of a connection an entry on the alias would know no window scale: the flow goes on without one.
#[test]
fn a_picked_up_flow_has_no_entry_on_the_alias() {
    let lab = Lab::builder().build().or_panic();
    nat::trap(lab.guest()).or_panic();
    load_with(&lab, STEER);
    let listener = lab.guest().enter(|| TcpListener::bind(loopback(8100))).or_panic();
    let mut client = windows(&lab, 8100).from_port(40_000).connect().or_panic();
    let (mut server, _) = accept(&listener).or_panic();
    for _ in 0..3 {
        talk(&mut client, &mut server).or_panic();
        // Past delayed acknowledgements: the client is to be the first to speak.
        thread::sleep(Duration::from_millis(100));
        nat::conntrack_flush(lab.guest()).or_panic();
        talk(&mut client, &mut server).or_panic();
        let entries = nat::conntrack_with(lab.guest(), &["tcp", "sport=40000"]).or_panic();
        assert_eq!(entries.len(), 1, "{entries:#?}");
        assert!(!entries[0].contains("dst=127.119"), "{entries:#?}");
    }
    assert!(lab.packets("pass_picked_up").or_panic() >= 3);
    // A bare SYN begins on the alias again, once the connection is over.
    drop(server);
    assert_eq!(client.read(&mut [0]).or_panic(), 0);
    drop(client);
    let mut client = windows(&lab, 8100).from_port(40_000).limit(pace::limit(AT_ONCE)).connect().or_panic();
    let (mut server, _) = accept(&listener).or_panic();
    talk(&mut client, &mut server).or_panic();
    let entries = nat::conntrack_with(lab.guest(), &["tcp", "sport=40000"]).or_panic();
    assert!(entries.iter().any(|entry| entry.contains("dst=127.119.0.1")), "{entries:#?}");
}

/// A limit, and the documents name it: a flow that goes on without the alias meets the rule that drops it.
#[test]
fn a_flush_under_dockers_raw_drop_ends_old_flows_alone() {
    let lab = streams();
    raw_drop(&lab, "tcp", 8007);
    raw_drop(&lab, "udp", 8007);
    load(&lab);
    let mut connection =
        windows(&lab, 8007).reset_on_close().limit(pace::limit(AT_ONCE)).connect().or_panic();
    let datagrams = windows_udp(&lab, 8007).connect().or_panic();
    assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()));
    thread::sleep(Duration::from_millis(100));
    nat::conntrack_flush(lab.guest()).or_panic();
    let stalled = tcp::exchange(&mut connection, HELLO);
    assert_eq!(stalled, Err(tcp::Failure::Stalled { received: 0 }));
    assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "datagrams begin anew");
    assert_eq!(windows(&lab, 8007).echo(HELLO), Ok(HELLO.to_vec()), "a new connection");
}
