//! That the ways out lead out which `known` names for what stays broken. None of them is ours. Of the container's own
//! address every row is sure before it begins.

use anyhow::Result;
use wsl_mirror_lab::{Docker, DockerOptions, Lab};

use super::published_in_all_ways;
use crate::{
    cells::{Bound, Cell, Client, Protocol, Server},
    configuration::DOCKER_28_5,
    installed,
    measure::{self, Services},
};

/// Docker 28.5 without its proxy, if it is to be had.
fn docker(lab: &Lab, environment: &[(&str, &str)]) -> Result<Option<Docker>> {
    let installed = match installed::find(&DOCKER_28_5)? {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {reason}");
            return Ok(None);
        }
    };
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = DockerOptions {
        userland_proxy: false,
        root: installed.root,
        environment,
        ..DockerOptions::default()
    };
    Docker::start(lab, &options).map(Some)
}

/// The containers' cells of a client that answer, now.
fn answering(lab: &Lab, client: Client) -> Result<Vec<(Protocol, Bound)>> {
    let _services = Services::start(lab)?;
    let column = measure::column(lab)?;
    let answering = column.into_iter().filter(|(cell, outcome)| cell.client == client && outcome.answers());
    Ok(answering
        .filter_map(|(Cell { protocol, server, .. }, _)| match server {
            Server::Container(bound) => Some((protocol, bound)),
            Server::Host(_) | Server::Windows => None,
        })
        .collect())
}

const ALL: [(Protocol, Bound); 4] = [
    (Protocol::Tcp, Bound::Any),
    (Protocol::Tcp, Bound::Loopback),
    (Protocol::Udp, Bound::Any),
    (Protocol::Udp, Bound::Loopback),
];

#[test]
fn windows_reaches_what_docker_publishes_on_127_0_0_1_if_it_makes_no_raw_rules() -> Result<()> {
    let lab = Lab::builder().wslinfo(false).build()?;
    let Some(docker) = docker(&lab, &[("DOCKER_INSECURE_NO_IPTABLES_RAW", "1")])? else { return Ok(()) };
    docker.run(published_in_all_ways())?;
    assert_eq!(answering(&lab, Client::Windows)?, ALL);
    Ok(())
}

#[test]
fn windows_reaches_what_docker_publishes_on_127_0_0_1_if_it_starts_again_when_loopback0_is_there()
-> Result<()> {
    let lab = Lab::builder().loopback0(false).build()?;
    let Some(mut docker) = docker(&lab, &[])? else { return Ok(()) };
    lab.add_loopback0()?;
    let container = docker.run(published_in_all_ways())?;
    let [any_tcp, _, any_udp, _] = ALL;
    assert_eq!(answering(&lab, Client::Windows)?, [any_tcp, any_udp], "before it starts again");
    docker.restart_daemon()?;
    docker.start_again(&container)?;
    assert_eq!(answering(&lab, Client::Windows)?, ALL);
    Ok(())
}

#[test]
fn linux_reaches_docker_without_its_proxy_by_tcp_if_conntrack_is_not_loose() -> Result<()> {
    let lab = Lab::builder().build()?;
    if !lab.is_at_least((6, 7))? {
        println!("skipped: before Linux 6.7 it reaches it anyway, and of UDP nothing is known");
        return Ok(());
    }
    let Some(docker) = docker(&lab, &[])? else { return Ok(()) };
    lab.guest().set_sysctls([("net/netfilter/nf_conntrack_tcp_loose", "0")])?;
    docker.run(published_in_all_ways())?;
    assert_eq!(
        answering(&lab, Client::Linux)?,
        [(Protocol::Tcp, Bound::Any), (Protocol::Tcp, Bound::Loopback)]
    );
    Ok(())
}
