//! What is promised: every call, and what shall come of it at every stage. The one place that says so.

use super::outcome::Outcome;

/// What is done to the machine between two rounds of calls; the columns of the table, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Without,
    With,
    Direct,
    Exempt,
    Unloaded,
}

impl Stage {
    pub(super) const ALL: [Self; 5] = [Self::Without, Self::With, Self::Direct, Self::Exempt, Self::Unloaded];

    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::With => "loaded",
            Self::Direct => "direct",
            Self::Exempt => "exempt",
            Self::Unloaded => "unloaded",
        }
    }
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Windows,
    Linux,
}

impl Caller {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Windows => "Windows",
            Self::Linux => "Linux",
        }
    }
}

/// Where the called program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// Its Docker has docker-proxy, the default.
    WithProxy,
    /// Its Docker has `"userland-proxy": false`: dockerd holds the ports and never accepts, as Podman does.
    WithoutProxy,
}

/// Who is called, always on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A web server in a container.
    Web,
    /// The same server, published on 127.0.0.1 only.
    WebOnLoopback,
    /// A UDP service in the container.
    Udp,
    /// A web server in a container of [`Machine::WithoutProxy`].
    WebWithoutProxy,
    /// A UDP service in that container.
    UdpWithoutProxy,
    /// A program on Linux that no engine knows of.
    LinuxService,
    /// A program on Windows.
    WindowsService,
}

impl Target {
    pub(super) const ALL: [Self; 7] = [
        Self::Web,
        Self::WebOnLoopback,
        Self::Udp,
        Self::WebWithoutProxy,
        Self::UdpWithoutProxy,
        Self::LinuxService,
        Self::WindowsService,
    ];

    /// The port of the web server in the containers.
    pub(super) const WEB: u16 = 80;
    /// The port of the UDP service in the containers.
    pub(super) const ECHO: u16 = 5300;

    pub(super) const fn machine(self) -> Machine {
        match self {
            Self::WebWithoutProxy | Self::UdpWithoutProxy => Machine::WithoutProxy,
            Self::Web | Self::WebOnLoopback | Self::Udp | Self::LinuxService | Self::WindowsService => {
                Machine::WithProxy
            }
        }
    }

    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Web => 8080,
            Self::WebOnLoopback => 8081,
            Self::WebWithoutProxy => 8082,
            Self::Udp => 5300,
            Self::UdpWithoutProxy => 5302,
            Self::LinuxService => 8100,
            // Not one of the ports that the lab's Windows sends to Linux.
            Self::WindowsService => 9100,
        }
    }

    pub(super) const fn protocol(self) -> &'static str {
        match self {
            Self::Udp | Self::UdpWithoutProxy => "udp",
            _ => "tcp",
        }
    }

    /// For the table, whose lines have 80 columns at most.
    pub(super) const fn served_by(self) -> &'static str {
        match self {
            Self::Web | Self::Udp => "docker",
            Self::WebOnLoopback => "docker, 127.0.0.1",
            Self::WebWithoutProxy | Self::UdpWithoutProxy => "docker, no proxy",
            Self::LinuxService => "program on Linux",
            Self::WindowsService => "program on Windows",
        }
    }

    /// The arguments of `docker run`, for services in a container.
    pub(super) const fn publish(self) -> Option<&'static str> {
        match self {
            Self::Web => Some("8080:80"),
            Self::WebOnLoopback => Some("127.0.0.1:8081:80"),
            Self::Udp => Some("5300:5300/udp"),
            Self::WebWithoutProxy => Some("8082:80"),
            Self::UdpWithoutProxy => Some("5302:5300/udp"),
            Self::LinuxService | Self::WindowsService => None,
        }
    }
}

/// What shall come of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promised {
    Answer,
    Hang,
    /// No answer: a hang or a reset. Conntrack makes either of moby#53553.
    Nothing,
}

impl Promised {
    pub(super) fn is(self, outcome: &Outcome) -> bool {
        match self {
            Self::Answer => matches!(outcome, Outcome::Answered(_)),
            Self::Hang => matches!(outcome, Outcome::Hung),
            Self::Nothing => matches!(outcome, Outcome::Hung | Outcome::Reset),
        }
    }

    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Answer => "an answer",
            Self::Hang | Self::Nothing => "no answer",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) target: Target,
    /// By [`Stage`].
    pub(super) promised: [Promised; Stage::ALL.len()],
}

#[rustfmt::skip]
pub(super) const CALLS: [Call; 13] = {
    use Caller::{Linux, Windows};
    use Promised::{Answer, Hang, Nothing};
    use Target::{LinuxService, Udp, UdpWithoutProxy, Web, WebOnLoopback, WebWithoutProxy, WindowsService};

    const fn call(caller: Caller, target: Target, promised: [Promised; Stage::ALL.len()]) -> Call {
        Call { caller, target, promised }
    }
    //                                     without  with     direct   exempt   unloaded
    [
        call(Windows, Web,               [Hang,    Answer,  Answer,  Hang,    Hang]),
        call(Windows, WebOnLoopback,     [Hang,    Answer,  Answer,  Answer,  Hang]),
        call(Windows, Udp,               [Hang,    Answer,  Answer,  Answer,  Hang]),
        call(Windows, WebWithoutProxy,   [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Windows, UdpWithoutProxy,   [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Windows, LinuxService,      [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Linux,   Web,               [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Linux,   WebOnLoopback,     [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Linux,   Udp,               [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Linux,   WebWithoutProxy,   [Nothing, Answer,  Answer,  Nothing, Nothing]),
        call(Linux,   UdpWithoutProxy,   [Hang,    Answer,  Answer,  Answer,  Hang]),
        call(Linux,   LinuxService,      [Answer,  Answer,  Answer,  Answer,  Answer]),
        call(Linux,   WindowsService,    [Answer,  Answer,  Answer,  Answer,  Answer]),
    ]
};
