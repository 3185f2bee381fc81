//! Who serves a socket: the tags of sockets that were there before the programs on the cgroup.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;
use wsl_mirror_core::abi::{Owner, OwnerPolicy};

use super::maps::SocketOwners;
use crate::host::sockets::{self, Holder};

/// Tags the sockets that serve and carry no tag yet. The hooks are there by now: whatever is bound meanwhile they
/// tag themselves, and what they wrote is left. `known` are those that were dealt with before, by their inodes: who holds a
/// socket takes a look at every process, which is spared where there is no new one.
///
/// Gives why some could not be tagged, in words: those count as nobody's, which is no reason not to steer the others.
pub fn tag_sockets(
    map: &mut SocketOwners,
    owners: &BTreeMap<Owner, OwnerPolicy>,
    known: &mut HashSet<u32>,
) -> Option<String> {
    let (served, mut failures) = sockets::served();
    let now: HashSet<u32> = served.into_iter().map(|socket| socket.inode).collect();
    known.retain(|inode| now.contains(inode));
    let holders = sockets::holders(&now.difference(known).copied().collect());
    failures.extend(tag_new(holders, known, |inode, holders| {
        let Some(server) = sockets::server(holders, owners) else { return Ok(false) };
        let Some(socket) = sockets::borrow(server, inode)? else { return Ok(false) };
        map.tag_if_new(&socket, server.owner)?;
        Ok(true)
    }));
    of_whom_nothing_is_known(&failures)
}

/// Tags those whose holders were found, and gives what failed. Only what carries a tag afterwards is known: the others
/// are looked at again the next time, when their holder may be seen or may let us.
fn tag_new(
    holders: Result<HashMap<u32, Vec<Holder>>>,
    known: &mut HashSet<u32>,
    mut tag: impl FnMut(u32, &[Holder]) -> Result<bool>,
) -> Vec<anyhow::Error> {
    let holders = match holders {
        Ok(holders) => holders,
        Err(error) => return vec![error],
    };
    let mut failures = Vec::new();
    // In order, so that the same failures are said in the same words.
    for (inode, holders) in BTreeMap::from_iter(holders) {
        match tag(inode, &holders) {
            Ok(true) => drop(known.insert(inode)),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
    }
    failures
}

fn of_whom_nothing_is_known(failures: &[anyhow::Error]) -> Option<String> {
    let first = failures.first()?;
    let others = match failures.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more like that)"),
    };
    Some(format!(
        "of some sockets it is not known who serves them, until they are bound again: {first:#}{others}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_could_not_be_tagged_is_looked_at_again() {
        let holder = Holder { pid: 1, fd: 3, started: 1, owner: Owner::new(b"proxy", 0) };
        let all = || Ok([1, 2, 3].map(|inode| (inode, vec![holder.clone()])).into());
        let mut known = HashSet::from([9]);
        let failures = tag_new(all(), &mut known, |inode, _| match inode {
            1 => Ok(true),
            2 => Ok(false),
            _ => anyhow::bail!("not allowed"),
        });
        assert_eq!(failures.len(), 1);
        assert_eq!(known, HashSet::from([1, 9]), "its holder let go of 2, and 3 could not be borrowed");
        let failures = tag_new(Err(anyhow::anyhow!("no /proc")), &mut known, |_, _| Ok(true));
        assert_eq!((failures.len(), known.len()), (1, 2), "nobody could be found");
    }
}
