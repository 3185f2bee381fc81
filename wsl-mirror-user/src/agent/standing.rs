//! How it stands after a round.

use std::fmt;

use super::report::State;

/// The wsl-mirror of another distribution for which we stand aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// It steers.
    Steering,
    /// It did, until a moment ago.
    Gone,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Packets are steered.
    Steering {
        /// The interface.
        interface: String,
        /// Its index.
        ifindex: u32,
    },
    /// There is no such interface (yet).
    Waiting {
        /// Its name.
        interface: String,
    },
    /// Another distribution steers.
    Aside {
        /// The interface.
        interface: String,
        /// What the other one does.
        neighbour: Neighbour,
    },
}

impl Standing {
    /// As the report has it.
    pub const fn state(&self) -> State {
        match self {
            Self::Steering { .. } => State::Steering,
            Self::Waiting { .. } => State::Waiting,
            Self::Aside { .. } => State::Aside,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steering { interface, ifindex } => write!(f, "steering {interface} (index {ifindex})"),
            Self::Waiting { interface } => write!(f, "waiting for {interface}"),
            Self::Aside { interface, .. } => write!(
                f,
                "wsl-mirror of another distribution steers {interface}: standing aside until it does not any more"
            ),
        }
    }
}
