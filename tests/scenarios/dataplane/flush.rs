//! `conntrack -F` under established connections.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service, nat, pace, process::wait_for, tcp, udp,
};

use crate::world::{
    HELLO, detach, load, nft, services, slow_download, slow_echo, slow_upload, unload, while_flushing,
    windows, windows_udp,
};

const BYTES: u64 = 100 << 20;
const TWENTY_SECONDS: Duration = Duration::from_secs(20);

#[test]
fn nothing_breaks_under_a_flush_every_50_ms() -> Result<()> {
    let lab = Lab::builder().build()?;
    let docker = Docker::start(&lab, &DockerOptions::default())?;
    docker.run(
        Container::new("streams")
            .serve(Service::TcpEcho { port: 7 })
            .serve(Service::UdpEcho { port: 7 })
            .serve(Service::TcpSink { port: 9 })
            .serve(Service::TcpSource { port: 19, bytes: BYTES })
            .publish("8007:7")
            .publish("8007:7/udp")
            .publish("8009:9")
            .publish("8019:19"),
    )?;
    load(&lab)?;
    let before = nat::dnat_packets(lab.guest(), "tcp", 8007)?;
    let keep_alive = windows(&lab, 8007).keep_alive(Duration::from_millis(1))?;
    // Most of its time it is silent, so that nothing of it is in flight when the table is flushed.
    let calm = windows(&lab, 8007).keep_alive(Duration::from_millis(130))?;
    let datagrams = windows_udp(&lab, 8007).connect()?;
    let (transfers, flushes) = while_flushing(&lab, || {
        (0..pace::rounds(1)).try_for_each(|_| {
            thread::scope(|scope| -> Result<()> {
                let (client_up, client_down) = (windows(&lab, 8009), windows(&lab, 8019));
                let client_both = windows(&lab, 8007);
                let transfers = [
                    ("upload", scope.spawn(move || slow_upload(&client_up, BYTES, TWENTY_SECONDS))),
                    ("download", scope.spawn(move || slow_download(&client_down, BYTES, TWENTY_SECONDS))),
                    ("both ways", scope.spawn(move || slow_echo(&client_both, BYTES / 4, TWENTY_SECONDS))),
                ];
                for _ in 0..100 {
                    udp::exchange(&datagrams, HELLO).context("UDP")?;
                    thread::sleep(Duration::from_millis(100));
                }
                for (name, transfer) in transfers {
                    transfer
                        .join()
                        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
                        .context(name)?;
                }
                Ok(())
            })
        })
    })?;
    transfers?;
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
    let picked_up = lab.packets("steer_picked_up")?;
    assert!(picked_up > pace::at_least(100));
    // A packet that the program has seen and the stack has not, at the moment of the flush, does get to the rule.
    let caught = nat::dnat_packets(lab.guest(), "tcp", 8007)? - before;
    assert!(caught * 50 < picked_up, "Docker's rule saw {caught} packets, and {picked_up} were picked up");

    // And without: the connection outlives the unload, but not a flush that comes while it is silent. One that comes just
    // before the server speaks does not break it.
    unload(&lab)?;
    thread::sleep(Duration::from_millis(300));
    assert!(calm.is_alive());
    wait_for("a flush to break the connection", Duration::from_secs(5), || {
        nat::conntrack_flush(lab.guest())?;
        thread::sleep(Duration::from_millis(50));
        Ok((!calm.is_alive()).then_some(()))
    })?;
    println!("after a flush without wsl-mirror: {:?}", calm.stop());

    // With the nft remedy, for comparison: its rule sees what is picked up again, too.
    nft(
        &lab,
        "add table ip remedy; \
         add chain ip remedy pre { type nat hook prerouting priority dstnat - 1; }; \
         add rule ip remedy pre iif loopback0 ip daddr 127.0.0.1 meta l4proto { tcp, udp } dnat to 127.0.0.1",
    )?;
    let remedied = windows(&lab, 8007).keep_alive(Duration::from_millis(1))?;
    let ((), _) = while_flushing(&lab, || thread::sleep(Duration::from_secs(1)))?;
    println!("under flushes with the nft remedy: {:?}", remedied.stop());
    Ok(())
}

/// A flush between the program and the stack: rare, so it is put together from its parts.
#[test]
fn an_established_flow_that_dockers_rule_caught_in_its_midst_is_taken_back() -> Result<()> {
    let lab = services()?;
    load(&lab)?;
    let mut connection = windows(&lab, 8080).connect()?;
    tcp::exchange(&mut connection, HELLO)?;
    let before = nat::dnat_packets(lab.guest(), "tcp", 8080)?;

    // Nobody looks for a moment, but what is remembered stays.
    detach(&lab)?;
    thread::sleep(Duration::from_millis(300));
    nat::conntrack_flush(lab.guest())?;
    connection.write_all(HELLO)?;
    wait_for("Docker's rule to catch the flow", Duration::from_secs(2), || {
        Ok((nat::dnat_packets(lab.guest(), "tcp", 8080)? > before).then_some(()))
    })?;

    load(&lab)?;
    let mut answer = vec![0; HELLO.len()];
    connection.set_read_timeout(Some(pace::limit(Duration::from_secs(5))))?;
    connection.read_exact(&mut answer).context("the retransmission is steered, and answered")?;
    assert_eq!(answer, HELLO);
    assert!(lab.packets("steer_picked_up")? > 0);
    lab.keep();
    Ok(())
}
