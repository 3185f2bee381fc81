//! Our programs on any interface of the network namespace, whichever distribution's they are.

use anyhow::Result;
use aya::programs::{ProgramInfo, loaded_programs};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use wsl_mirror_core::abi::Hook;

use super::attachments::{self, Direction};
use super::clsact::{self, Filter};
use super::tcx;
use crate::exit::{Exit, OrExit as _};
use crate::host::{interface, netlink};

/// A program of ours on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The index of the interface.
    pub ifindex: u32,
    /// The side of the interface.
    pub direction: Direction,
    /// By which hook.
    pub hook: Hook,
    /// The program's id.
    pub program: u32,
}

/// All of them.
pub fn read() -> Result<Vec<Instance>> {
    let (names, mut instances) = netlink::talk(|handle| async move {
        let mut names = Vec::new();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            let ifindex = link.header.index;
            names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some((ifindex, name)),
                _ => None,
            }));
        }
        let mut with_clsact = Vec::new();
        let mut qdiscs = handle.qdisc().get().execute();
        while let Some(qdisc) = qdiscs.try_next().await? {
            if clsact::is_clsact(&qdisc) {
                with_clsact.push(qdisc.header.index);
            }
        }
        let mut instances = Vec::new();
        for index in with_clsact {
            for on in attachments::on_interface() {
                for filter in clsact::list_filters(&handle, index, on.direction).await? {
                    if let Filter::Ours { program: Some(program) } = filter {
                        let (ifindex, direction) = (u32::try_from(index)?, on.direction);
                        instances.push(Instance { ifindex, direction, hook: Hook::ClsBpf, program });
                    }
                }
            }
        }
        Ok((names, instances))
    })
    .or_exit(Exit::Kernel, || "cannot list the interfaces and their tc filters".into())?;
    for (ifindex, name) in names {
        for on in attachments::on_interface() {
            let programs = match tcx::programs(&name, on.direction) {
                Ok(programs) => programs.unwrap_or_default(),
                // The interface is gone meanwhile, and took the program along.
                Err(_) if interface::index(&name).is_none() => continue,
                Err(error) => return Err(error),
            };
            instances.extend(
                programs
                    .iter()
                    .filter(|program| program.name_as_str().is_some_and(|name| on.has_form(name)))
                    .map(|program| Instance {
                        ifindex,
                        direction: on.direction,
                        hook: Hook::Tcx,
                        program: program.id(),
                    }),
            );
        }
    }
    Ok(instances)
}

impl Instance {
    /// Whether no distribution looks after it: its own was terminated, and took the pins along. A tcx link goes with them.
    /// A `cls_bpf` filter stays, and goes by what sockets were tagged until then. The programs that tag them hang on pins
    /// only, and use the same maps.
    pub fn is_orphan(&self) -> bool {
        if self.hook != Hook::ClsBpf {
            return false;
        }
        let programs: Vec<Loaded> =
            loaded_programs().flatten().filter_map(|info| Loaded::of(&info)).collect();
        let Some(filter) = programs.iter().find(|loaded| loaded.id == self.program) else { return false };
        !is_looked_after(filter, &programs)
    }
}

/// A program of ours in the kernel. Any distribution may have loaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Loaded {
    id: u32,
    place: Place,
    maps: Vec<u32>,
}

/// Where a program of this name is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Interface,
    Cgroup,
}

impl Loaded {
    fn of(info: &ProgramInfo) -> Option<Self> {
        let name = info.name_as_str()?;
        let place = if attachments::on_cgroup().any(|on| on.program == name) {
            Place::Cgroup
        } else if attachments::on_interface().any(|on| on.has_form(name)) {
            Place::Interface
        } else {
            return None;
        };
        Some(Self { id: info.id(), place, maps: info.map_ids().ok().flatten().unwrap_or_default() })
    }

    fn shares_a_map_with(&self, maps: &[u32]) -> bool {
        self.maps.iter().any(|map| maps.contains(map))
    }
}

/// Whether the programs on the cgroup that were loaded together with this one are still there.
///
/// The egress program has no map in common with them, but some with the ingress program, which has.
fn is_looked_after(filter: &Loaded, programs: &[Loaded]) -> bool {
    let on_interface = programs.iter().filter(|loaded| loaded.place == Place::Interface);
    let maps: Vec<u32> = on_interface
        .filter(|loaded| loaded.shares_a_map_with(&filter.maps))
        .flat_map(|loaded| loaded.maps.iter().copied())
        .collect();
    programs.iter().any(|loaded| loaded.place == Place::Cgroup && loaded.shares_a_map_with(&maps))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u32 = 1;
    const SOCKET_OWNER: u32 = 2;

    fn loaded(id: u32, place: Place, maps: &[u32]) -> Loaded {
        Loaded { id, place, maps: maps.to_vec() }
    }

    #[test]
    fn both_filters_are_looked_after_until_the_cgroup_programs_go() {
        let ingress = loaded(10, Place::Interface, &[SETTINGS, SOCKET_OWNER]);
        let egress = loaded(11, Place::Interface, &[SETTINGS]);
        let bind = loaded(12, Place::Cgroup, &[SOCKET_OWNER]);
        let others = [loaded(20, Place::Interface, &[101, 102]), loaded(21, Place::Cgroup, &[102])];
        for filter in [&ingress, &egress] {
            let mut programs =
                [vec![ingress.clone(), egress.clone(), bind.clone()], others.to_vec()].concat();
            assert!(is_looked_after(filter, &programs), "{filter:?}");
            programs.retain(|loaded| *loaded != bind);
            assert!(!is_looked_after(filter, &programs), "{filter:?}: another distribution's programs count");
        }
    }
}
