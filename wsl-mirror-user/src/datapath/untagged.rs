//! Sockets that came to serve without passing our hooks: tagged by the processes that hold them.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use wsl_mirror_ebpf::abi::{Owner, OwnerPolicy};

use super::maps::SocketOwners;
use super::owners;
use crate::host::sockets;

/// Tags those that carry no tag, of the sockets that were not there the last time; `known` are those that were. To find
/// out who holds a socket takes a look at every process, so nothing of it is done when there is no new one. Gives why
/// some of the new ones could not be tagged.
pub fn tag(known: &mut HashSet<u32>, owners: &BTreeMap<Owner, OwnerPolicy>) -> Result<Vec<anyhow::Error>> {
    let (served, mut failures) = sockets::served();
    let now: HashSet<u32> = served.into_iter().map(|socket| socket.inode).collect();
    let new: HashSet<u32> = now.difference(known).copied().collect();
    if !new.is_empty() {
        failures.extend(owners::tag(&mut SocketOwners::pinned()?, owners, &new));
    }
    *known = now;
    Ok(failures)
}
