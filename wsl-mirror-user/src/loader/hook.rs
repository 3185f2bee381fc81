//! What hangs on the ingress side of an interface: tcx links and `cls_bpf` filters.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::tc::{self, TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use wsl_mirror_core::abi::Hook;

use super::owners::SocketHook;
use super::pins;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::host::{interface, netlink};
use crate::wait;

/// Where our `cls_bpf` filter stands: always here, so that a second run finds the first one's. Lower numbers
/// run first.
pub const FILTER_PRIORITY: u16 = 1;
/// Its handle within the priority.
pub const FILTER_HANDLE: TcHandle = TcHandle::new(0x77, 0x736d);
/// How long the kernel may take to let go of a link; it takes some 20 ms.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// `ETH_P_ALL` in network order: the protocol of our filter.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;
/// The program's name in the object and, cut to 15 bytes, in the kernel.
pub const PROGRAM_NAME: &str = "wsl_mirror";

/// The tcx programs on an interface, in the order in which they run; `None` if the kernel has no tcx.
pub fn tcx_programs(interface: &str) -> Result<Option<Vec<u32>>> {
    match SchedClassifier::query_tcx(interface, TcAttachType::Ingress) {
        Ok((_, programs)) => Ok(Some(programs.iter().map(ProgramInfo::id).collect())),
        // A kernel without tcx does not know the attach type (bpf_prog_query).
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => {
            Err(error).or_exit(Exit::Kernel, || format!("cannot ask which tcx programs are on {interface}"))
        }
    }
}

/// A program of ours on an interface, whichever distribution's it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The index of the interface.
    pub ifindex: u32,
    /// By which hook.
    pub hook: Hook,
    /// The program's id.
    pub program: u32,
}

/// All programs of ours on any interface of this network namespace, whichever distribution's they are.
pub fn programs_of_ours() -> Result<Vec<Found>> {
    let (names, mut ours) = netlink::talk(|handle| async move {
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
            if kind(&qdisc) == Some("clsact") {
                with_clsact.push(qdisc.header.index);
            }
        }
        let mut ours = Vec::new();
        for index in with_clsact {
            let mut filters = handle.traffic_filter(index).get().ingress().execute();
            while let Some(filter) = filters.try_next().await? {
                if let Filter::Ours { program: Some(program) } = look_at(&filter, true) {
                    ours.push(Found { ifindex: u32::try_from(index)?, hook: Hook::ClsBpf, program });
                }
            }
        }
        Ok((names, ours))
    })
    .or_exit(Exit::Kernel, || "cannot list the interfaces and their tc filters".into())?;
    for (ifindex, name) in names {
        match SchedClassifier::query_tcx(&name, TcAttachType::Ingress) {
            Ok((_, programs)) => ours.extend(
                programs
                    .iter()
                    .filter(|program| program.name_as_str() == Some(PROGRAM_NAME))
                    .map(|program| Found { ifindex, hook: Hook::Tcx, program: program.id() }),
            ),
            // No tcx here, or the interface is gone meanwhile: then so is the program.
            Err(_) if tcx_programs("lo")?.is_none() || interface::index(&name).is_none() => {}
            Err(error) => {
                return Err(error)
                    .or_exit(Exit::Kernel, || format!("cannot ask which tcx programs are on {name}"));
            }
        }
    }
    Ok(ours)
}

impl Found {
    /// Whether nobody looks after it any more: its distribution was terminated, and took the pins along. A tcx link goes
    /// with them, a `cls_bpf` filter stays, and goes by what sockets were tagged until then. The hooks that tag them hang
    /// on pins only, and use the same maps.
    pub fn is_orphan(&self) -> bool {
        if self.hook != Hook::ClsBpf {
            return false;
        }
        let maps = |info: &ProgramInfo| info.map_ids().ok().flatten().unwrap_or_default();
        let is_hook = |info: &&ProgramInfo| {
            SocketHook::ALL.iter().any(|hook| info.name_as_str() == Some(hook.program()))
        };
        let all: Vec<ProgramInfo> = loaded_programs().flatten().collect();
        let Some(its) = all.iter().find(|info| info.id() == self.program).map(maps) else { return false };
        !all.iter().filter(is_hook).any(|hook| maps(hook).iter().any(|map| its.contains(map)))
    }
}

/// Waits until a program whose link was unpinned is off the interface: the kernel frees the pin's inode, and with
/// it the link, only after an RCU grace period and on a worker of its own. Until then packets are still steered.
pub fn wait_until_off(interface: &str, program: u32) -> Result<()> {
    let off = wait::poll(RELEASE_LIMIT, || {
        // An interface that is gone has taken the program along.
        let is_off = interface::index(interface).is_none()
            || !tcx_programs(interface)?.is_some_and(|programs| programs.contains(&program));
        Ok(is_off.then_some(()))
    })?;
    off.ok_or_else(|| {
        Failure::new(
            Exit::Kernel,
            format!(
                "program {program} is still on {interface}: somebody else holds its link open (`bpftool link` \
                 shows it, `bpftool link detach` ends it)"
            ),
        )
    })
}

