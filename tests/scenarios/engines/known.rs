//! What is known of the engines without us, measured and read from their sources: whom a cell has to reach, or the
//! model is wrong, and why those that stay broken are.

use super::{
    cells::{Bound, Cell, Client, Protocol, Server},
    configuration::{Configuration, Engine, Proxy},
};

/// Whether a cell answers without us. Linux from 6.7 on.
pub fn answers_without_us(configuration: &Configuration, cell: Cell) -> bool {
    let Server::Container(bound) = cell.server else { return true };
    let dropped = configuration.has_raw_drop() && bound == Bound::Loopback;
    match (cell.client, configuration.is_served_by_docker_proxy()) {
        (Client::Windows, true) => configuration.detects_wsl(),
        (Client::Linux, true) | (Client::Windows, false) => !dropped,
        (Client::Linux, false) => false,
    }
}

/// Why a cell is broken with us as without us, and what one can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    pub cause: &'static str,
    pub way_out: &'static str,
}

const RAW_DROP: Explanation = Explanation {
    cause: "Docker 28 and later drop what comes in elsewhere than on lo for a port published on 127.0.0.1 (a rule in \
            table raw), unless they found loopback0 and /usr/bin/wslinfo when they started. Packets of Linux clients \
            leave by loopback0, Windows reflects them, and they come in on loopback0. wsl-mirror carries only flows \
            that Windows begins.",
    way_out: "Publish the port on all addresses; or connect to the container's own address; or start dockerd with \
              DOCKER_INSECURE_NO_IPTABLES_RAW=1, or again when loopback0 is there.",
};

const REFLECTED_REPLY: Explanation = Explanation {
    cause: "Without its proxy Docker rewrites a Linux client's destination to the container at OUTPUT. The container's \
            reply is translated back to 127.0.0.1 and forwarded to loopback0, Windows reflects it, and conntrack takes \
            the client's next packet for a new flow's (moby#53553).",
    way_out: "Leave the proxy on; or connect to the container's own address. For TCP alone \
              net.netfilter.nf_conntrack_tcp_loose=0 helps.",
};

const LOST_MARK: Explanation = Explanation {
    cause: "Podman's network marks a Linux client's packets to have their source masqueraded, and WSL's chain \
            WSLOUTPUT overwrites that mark: the container answers 127.0.0.1, which is itself.",
    way_out: "Connect to the container's own address.",
};

/// The explanation for a cell that neither we nor the engine heal; none for one that has no business to be broken.
pub fn explanation(configuration: &Configuration, cell: Cell) -> Option<Explanation> {
    if answers_without_us(configuration, cell) {
        return None;
    }
    match (configuration.engine, cell.client) {
        // Linux' own clients never meet the programs on loopback0: this heals with those that meet them.
        (Engine::Docker { proxy: Proxy::On, .. }, Client::Linux) => Some(RAW_DROP),
        (Engine::Docker { proxy: Proxy::Off, .. }, Client::Linux) => Some(REFLECTED_REPLY),
        (Engine::Podman { .. }, Client::Linux) => Some(LOST_MARK),
        (_, Client::Windows) => None,
    }
}

#[cfg(test)]
mod tests {
    use wsl_mirror_lab::NetworkBackend;

    use super::{super::configuration::*, *};

    /// The four publications in the order of the measured table: TCP any, TCP 127.0.0.1, UDP any, UDP 127.0.0.1.
    fn row(configuration: &Configuration, client: Client) -> String {
        let cell = |(protocol, bound)| Cell { client, protocol, server: Server::Container(bound) };
        [
            (Protocol::Tcp, Bound::Any),
            (Protocol::Tcp, Bound::Loopback),
            (Protocol::Udp, Bound::Any),
            (Protocol::Udp, Bound::Loopback),
        ]
        .map(|what| if answers_without_us(configuration, cell(what)) { '✓' } else { '✗' })
        .into_iter()
        .collect()
    }

    #[test]
    fn it_is_the_measured_table() {
        use Loopback0::{AfterDockerd, BeforeDockerd};
        use Proxy::{Off, On};
        use Wslinfo::{Absent, Present};
        let docker = Configuration::docker;
        let podman = Configuration::podman;
        for (configuration, windows, linux) in [
            (docker(DOCKER_20_10, On, Present, BeforeDockerd), "✗✗✗✗", "✓✓✓✓"),
            (docker(DOCKER_26_1, On, Absent, BeforeDockerd), "✗✗✗✗", "✓✓✓✓"),
            (docker(DOCKER_20_10, Off, Present, BeforeDockerd), "✓✓✓✓", "✗✗✗✗"),
            (docker(DOCKER_26_1, Off, Absent, BeforeDockerd), "✓✓✓✓", "✗✗✗✗"),
            (docker(DOCKER_28_5, On, Absent, BeforeDockerd), "✗✗✗✗", "✓✗✓✗"),
            (docker(DOCKER_28_5, Off, Absent, BeforeDockerd), "✓✗✓✗", "✗✗✗✗"),
            (docker(DOCKER_28_5, On, Present, BeforeDockerd), "✓✓✓✓", "✓✓✓✓"),
            (docker(DOCKER_28_5, Off, Present, BeforeDockerd), "✓✓✓✓", "✗✗✗✗"),
            (docker(DOCKER_28_5, On, Present, AfterDockerd), "✗✗✗✗", "✓✗✓✗"),
            (docker(DOCKER_28_5, Off, Present, AfterDockerd), "✓✗✓✗", "✗✗✗✗"),
            (podman(PODMAN_5_8, NetworkBackend::Netavark), "✓✓✓✓", "✗✗✗✗"),
        ] {
            assert_eq!(row(&configuration, Client::Windows), windows, "{configuration} {configuration:?}");
            assert_eq!(row(&configuration, Client::Linux), linux, "{configuration} {configuration:?}");
        }
    }
}
