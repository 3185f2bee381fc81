//! How closely listeners are looked at.

/// Which listeners are looked at closely. Finding a listener's holder reads processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Those without a tag, and every target.
    Everything,
    /// Those that were noted, among the processes of engines: hooks have tagged them. Of the others only the targets whose
    /// containers, ways or rules have changed.
    Noted,
}
