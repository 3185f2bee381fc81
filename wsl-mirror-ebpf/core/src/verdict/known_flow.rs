//! The record of a flow.

use crate::abi::Carrier;

/// The record of a flow (`FLOWS`), as far as it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFlow {
    /// Who carries the flow; `None` without a record.
    pub carrier: Option<Carrier>,
    /// The flow is delivered by `lo`.
    pub by_lo: bool,
    /// TCP sequence number of the first SYN, of a flow within Linux.
    pub sequence: u32,
}

impl KnownFlow {
    /// No record. Every field has a value: the verifier refuses a program that may read what was never written.
    pub const NONE: Self = Self { carrier: None, by_lo: false, sequence: 0 };
}
