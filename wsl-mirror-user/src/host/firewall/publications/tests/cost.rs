//! How much is looked at, however many rules and ports there are.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::*;

/// As many containers as that, each with a port: Docker's rules without its proxy, 28.0 on, raw rules among them.
fn of_docker(count: u16) -> String {
    let mut text = "*raw\n:PREROUTING ACCEPT [0:0]\n".to_owned();
    let container = |n: u16| format!("172.17.{}.{}", n >> 8, n & 255);
    for port in 1..=count {
        let address = container(port);
        writeln!(text, "-A PREROUTING -d {address}/32 ! -i docker0 -j DROP").unwrap();
        writeln!(text, "-A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport {port} -j DROP").unwrap();
    }
    text.push_str(
        "COMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n",
    );
    for port in 1..=count {
        let address = container(port);
        writeln!(
            text,
            "-A DOCKER -d 127.0.0.1/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination {address}:80"
        )
        .unwrap();
    }
    text + "COMMIT\n"
}

/// One container with as many ports as that: netavark's rules, each port with a jump of its own to one chain.
fn of_netavark(count: u16) -> String {
    let mut text =
        "*nat\n:PREROUTING ACCEPT [0:0]\n:NETAVARK-HOSTPORT-DNAT - [0:0]\n:NETAVARK-DN-1 - [0:0]\n\
                    :NETAVARK-HOSTPORT-SETMARK - [0:0]\n\
                    -A NETAVARK-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000\n\
                    -A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT\n"
            .to_owned();
    for port in 1..=count {
        let tcp = format!("-p tcp -m tcp --dport {port}");
        writeln!(text, "-A NETAVARK-HOSTPORT-DNAT {tcp} -j NETAVARK-DN-1").unwrap();
        writeln!(text, "-A NETAVARK-DN-1 -s 127.0.0.1/32 {tcp} -j NETAVARK-HOSTPORT-SETMARK").unwrap();
        writeln!(text, "-A NETAVARK-DN-1 {tcp} -j DNAT --to-destination 10.88.0.2:{port}").unwrap();
    }
    text + "COMMIT\n"
}

/// As many containers as that, each with a chain and a port: CNI's rules.
fn of_cni(count: u16) -> String {
    let mut text = "*nat\n:PREROUTING ACCEPT [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n".to_owned();
    (1..=count).for_each(|port| writeln!(text, ":CNI-DN-{port} - [0:0]").unwrap());
    text.push_str("-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n");
    for port in 1..=count {
        writeln!(text, "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports {port} -j CNI-DN-{port}").unwrap();
        let address = format!("10.88.{}.{}", port >> 8, port & 255);
        writeln!(text, "-A CNI-DN-{port} -p tcp -m tcp --dport {port} -j DNAT --to-destination {address}:80")
            .unwrap();
    }
    text + "COMMIT\n"
}

/// How many rules are looked at to answer for so many ports, and how long it takes to read and to answer.
fn cost(rules: impl Fn(u16) -> String, count: u16) -> (usize, Duration) {
    let text = rules(count);
    let began = Instant::now();
    let publications = iptables(&text);
    for port in 1..=count {
        assert!(publications.target_of(Tcp, ANY, port).is_some(), "{port}");
        let _ = publications.is_dropped(Tcp, port);
    }
    let took = began.elapsed();
    let looked_at = publications.nat.looked_at.get() + publications.before_nat.looked_at.get();
    (looked_at, took)
}

#[test]
fn reading_is_linear_in_rules_and_ports() {
    type Rules = fn(u16) -> String;
    for (engine, rules) in [("docker", of_docker as Rules), ("netavark", of_netavark), ("cni", of_cni)] {
        let (mut half, mut whole) = (cost(rules, 10_000), cost(rules, 20_000));
        assert!(whole.0 <= 2 * half.0, "{engine}: {} rules looked at, then {}", half.0, whole.0);
        // Reading itself is in the time. The machine may have been busy with something else.
        for _ in 0..4 {
            if whole.1 < 4 * half.1 {
                break;
            }
            half.1 = half.1.min(cost(rules, 10_000).1);
            whole.1 = whole.1.min(cost(rules, 20_000).1);
        }
        assert!(whole.1 < 4 * half.1, "{engine}: {:?}, then {:?}", half.1, whole.1);
    }
}
