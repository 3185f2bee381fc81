//! clsact and its `cls_bpf` filters: the hook of kernels without tcx.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::tc::{self, TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::attachments::{self, Direction, InterfaceAttachment};
use crate::exit::{Exit, OrExit as _};
use crate::host::netlink;

/// The priority of our filter, always the same, so that a second load finds the first one's. Lower numbers run first: ours
/// is the first on ingress and the last on egress.
pub const fn priority(direction: Direction) -> u16 {
    match direction {
        Direction::Ingress => 1,
        Direction::Egress => u16::MAX,
    }
}

/// The handle of our filter within its priority.
const HANDLE: TcHandle = TcHandle::new(0x77, 0x736d);
/// `ETH_P_ALL` in network order: the protocol of our filter.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// The clsact qdisc of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clsact {
    /// Whether the interface has a clsact qdisc, ours or another's.
    pub exists: bool,
    /// The ids of the programs in our filters.
    pub our_programs: BTreeMap<Direction, u32>,
    /// Whether filters are there that are not ours.
    pub has_others: bool,
    /// Where one of those keeps ours out: all filters of a priority have to be of one kind and protocol, and no two have one
    /// handle.
    pub taken: BTreeSet<Direction>,
}

/// Reads the clsact qdisc of the interface of this index.
pub fn read(ifindex: u32) -> Result<Clsact> {
    let index = i32::try_from(ifindex).context("impossible interface index")?;
    netlink::talk(|handle| async move {
        let mut clsact = Clsact::default();
        let mut qdiscs = handle.qdisc().get().index(index).execute();
        while let Some(qdisc) = qdiscs.try_next().await? {
            clsact.exists |= qdisc.header.index == index && is_clsact(&qdisc);
        }
        if !clsact.exists {
            return Ok(clsact);
        }
        for direction in Direction::ALL {
            for filter in list_filters(&handle, index, direction).await? {
                match filter {
                    Filter::None => {}
                    Filter::Ours { program } => {
                        clsact.our_programs.extend(program.map(|program| (direction, program)));
                    }
                    Filter::Others { place } => {
                        clsact.has_others = true;
                        if place == Place::Ours {
                            clsact.taken.insert(direction);
                        }
                    }
                }
            }
        }
        Ok(clsact)
    })
    .or_exit(Exit::Kernel, || format!("cannot list the tc filters of interface {ifindex}"))
}

/// Lists the filters on one side of an interface that has a clsact qdisc.
pub async fn list_filters(
    handle: &rtnetlink::Handle,
    index: i32,
    direction: Direction,
) -> Result<Vec<Filter>> {
    let request = handle.traffic_filter(index).get();
    let mut filters = match direction {
        Direction::Ingress => request.ingress(),
        Direction::Egress => request.egress(),
    }
    .execute();
    let ours = attachments::on_side(direction);
    let mut all = Vec::new();
    while let Some(filter) = filters.try_next().await? {
        all.push(classify(&filter, ours));
    }
    Ok(all)
}

/// Whether this is a clsact qdisc.
pub fn is_clsact(qdisc: &TcMessage) -> bool {
    kind(qdisc) == Some("clsact")
}

/// Makes a clsact qdisc.
pub fn add(interface: &str) -> Result<()> {
    aya::programs::tc::qdisc_add_clsact(interface).or_exit(Exit::Kernel, || {
        format!(
            "cannot make a clsact qdisc on {interface}; WSL has it as the modules sch_ingress and cls_bpf: \
             `modprobe -a sch_ingress cls_bpf`"
        )
    })
}

/// Removes a clsact qdisc.
pub fn remove(ifindex: u32) -> Result<()> {
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

/// Attaches a program by our filter.
pub fn add_filter(program: &mut SchedClassifier, interface: &str, direction: Direction) -> Result<()> {
    let options = NlOptions { priority: priority(direction), handle: HANDLE, ..NlOptions::default() };
    let id = program
        .attach_with_options(interface, direction.attach_type(), TcAttachOptions::Netlink(options))
        .or_exit(Exit::Kernel, || {
            format!("the kernel refused to attach the program to {interface} (cls_bpf)")
        })?;
    keep(program, id)
}

/// Replaces the program in our filter, in one stroke.
pub fn replace_in_filter(program: &mut SchedClassifier, interface: &str, direction: Direction) -> Result<()> {
    let id = program.attach_to_link(our_filter(interface, direction)?).or_exit(Exit::Kernel, || {
        format!("the kernel refused to replace the program in our filter on {interface}")
    })?;
    keep(program, id)
}

/// Removes our filter.
pub fn remove_filter(interface: &str, direction: Direction) -> Result<()> {
    use aya::programs::links::Link as _;
    our_filter(interface, direction)
        .and_then(|filter| filter.detach().map_err(anyhow::Error::from))
        .or_exit(Exit::Kernel, || format!("cannot remove our tc filter from {interface}"))
}

fn our_filter(interface: &str, direction: Direction) -> Result<SchedClassifierLink> {
    Ok(SchedClassifierLink::attached(interface, direction.attach_type(), priority(direction), HANDLE, None)?)
}

/// A filter outlives us, but aya would remove it with the program's last handle.
fn keep(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<()> {
    let link = program.take_link(id)?;
    std::mem::forget(link);
    Ok(())
}

/// What a listed filter is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A priority: the kernel lists each once more, without a filter.
    None,
    /// The one that we made, with the id of its program.
    Ours { program: Option<u32> },
    /// Somebody else's.
    Others { place: Place },
}

/// The place of somebody else's filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It keeps ours out.
    Ours,
    /// It does not.
    Elsewhere,
}

/// Tells whose filter it is, on a side where `ours` is attached.
pub fn classify(filter: &TcMessage, ours: Option<InterfaceAttachment>) -> Filter {
    if filter.header.handle == tc::TcHandle::UNSPEC {
        return Filter::None;
    }
    let at_our_priority =
        ours.is_some_and(|ours| filter.header.info >> 16 == u32::from(priority(ours.direction)));
    let of_our_kind = kind(filter) == Some("bpf") && filter.header.info & 0xffff == ALL_PROTOCOLS;
    let has_our_handle = u32::from(filter.header.handle) == u32::from(HANDLE);
    let has_our_program = ours.zip(name(filter)).is_some_and(|(ours, name)| ours.has_form(name));
    if at_our_priority && of_our_kind && has_our_handle && has_our_program {
        Filter::Ours { program: program_id(filter) }
    } else if at_our_priority && (has_our_handle || !of_our_kind) {
        Filter::Others { place: Place::Ours }
    } else {
        Filter::Others { place: Place::Elsewhere }
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
