//! The way of a packet through chains, rule by rule.
//!
//! An index by destination port is made once. Each walk then looks at the rules of one port alone, in the kernel's
//! order. Reading stays linear in rules and ports.

mod chains;
mod walk;

pub use chains::{DroppedBy, Path};
pub use walk::{Drops, Target};
