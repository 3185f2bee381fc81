//! That the ways out lead out which `known` names for what stays broken. None of them is ours. Of the container's own
//! address every row is sure before it begins.

use wsl_mirror_lab::{Docker, DockerOptions, Lab, checks::OrPanic as _};

use super::published_in_all_ways;
use crate::{
    cells::{Bound, Cell, Client, Protocol, Server},
    configuration::{DOCKER_28_5, Proxy},
    installed,
    measure::{self, Services},
};

/// Docker 28.5, if it is to be had.
#[track_caller]
fn docker(lab: &Lab, proxy: Proxy, environment: &[(&str, &str)]) -> Option<Docker> {
    let installed = match installed::find(&DOCKER_28_5) {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {reason}");
            return None;
        }
    };
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = DockerOptions {
        userland_proxy: proxy == Proxy::On,
        root: installed.root,
        environment,
        ..DockerOptions::default()
    };
    Some(Docker::start(lab, &options).or_panic())
}

/// The containers' cells of a client that answer, now.
#[track_caller]
fn answering(lab: &Lab, client: Client) -> Vec<(Protocol, Bound)> {
    let _services = Services::start(lab);
    let column = measure::column(lab);
    let answering = column.into_iter().filter(|(cell, outcome)| cell.client == client && outcome.answers());
    answering
        .filter_map(|(Cell { protocol, server, .. }, _)| match server {
            Server::Container(bound) => Some((protocol, bound)),
            Server::Host(_) | Server::Windows => None,
        })
        .collect()
}

const ALL: [(Protocol, Bound); 4] = [
    (Protocol::Tcp, Bound::Any),
    (Protocol::Tcp, Bound::Loopback),
    (Protocol::Udp, Bound::Any),
    (Protocol::Udp, Bound::Loopback),
];

#[test]
fn linux_reaches_127_0_0_1_if_docker_makes_no_raw_rules() {
    let lab = Lab::builder().wslinfo(false).build().or_panic();
    let Some(docker) = docker(&lab, Proxy::On, &[("DOCKER_INSECURE_NO_IPTABLES_RAW", "1")]) else { return };
    docker.run(published_in_all_ways()).or_panic();
    assert_eq!(answering(&lab, Client::Linux), ALL);
}

#[test]
fn linux_reaches_127_0_0_1_if_docker_starts_after_loopback0() {
    let lab = Lab::builder().loopback0(false).build().or_panic();
    let Some(mut docker) = docker(&lab, Proxy::On, &[]) else { return };
    lab.add_loopback0().or_panic();
    let container = docker.run(published_in_all_ways()).or_panic();
    let [any_tcp, _, any_udp, _] = ALL;
    assert_eq!(answering(&lab, Client::Linux), [any_tcp, any_udp], "before it starts again");
    docker.restart_daemon().or_panic();
    docker.start_again(&container).or_panic();
    assert_eq!(answering(&lab, Client::Linux), ALL);
}

#[test]
fn linux_reaches_docker_without_its_proxy_by_tcp_if_conntrack_is_not_loose() {
    let lab = Lab::builder().build().or_panic();
    if !lab.is_at_least((6, 7)).or_panic() {
        println!("skipped: before Linux 6.7 it reaches it anyway, and of UDP nothing is known");
        return;
    }
    let Some(docker) = docker(&lab, Proxy::Off, &[]) else { return };
    lab.guest().set_sysctls([("net/netfilter/nf_conntrack_tcp_loose", "0")]).or_panic();
    docker.run(published_in_all_ways()).or_panic();
    assert_eq!(
        answering(&lab, Client::Linux),
        [(Protocol::Tcp, Bound::Any), (Protocol::Tcp, Bound::Loopback)]
    );
}
