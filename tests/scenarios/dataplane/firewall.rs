//! A firewall that drops `ct state invalid`, as many do.

use std::{net::TcpListener, thread, time::Duration};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab, SharedLab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, nft, wait_until, windows},
    loopback, nat,
    services::Pattern,
    tcp,
};

use crate::world::{STREAM, accept, counted, engine_rule, services, talk};

#[track_caller]
fn behind_a_firewall() -> SharedLab {
    let lab = services();
    drop_invalid(&lab);
    load(&lab);
    lab
}

#[track_caller]
fn drop_invalid(lab: &Lab) {
    nft(
        lab,
        "add table ip wall; add counter ip wall invalid; \
         add chain ip wall input { type filter hook input priority filter; }; \
         add rule ip wall input ct state invalid counter name invalid drop",
    );
}

#[track_caller]
fn invalid(lab: &Lab) -> u64 {
    counted(&nft(lab, "list counter ip wall invalid"))
}

#[test]
fn carried_transfers_and_requests_are_never_invalid() {
    let lab = behind_a_firewall();
    windows(&lab, 8009).upload(STREAM).or_panic();
    windows(&lab, 8020).download(STREAM).or_panic();
    let keep_alive = windows(&lab, 8080).keep_alive(Duration::from_millis(1)).or_panic();
    for _ in 0..100 {
        windows(&lab, 8080).echo(HELLO).or_panic();
    }
    assert_eq!(keep_alive.stop().failure, None);
    assert_eq!(invalid(&lab), 0);
}

#[test]
fn requests_go_on_after_a_flush() {
    let lab = behind_a_firewall();
    let busy = windows(&lab, 8080).keep_alive(Duration::from_millis(1)).or_panic();
    let calm = windows(&lab, 8080).keep_alive(Duration::from_millis(100)).or_panic();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(150));
        nat::conntrack_flush(lab.guest()).or_panic();
    }
    thread::sleep(Duration::from_millis(150));
    assert_eq!((busy.stop().failure, calm.stop().failure), (None, None));
}

/// A limit of ours, and the way out.
///
/// An entry that conntrack itself makes in the middle of a connection is lenient with its windows
/// (`IP_CT_TCP_FLAG_BE_LIBERAL`, set in `tcp_new()`), because it cannot know how they are scaled. One that a
/// program makes never goes through `tcp_new()`, and nothing else sets that flag. So after a flush, if the
/// client's packet is the first, conntrack takes its window for much smaller than it is, and a burst of the
/// server's for invalid; what the client acknowledges was then never sent, and that acknowledgement is what
/// the firewall drops. If the server's packet is the first, conntrack makes the entry, and nothing happens.
#[test]
fn a_download_may_stall_after_a_flush_with_strict_conntrack() {
    for (first, liberal) in [(End::Server, "0"), (End::Client, "0"), (End::Client, "1")] {
        let lab = Lab::builder().build().or_panic();
        engine_rule(&lab, "tcp", 8100);
        drop_invalid(&lab);
        lab.guest().set_sysctls([("net/netfilter/nf_conntrack_tcp_be_liberal", liberal)]).or_panic();
        load_with(&lab, STEER);
        let stalls = (first, liberal) == (End::Client, "0");
        // Who is first is a matter of chance to some degree, and so is whether a burst comes that is too large for
        // the window: the one stall that shall happen may take several tries, and none may be where none is due.
        let mut outcomes = Vec::new();
        for _ in 0..10 {
            let (was_first, went_through) = flush_in_a_download(&lab, first);
            if was_first == first {
                outcomes.push(went_through);
                if !(stalls && went_through) {
                    break;
                }
            }
        }
        let case = format!(
            "the {first:?} first, liberal {liberal}: came through {outcomes:?}, {} invalid packets",
            invalid(&lab)
        );
        assert_eq!(outcomes.last(), Some(&!stalls), "{case}");
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Server,
    Client,
}

/// Has this end send first after the flush, if chance allows. Says whose packet made the new entry, and whether the
/// download came through.
#[track_caller]
fn flush_in_a_download(lab: &Lab, first: End) -> (End, bool) {
    let listener = lab.guest().enter(|| TcpListener::bind(loopback(8100))).or_panic();
    let mut client = windows(lab, 8100).connect().or_panic();
    let (mut server, _) = accept(&listener).or_panic();
    talk(&mut client, &mut server).or_panic();
    server.set_write_timeout(Some(tcp::limit())).or_panic();
    let sending = thread::spawn(move || Pattern::default().write(&mut server, STREAM));
    // The client's buffer fills up; from then on the server only asks now and then whether it is read.
    thread::sleep(Duration::from_millis(300));
    nat::conntrack_flush(lab.guest()).or_panic();
    if first == End::Server {
        wait_until("the server to ask", Duration::from_secs(5), || {
            !nat::conntrack_with(lab.guest(), &["tcp"]).or_panic().is_empty()
        });
    }
    let received = std::io::copy(&mut client, &mut std::io::sink());
    let port = client.local_addr().or_panic().port();
    let entries =
        nat::conntrack_with(lab.guest(), &["tcp", &format!("sport={port}"), "dport=8100"]).or_panic();
    let entry = entries.first().context("the download has no entry").or_panic();
    let sender = entry.split_whitespace().find(|word| word.starts_with("sport="));
    drop(client);
    let _ = sending.join();
    let first = if sender == Some("sport=8100") { End::Server } else { End::Client };
    (first, received.is_ok_and(|bytes| bytes == STREAM))
}
