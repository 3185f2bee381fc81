//! tcx: links that hold programs on an interface.

use std::time::Duration;

use anyhow::Result;
use aya::programs::links::FdLink;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, ProgramInfo, SchedClassifier};

use super::attachments::{Direction, InterfaceAttachment};
use super::pins;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::host::interface;
use crate::wait;

/// How long the kernel may take to release a link; it takes some 20 ms.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// The tcx programs on one side of an interface, in the order in which they run; `None` if the kernel has no tcx.
pub fn programs(interface: &str, direction: Direction) -> Result<Option<Vec<ProgramInfo>>> {
    match SchedClassifier::query_tcx(interface, direction.attach_type()) {
        Ok((_, programs)) => Ok(Some(programs)),
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

/// The ids of [`programs`].
pub fn program_ids(interface: &str, direction: Direction) -> Result<Option<Vec<u32>>> {
    Ok(programs(interface, direction)?.map(|programs| programs.iter().map(ProgramInfo::id).collect()))
}

/// Whether the kernel has tcx.
pub fn is_supported() -> Result<bool> {
    Ok(programs("lo", Direction::Ingress)?.is_some())
}

/// Attaches a program by a new link: first on ingress, last on egress.
pub fn attach(program: &mut SchedClassifier, interface: &str, direction: Direction) -> Result<FdLink> {
    let order = TcAttachOptions::TcxOrder(match direction {
        Direction::Ingress => LinkOrder::first(),
        Direction::Egress => LinkOrder::last(),
    });
    let id = program
        .attach_with_options(interface, direction.attach_type(), order)
        .or_exit(Exit::Kernel, || format!("the kernel refused to attach the program to {interface} (tcx)"))?;
    Ok(program.take_link(id)?.try_into()?)
}

/// Replaces the program in the pinned link, in one stroke.
pub fn replace(program: &mut SchedClassifier, on: InterfaceAttachment) -> Result<()> {
    let link: SchedClassifierLink = pins::open_link(on.link_pin)?
        .try_into()
        .or_exit(Exit::UnknownLayout, || format!("{} is no tcx link", pins::path(on.link_pin).display()))?;
    program
        .attach_to_link(link)
        .or_exit(Exit::Kernel, || "the kernel refused to replace the program in the pinned link".into())?;
    Ok(())
}

/// Waits until a program whose link was unpinned is off the interface: the kernel frees the pin's inode, and with
/// it the link, only after an RCU grace period and on a worker of its own. Until then packets are still steered.
pub fn wait_until_off(interface: &str, direction: Direction, program: u32) -> Result<()> {
    let off = wait::poll(RELEASE_LIMIT, || {
        // An interface that is gone has taken the program along.
        let is_off = interface::index(interface).is_none()
            || !program_ids(interface, direction)?.is_some_and(|programs| programs.contains(&program));
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
