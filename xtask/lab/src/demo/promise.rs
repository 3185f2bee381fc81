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
            Self::Exempt => "8080 exempt",
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

/// Who is called, always on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A web server in a container.
    Web,
    /// The same server, published on 127.0.0.1 only.
    WebOnLoopback,
    /// A UDP service in the container.
    Udp,
    /// A program on Linux that no engine knows of.
    LinuxService,
    /// A program on Windows.
    WindowsService,
}

impl Target {
    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Web => 8080,
            Self::WebOnLoopback => 8081,
            Self::Udp => 5300,
            Self::LinuxService => 8100,
            // Not one of the ports that the lab's Windows sends to Linux.
            Self::WindowsService => 9100,
        }
    }

    pub(super) const fn protocol(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            _ => "tcp",
        }
    }

    /// For the table.
    pub(super) const fn served_by(self) -> &'static str {
        match self {
            Self::Web => "docker -p 8080:80",
            Self::WebOnLoopback => "docker -p 127.0.0.1:8081:80",
            Self::Udp => "docker -p 5300:5300/udp",
            Self::LinuxService => "a program on Linux",
            Self::WindowsService => "a program on Windows",
        }
    }

    /// The arguments of `docker run`, for services in the container.
    pub(super) const fn publish(self) -> Option<&'static str> {
        match self {
            Self::Web => Some("8080:80"),
            Self::WebOnLoopback => Some("127.0.0.1:8081:80"),
            Self::Udp => Some("5300:5300/udp"),
            Self::LinuxService | Self::WindowsService => None,
        }
    }
}

/// What shall come of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promised {
    Answer,
    Hang,
}

impl Promised {
    pub(super) fn is(self, outcome: &Outcome) -> bool {
        match self {
            Self::Answer => matches!(outcome, Outcome::Answered(_)),
            Self::Hang => matches!(outcome, Outcome::Hung),
        }
    }

    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Answer => "an answer",
            Self::Hang => "no answer",
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
pub(super) const CALLS: [Call; 9] = {
    use Caller::{Linux, Windows};
    use Promised::{Answer, Hang};
    use Target::{LinuxService, Udp, Web, WebOnLoopback, WindowsService};

    const fn call(caller: Caller, target: Target, promised: [Promised; Stage::ALL.len()]) -> Call {
        Call { caller, target, promised }
    }
    //                                     without  with    direct  exempt  unloaded
    [
        call(Windows, Web,                 [Hang,   Answer, Answer, Hang,   Hang]),
        call(Windows, WebOnLoopback,       [Hang,   Answer, Answer, Answer, Hang]),
        call(Windows, Udp,                 [Hang,   Answer, Answer, Answer, Hang]),
        call(Windows, LinuxService,        [Answer, Answer, Answer, Answer, Answer]),
        call(Linux,   Web,                 [Answer, Answer, Answer, Answer, Answer]),
        call(Linux,   WebOnLoopback,       [Answer, Answer, Answer, Answer, Answer]),
        call(Linux,   Udp,                 [Answer, Answer, Answer, Answer, Answer]),
        call(Linux,   LinuxService,        [Answer, Answer, Answer, Answer, Answer]),
        call(Linux,   WindowsService,      [Answer, Answer, Answer, Answer, Answer]),
    ]
};
