//! What came of a call.

use std::time::Duration;

use wsl_mirror_lab::{tcp, udp};

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The right answer, and how long it took from the first packet on.
    Answered(Duration),
    /// Nothing, for longer than a retransmission takes.
    Hung,
    /// The connection was made, and ended before an answer came.
    Reset,
    /// Nobody is there.
    Refused,
    /// Whatever else.
    Other(String),
}

impl From<tcp::Failure> for Outcome {
    fn from(failure: tcp::Failure) -> Self {
        match failure {
            tcp::Failure::ConnectTimedOut | tcp::Failure::Stalled { .. } => Self::Hung,
            tcp::Failure::Reset => Self::Reset,
            tcp::Failure::Refused => Self::Refused,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<udp::Failure> for Outcome {
    fn from(failure: udp::Failure) -> Self {
        match failure {
            udp::Failure::TimedOut => Self::Hung,
            udp::Failure::Refused => Self::Refused,
            other => Self::Other(other.to_string()),
        }
    }
}
