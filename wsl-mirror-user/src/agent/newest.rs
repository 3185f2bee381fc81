//! The newest reading of the packet filters, of rules that may be half written.

use std::sync::Arc;

use crate::host::firewall::{Firewall, LinuxAccess, Publications};
use crate::loader::local_rules::Filters;

/// The newest reading of the packet filters.
pub struct Newest {
    /// The packet filters.
    pub firewall: Option<Arc<Firewall>>,
    /// Their publications.
    pub publications: Publications,
    /// The ports that they close to Linux' own clients.
    pub linux_access: LinuxAccess,
}

impl Default for Newest {
    fn default() -> Self {
        // No reading yet: any rule may exist.
        let unknown = Firewall { has_gaps: true, ..Firewall::default() };
        Self { firewall: None, publications: unknown.publications(), linux_access: unknown.linux_access() }
    }
}

impl Newest {
    /// What it says of the leased ports and of marks.
    pub fn filters(&self) -> Filters {
        self.firewall.as_deref().map(Filters::from).unwrap_or_default()
    }

    /// Takes another reading, unless it knows less.
    pub fn take(&mut self, read: Firewall) {
        if self.firewall.as_ref().is_none_or(|known| read.supersedes(known)) {
            self.publications = read.publications();
            self.linux_access = read.linux_access();
            self.firewall = Some(Arc::new(read));
        }
    }
}