/// The loaded program of this id.
pub fn program(id: u32) -> Result<SchedClassifier> {
    // It is the pinned one, unless a load was killed at the wrong moment; then we have to look at all there are.
    let pinned = ProgramInfo::from_pin(pins::path(pins::PROGRAM)).ok().filter(|info| info.id() == id);
    let info = pinned.or_else(|| loaded_programs().flatten().find(|info| info.id() == id));
    info.context("it is not there any more")
        .and_then(|info| Ok(SchedClassifier::from_program_info(info, PROGRAM_NAME.into())?))
        .or_exit(Exit::Kernel, || format!("cannot open the program that runs now (id {id})"))
}

/// What there is of the older hook on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clsact {
    /// Whether the interface has a clsact qdisc, whoever made it.
    pub exists: bool,
    /// The id of the program in our filter, if the filter is there.
    pub our_program: Option<u32>,
    /// Whether filters are there that are not ours.
    pub has_others: bool,
    /// Whether ours cannot be there because of one of those: all filters of a priority have to be of one kind
    /// and protocol, and no two have one handle.
    pub our_place_is_taken: bool,
}

/// Looks at the older hook of the interface of this index.
pub fn clsact(ifindex: u32) -> Result<Clsact> {
    let wanted = i32::try_from(ifindex).context("impossible interface index")?;
    netlink::talk(|handle| async move {
        let mut found = Clsact::default();
        let mut qdiscs = handle.qdisc().get().index(wanted).execute();
        while let Some(qdisc) = qdiscs.try_next().await? {
            found.exists |= qdisc.header.index == wanted && kind(&qdisc) == Some("clsact");
        }
        if !found.exists {
            return Ok(found);
        }
        for ingress in [true, false] {
            let request = handle.traffic_filter(wanted).get();
            let request = if ingress { request.ingress() } else { request.egress() };
            let mut filters = request.execute();
            while let Some(filter) = filters.try_next().await? {
                match look_at(&filter, ingress) {
                    Filter::None => {}
                    Filter::Ours { program } => found.our_program = program,
                    Filter::Others { in_our_place } => {
                        found.has_others = true;
                        found.our_place_is_taken |= in_our_place;
                    }
                }
            }
        }
        Ok(found)
    })
    .or_exit(Exit::Kernel, || format!("cannot list the tc filters of interface {ifindex}"))
}

/// Takes away our filter.
pub fn remove_filter(interface: &str) -> Result<()> {
    use aya::programs::links::Link as _;
    SchedClassifierLink::attached(interface, TcAttachType::Ingress, FILTER_PRIORITY, FILTER_HANDLE, None)
        .map_err(anyhow::Error::from)
        .and_then(|link| link.detach().map_err(anyhow::Error::from))
        .or_exit(Exit::Kernel, || format!("cannot remove our tc filter from {interface}"))
}

/// Makes a clsact qdisc.
pub fn add_clsact(interface: &str) -> Result<()> {
    aya::programs::tc::qdisc_add_clsact(interface).or_exit(Exit::Kernel, || {
        format!(
            "cannot make a clsact qdisc on {interface}; WSL has it as the modules sch_ingress and cls_bpf: \
             `modprobe -a sch_ingress cls_bpf`"
        )
    })
}

/// Takes a clsact qdisc away.
pub fn remove_clsact(ifindex: u32) -> Result<()> {
    let index = i32::try_from(ifindex).context("impossible interface index")?;
    netlink::talk(|handle| async move {
        let mut request = handle.qdisc().del(index);
        let header = &mut request.message_mut().header;
        header.parent = tc::TcHandle::CLSACT;
        header.handle = tc::TcHandle { major: 0xffff, minor: 0 };
        Ok(request.execute().await?)
    })
    .or_exit(Exit::Kernel, || format!("cannot remove the clsact qdisc from interface {ifindex}"))
}

/// What a listed filter is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A priority: the kernel lists each once more, without a filter.
    None,
    /// The one that we made, with the id of its program.
    Ours { program: Option<u32> },
    /// Somebody else's.
    Others { in_our_place: bool },
}

/// Tells whose filter it is.
pub fn look_at(filter: &TcMessage, ingress: bool) -> Filter {
    if filter.header.handle == tc::TcHandle::UNSPEC {
        return Filter::None;
    }
    let at_our_priority = ingress && filter.header.info >> 16 == u32::from(FILTER_PRIORITY);
    let of_our_kind = kind(filter) == Some("bpf") && filter.header.info & 0xffff == ALL_PROTOCOLS;
    let has_our_handle = u32::from(filter.header.handle) == u32::from(FILTER_HANDLE);
    if at_our_priority && of_our_kind && has_our_handle && name(filter) == Some(PROGRAM_NAME) {
        Filter::Ours { program: program_id(filter) }
    } else {
        Filter::Others { in_our_place: at_our_priority && (has_our_handle || !of_our_kind) }
    }
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn program_id(filter: &TcMessage) -> Option<u32> {
    options(filter).find_map(|option| match option {
        TcFilterBpfOption::ProgId(id) => Some(*id),
        _ => None,
    })
}

fn name(filter: &TcMessage) -> Option<&str> {
    options(filter).find_map(|option| match option {
        TcFilterBpfOption::ProgName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn options(filter: &TcMessage) -> impl Iterator<Item = &TcFilterBpfOption> {
    let all = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    all.flatten().filter_map(|option| match option {
        TcOption::Bpf(option) => Some(option),
        _ => None,
    })
}
