//! What a round is asked to look at, and what became of it: the words that schedule and keeper share.

/// What may have changed. Interfaces and tc filters are read in any case: that costs next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set, each of its members with a name")]
pub struct Changes {
    /// Something that is read in any case.
    pub machine: bool,
    /// The packet filters.
    pub packet_filters: bool,
    /// The configuration.
    pub config: bool,
    /// What no event tells.
    pub unwatched: bool,
    /// The older packet filters, if there are any.
    pub legacy: bool,
}

impl Changes {
    /// All there is.
    pub const ALL: Self =
        Self { machine: true, packet_filters: true, config: true, unwatched: true, legacy: true };

    /// Whether there is nothing to look at.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
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
