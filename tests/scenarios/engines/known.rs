//! Which cells answer without us, as measured and as read from the engines' sources. Else the model is wrong.
//!
//! `docs/engines.md` says why the others do not ("Why ports do not answer without us").

use super::{
    cells::{Bound, Cell, Client, Protocol, Server},
    configuration::Configuration,
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
