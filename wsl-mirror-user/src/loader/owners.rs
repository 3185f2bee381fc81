//! Who serves a socket: the tags of sockets that were there before the programs on the cgroup.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;
use wsl_mirror_core::abi::{Owner, OwnerPolicy};

use super::maps::SocketOwners;
use crate::errors::Errors;
use crate::host::sockets::{self, Holder};

/// Tags the listeners that carry no tag yet. The programs on the cgroup are attached by now: they tag sockets that are bound
/// meanwhile, and those tags stay. `known` holds the inodes of listeners that have a tag. Finding a socket's holder reads
/// every process, so without a new listener nothing is read.
///
/// Gives a note if listeners could not be tagged. They have no owner; all others are steered.
pub fn tag_sockets(
    map: &mut SocketOwners,
    owners: &BTreeMap<Owner, OwnerPolicy>,
    known: &mut HashSet<u32>,
) -> Option<String> {
    let (served, mut failures) = sockets::served();
    let now: HashSet<u32> = served.into_iter().map(|socket| socket.inode).collect();
    known.retain(|inode| now.contains(inode));
    let holders = sockets::holders(&now.difference(known).copied().collect());
    tag_new(holders, known, &mut failures, |inode, holders| {
        let Some(server) = sockets::server(holders, owners) else { return Ok(false) };
        let Some(socket) = sockets::borrow(server, inode)? else { return Ok(false) };
        map.tag_if_new(&socket, server.owner)?;
        Ok(true)
    });
    let first = failures.first()?;
    Some(format!("of some sockets it is not known who serves them, until they are bound again: {first}"))
}

/// Tags the listeners whose holders were found, and adds the failures. Only listeners with a tag become known: the next
/// call tries the others again.
fn tag_new(
    holders: Result<HashMap<u32, Vec<Holder>>>,
    known: &mut HashSet<u32>,
    failures: &mut Errors,
    mut tag: impl FnMut(u32, &[Holder]) -> Result<bool>,
) {
    let Some(holders) = failures.keep(holders) else { return };
    // In order, so that the same failures give the same note.
    for (inode, holders) in BTreeMap::from_iter(holders) {
        match tag(inode, &holders) {
            Ok(true) => drop(known.insert(inode)),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_could_not_be_tagged_is_looked_at_again() {
        let holder = Holder { pid: 1, fd: 3, started: 1, owner: Owner::new(b"proxy", 0) };
        let all = || Ok([1, 2, 3].map(|inode| (inode, vec![holder.clone()])).into());
        let mut known = HashSet::from([9]);
        let mut failures = Errors::default();
        tag_new(all(), &mut known, &mut failures, |inode, _| match inode {
            1 => Ok(true),
            2 => Ok(false),
            _ => anyhow::bail!("not allowed"),
        });
        assert_eq!(failures.len(), 1);
        assert_eq!(known, HashSet::from([1, 9]), "its holder let go of 2, and 3 could not be borrowed");
        let mut failures = Errors::default();
        tag_new(Err(anyhow::anyhow!("no /proc")), &mut known, &mut failures, |_, _| Ok(true));
        assert_eq!((failures.len(), known.len()), (1, 2), "nobody could be found");
    }
}
