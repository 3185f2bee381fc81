//! What a round is asked to look at, and what became of it: the words that schedule and keeper share.

/// What may have changed. Interfaces, tc filters and routes are read in any case: that costs next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set, each of its members with a name")]
pub struct Changes {
    /// Something that is read in any case.
    pub machine: bool,
    /// The packet filters.
    pub packet_filters: bool,
    /// Whether a glance has read the packet filters since they have changed.
    pub are_filters_read: bool,
    /// The configuration.
    pub config: bool,
    /// What no event tells.
    pub unwatched: bool,
    /// The older packet filters, if there are any.
    pub legacy: bool,
}

impl Changes {
    /// All there is.
    pub const ALL: Self = Self {
        machine: true,
        packet_filters: true,
        are_filters_read: false,
        config: true,
        unwatched: true,
        legacy: true,
    };

    /// Whether there is nothing to look at.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What is looked at between two rounds, so that containers are known a moment after they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// Sockets that were bound or handed on, and the ways to containers.
    pub sockets: bool,
    /// The packet filters.
    pub rules: bool,
    /// The packet filters, if there are older ones.
    pub legacy: bool,
}

/// Whether a round may put back what somebody has taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repairs {
    /// Now.
    Allowed,
    /// Later: somebody else wants it otherwise, again and again.
    HeldBack,
}

/// What became of what somebody had taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// There was nothing like that.
    #[default]
    None,
    /// It was put back.
    Done,
    /// It was left for later.
    HeldBack,
}
