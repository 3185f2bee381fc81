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
        let maps = |info: &ProgramInfo| info.map_ids().ok().flatten().unwrap_or_default();
        let is_on_cgroup =
            |info: &&ProgramInfo| attachments::on_cgroup().any(|on| info.name_as_str() == Some(on.program));
        let all: Vec<ProgramInfo> = loaded_programs().flatten().collect();
        let Some(used) = all.iter().find(|info| info.id() == self.program).map(maps) else { return false };
        !all.iter().filter(is_on_cgroup).any(|other| maps(other).iter().any(|map| used.contains(map)))
    }
}
