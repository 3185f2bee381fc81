//! The rule comes after `load`: the first connection finds out, by its SYN's retransmission, and the listener
//! remembers.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, SockAddr, Socket, Type};
use wsl_mirror_lab::{
    Lab, Namespace,
    checks::{STEER, load, load_with},
    loopback, pace,
    process::wait_for,
};

use super::{
    PROXY, RETRANSMISSIONS, Rule, Ways, answers_at_once, answers_the_second_syn, client, ends, is_eaten,
    process, server,
};
use crate::world::{AT_ONCE, accept, port_packets, services, talk};

/// Who may be the first to meet the rule, and the port for it.
fn firsts(lab: &Lab) -> [(&Namespace, u16); 2] {
    [(lab.windows(), 8080), (lab.guest(), 8081)]
}

#[test]
fn a_rule_that_comes_after_load_costs_the_first_connection_a_second_and_no_other_anything() -> Result<()> {
    let lab = services();
    load_with(&lab, "delivery = \"plain\"\n");
    for (first, port) in firsts(&lab) {
        answers_at_once(first, port);
    }
    let rules = [Rule::add(&lab, "tcp", 8080)?, Rule::add(&lab, "tcp", 8081)?];
    for (first, port) in firsts(&lab) {
        let patient = client(first, port).limit(pace::limit(RETRANSMISSIONS)).connect();
        assert!(patient.is_err(), "the plain way there is no way");
    }
    for rule in rules {
        rule.remove()?;
    }

    load(&lab);
    let ways = Ways::new(&lab, &[8080, 8081])?;
    for (first, port) in firsts(&lab) {
        let ((), came) = ways.during(port, || {
            answers_at_once(first, port);
            Ok(())
        })?;
        came.all_plain("without the rule");
    }
    assert_eq!(lab.packets("steer_learned")?, 0);
    for rule in rules {
        rule.put_back()?;
    }
    for (count, (first, port)) in (1..).zip(firsts(&lab)) {
        let ((), came) = ways.during(port, || {
            answers_the_second_syn(first, port);
            Ok(())
        })?;
        assert_eq!(came.plain, 1, "the SYN that was eaten: {came:?}");
        assert_eq!(lab.packets("steer_learned")?, count);
        let ((), came) = ways.during(port, || {
            for from in ends(&lab).repeat(3) {
                answers_at_once(from, port);
            }
            Ok(())
        })?;
        came.all_by_lo("once it is known");
        assert_eq!(lab.packets("steer_learned")?, count, "once is enough");
    }
    assert!(lab.packets("steer_local")? > 0, "Linux to Linux");
    assert!(port_packets(&lab, "tcp", 8080, "steered_flows") > 0);
    // A load reads the rules; what was learned stays either way.
    load(&lab);
    for rule in rules {
        rule.remove()?;
    }
    load(&lab);
    for (first, port) in firsts(&lab) {
        let ((), came) = ways.during(port, || {
            answers_at_once(first, port);
            Ok(())
        })?;
        came.all_by_lo("its listener knows");
    }
    Ok(())
}

#[test]
fn what_was_learned_goes_with_the_listener() -> Result<()> {
    let lab = Lab::builder().build()?;
    load(&lab);
    let ways = Ways::new(&lab, &[8200])?;
    let rule = Rule::add(&lab, "tcp", 8200)?;
    for (count, first) in (1..).zip(ends(&lab)) {
        let mut proxy = process(&lab, PROXY)?;
        proxy.serve("127.0.0.1:8200")?;
        assert_eq!(server(first, 8200, RETRANSMISSIONS)?, PROXY);
        assert_eq!(lab.packets("steer_learned")?, count, "each listener learns by itself");
        let (_, came) = ways.during(8200, || server(first, 8200, AT_ONCE))?;
        came.all_by_lo("learned");
    }
    rule.remove()?;
    let mut proxy = process(&lab, PROXY)?;
    proxy.serve("127.0.0.1:8200")?;
    for from in ends(&lab) {
        let (who, came) = ways.during(8200, || server(from, 8200, AT_ONCE))?;
        assert_eq!(who, PROXY);
        came.all_plain("this one has learned nothing");
    }
    // Beside one that has: another address is another listener.
    drop(proxy);
    let mut other = process(&lab, "other")?;
    other.serve("127.0.0.1:8200")?;
    rule.put_back()?;
    for from in ends(&lab) {
        is_eaten(from, 8200);
        assert!(server(from, 8200, Duration::from_millis(1500)).is_err(), "another owner's is none of ours");
    }
    assert_eq!(lab.packets("steer_learned")?, 2);
    Ok(())
}

/// A listener whose queue has room for one connection.
fn narrow(lab: &Lab, port: u16) -> Result<TcpListener> {
    let socket = lab.guest().enter(|| -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(SocketAddr::V4(loopback(port))))?;
        socket.listen(0)?;
        Ok(socket)
    })?;
    Ok(socket.into())
}

/// How many connections wait in the queue of this listener on 127.0.0.1.
fn waiting_for_accept(lab: &Lab, port: u16) -> Result<u32> {
    let sockets = lab.guest().enter(|| fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let address = format!("0100007F:{port:04X}");
    let queues = sockets.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next() == Some(&address) && words.nth(1) == Some("0A")).then(|| words.next()).flatten()
    });
    let (_, waiting) = queues.and_then(|queues| queues.split_once(':')).context("no listener")?;
    Ok(u32::from_str_radix(waiting, 16)?)
}

/// The stack itself drops SYNs to it, so one comes twice with no rule about. It may be taken for one that was eaten.
#[test]
fn a_listener_whose_queue_was_full_loses_nothing_by_what_is_made_of_it() -> Result<()> {
    let lab = Lab::builder().build()?;
    load_with(&lab, STEER);
    let ways = Ways::new(&lab, &[8210])?;
    for from in ends(&lab) {
        let listener = narrow(&lab, 8210)?;
        let mut first = client(from, 8210).connect().context("the first has room")?;
        wait_for("the queue to be full", Duration::from_secs(5), || {
            Ok((waiting_for_accept(&lab, 8210)? == 1).then_some(()))
        })?;
        let patient = client(from, 8210).limit(pace::limit(2 * RETRANSMISSIONS));
        let waiting = thread::spawn(move || patient.connect());
        // Its SYN and the first retransmission.
        thread::sleep(Duration::from_millis(1300));
        let (mut served, _) = accept(&listener)?;
        talk(&mut first, &mut served)?;
        let second = waiting.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        let mut second = second.context("the second gets through when there is room")?;
        let (mut served_second, _) = accept(&listener)?;
        let came = ways.came(8210);
        println!("{}: {came:?}, learned {}", from.name(), lab.packets("steer_learned")?);
        for from in ends(&lab).repeat(2) {
            let mut later = client(from, 8210).connect()?;
            let (mut served, _) = accept(&listener)?;
            talk(&mut later, &mut served)?;
        }
        // Each goes on as it began.
        talk(&mut first, &mut served)?;
        talk(&mut second, &mut served_second)?;
    }
    Ok(())
}
