//! The programs that a search looked at.

use std::path::PathBuf;

/// What a search found, in the order of preference.
pub(crate) struct Candidates<T> {
    pub(crate) usable: Vec<T>,
    pub(crate) rejected: Vec<Rejected>,
}

impl<T> Candidates<T> {
    pub(crate) const fn none() -> Self {
        Self { usable: Vec::new(), rejected: Vec::new() }
    }
}

/// Something that was looked at and cannot be used, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where it is.
    pub path: PathBuf,
    /// Why it was not taken; completes the sentence "it …".
    pub reason: String,
}
