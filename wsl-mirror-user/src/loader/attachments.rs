//! What is attached where: the one list over which state, plan, apply and unload iterate.

use aya::programs::{CgroupSockAddrAttachType, TcAttachType};
use wsl_mirror_core::kfuncs::Kfunc;

/// Every attachment. The programs on interfaces decide about packets. Those on the cgroup write down who serves a socket, and
/// connect Linux' own clients to containers.
///
/// The loader attaches in this order and detaches in the opposite one: the reply of a carried flow always meets the
/// egress program, and a client never sees a container's address in the place of the one that it named.
const ALL: [Entry; 13] = [
    Entry::on_interface(&EGRESS, Direction::Egress, "program_egress", "link_egress"),
    Entry::on_interface(&INGRESS, Direction::Ingress, "program", "link"),
    Entry::on_cgroup("wsl_mirror_bd4", CgroupProgram::Sock, "link_post_bind4"),
    Entry::on_cgroup("wsl_mirror_bd6", CgroupProgram::Sock, "link_post_bind6"),
    Entry::on_cgroup("wsl_mirror_gs4", CgroupProgram::SockAddr, "link_getsockname4"),
    Entry::on_cgroup("wsl_mirror_gs6", CgroupProgram::SockAddr, "link_getsockname6"),
    Entry::on_cgroup("wsl_mirror_pn4", CgroupProgram::SockAddr, "link_getpeername4"),
    Entry::on_cgroup("wsl_mirror_pn6", CgroupProgram::SockAddr, "link_getpeername6"),
    Entry::on_cgroup("wsl_mirror_co4", CgroupProgram::SockAddr, "link_connect4"),
    Entry::on_cgroup("wsl_mirror_co6", CgroupProgram::SockAddr, "link_connect6"),
    Entry::of_udp("wsl_mirror_rm4", DatagramHook::Recvmsg4, "program_recvmsg4", "link_recvmsg4"),
    Entry::of_udp("wsl_mirror_rm6", DatagramHook::Recvmsg6, "program_recvmsg6", "link_recvmsg6"),
    Entry::of_udp("wsl_mirror_sm4", DatagramHook::Sendmsg4, "program_sendmsg4", "link_sendmsg4"),
];
const INGRESS: [Form; 1] = [Form { program: "wsl_mirror", needs: None }];
const EGRESS: [Form; 2] = [
    Form { program: "wsl_mirror_eg", needs: Some(Kfunc::KernelContext) },
    Form { program: "wsl_mirror_egl", needs: None },
];

/// A program and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// On the interface, by a tcx link or a `cls_bpf` filter.
    Interface(InterfaceAttachment),
    /// On the cgroup, by a link.
    Cgroup(CgroupAttachment),
    /// On the cgroup, by a link, while a listener of UDP has a target.
    Udp(UdpAttachment),
}

/// A program on the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAttachment {
    /// The program's forms. The loader attaches the first that the kernel can run.
    pub forms: &'static [Form],
    /// The side of the interface. No two attachments have the same.
    pub direction: Direction,
    /// The program's pin.
    pub program_pin: &'static str,
    /// The pin of its tcx link.
    pub link_pin: &'static str,
}

/// One of several programs that do the same on different kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The program's name in the object and, cut to 15 bytes, in the kernel.
    pub program: &'static str,
    /// The kfunc without which the kernel cannot run this form.
    pub needs: Option<Kfunc>,
}

/// A program on the cgroup. It runs in the process that binds, connects or asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupAttachment {
    /// The program's name in the object and, cut to 15 bytes, in the kernel.
    pub program: &'static str,
    /// The program's type; the object's section names the hook.
    pub kind: CgroupProgram,
    /// The pin of its link.
    pub link_pin: &'static str,
}

/// A program on the cgroup that runs for datagrams. Its link comes and goes with UDP's targets, so the program is pinned too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpAttachment {
    /// The program and its link.
    pub on: CgroupAttachment,
    /// Where the kernel runs it.
    pub hook: DatagramHook,
    /// The program's pin.
    pub program_pin: &'static str,
}

/// A hook for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramHook {
    /// A datagram's destination, IPv4.
    Sendmsg4,
    /// A datagram's sender, as an IPv4 socket sees it.
    Recvmsg4,
    /// A datagram's sender, as an IPv6 socket sees it.
    Recvmsg6,
}

/// A side of an interface, as tc names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

/// The type of a program on a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupProgram {
    /// `BPF_PROG_TYPE_CGROUP_SOCK`.
    Sock,
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    SockAddr,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// tc's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// aya's name.
    pub const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

impl DatagramHook {
    /// aya's name.
    pub const fn attach_type(self) -> CgroupSockAddrAttachType {
        match self {
            Self::Sendmsg4 => CgroupSockAddrAttachType::UDPSendMsg4,
            Self::Recvmsg4 => CgroupSockAddrAttachType::UDPRecvMsg4,
            Self::Recvmsg6 => CgroupSockAddrAttachType::UDPRecvMsg6,
        }
    }
}

impl InterfaceAttachment {
    /// Whether this is the kernel's name of one of the program's forms.
    pub fn has_form(&self, name: &str) -> bool {
        self.forms.iter().any(|form| form.program == name)
    }

    /// The name of the form for a kernel that lacks these kfuncs, if there is one.
    pub fn form_without(&self, lacks: &[Kfunc]) -> Option<&'static str> {
        let runs = |form: &&Form| form.needs.is_none_or(|needed| !lacks.contains(&needed));
        self.forms.iter().find(runs).map(|form| form.program)
    }
}

impl Entry {
    const fn on_interface(
        forms: &'static [Form],
        direction: Direction,
        program_pin: &'static str,
        link_pin: &'static str,
    ) -> Self {
        Self::Interface(InterfaceAttachment { forms, direction, program_pin, link_pin })
    }

    const fn on_cgroup(program: &'static str, kind: CgroupProgram, link_pin: &'static str) -> Self {
        Self::Cgroup(CgroupAttachment { program, kind, link_pin })
    }

    const fn of_udp(
        program: &'static str,
        hook: DatagramHook,
        program_pin: &'static str,
        link_pin: &'static str,
    ) -> Self {
        let on = CgroupAttachment { program, kind: CgroupProgram::SockAddr, link_pin };
        Self::Udp(UdpAttachment { on, hook, program_pin })
    }

    /// Everything that is pinned for it.
    fn pins(self) -> impl Iterator<Item = &'static str> {
        let pins = match self {
            Self::Interface(on) => [Some(on.program_pin), Some(on.link_pin)],
            Self::Cgroup(on) => [Some(on.link_pin), None],
            Self::Udp(udp) => [Some(udp.program_pin), Some(udp.on.link_pin)],
        };
        pins.into_iter().flatten()
    }
}

/// The programs on the interface.
pub fn on_interface() -> impl Iterator<Item = InterfaceAttachment> {
    ALL.into_iter().filter_map(|attachment| match attachment {
        Entry::Interface(on) => Some(on),
        Entry::Cgroup(_) | Entry::Udp(_) => None,
    })
}

/// The programs that are always on the cgroup.
pub fn on_cgroup() -> impl DoubleEndedIterator<Item = CgroupAttachment> {
    ALL.into_iter().filter_map(|attachment| match attachment {
        Entry::Cgroup(on) => Some(on),
        Entry::Interface(_) | Entry::Udp(_) => None,
    })
}

/// The programs that are on the cgroup while a listener of UDP has a target.
pub fn of_udp() -> impl DoubleEndedIterator<Item = UdpAttachment> {
    ALL.into_iter().filter_map(|attachment| match attachment {
        Entry::Udp(udp) => Some(udp),
        Entry::Interface(_) | Entry::Cgroup(_) => None,
    })
}

/// The program on this side of the interface, if we have one there.
pub fn on_side(direction: Direction) -> Option<InterfaceAttachment> {
    on_interface().find(|on| on.direction == direction)
}

/// The pins of all attachments.
pub fn pins() -> impl Iterator<Item = &'static str> {
    ALL.into_iter().flat_map(Entry::pins)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_attachments_share_a_pin_a_program_or_a_side() {
        let pins: Vec<_> = pins().collect();
        assert_eq!(pins.iter().collect::<HashSet<_>>().len(), pins.len());
        let programs: Vec<_> = on_interface()
            .flat_map(|on| on.forms)
            .map(|form| form.program)
            .chain(on_cgroup().chain(of_udp().map(|udp| udp.on)).map(|on| on.program))
            .collect();
        assert_eq!(programs.iter().collect::<HashSet<_>>().len(), ALL.len() + 1);
        assert!(programs.iter().all(|name| name.len() <= 15), "the kernel cuts them: {programs:?}");
        let sides = |direction| on_interface().filter(|on| on.direction == direction).count();
        assert!(Direction::ALL.into_iter().all(|direction| sides(direction) <= 1));
    }

    /// Else a client would see a container's address for a moment.
    #[test]
    fn names_are_put_back_before_destinations_are_replaced() {
        let programs: Vec<_> = on_cgroup().chain(of_udp().map(|udp| udp.on)).map(|on| on.program).collect();
        let place = |name: &str| programs.iter().position(|program| *program == name).unwrap();
        for (puts_back, replaces) in [("pn4", "co4"), ("pn6", "co6"), ("rm4", "sm4"), ("rm6", "sm4")] {
            let [puts_back, replaces] = [puts_back, replaces].map(|name| format!("wsl_mirror_{name}"));
            assert!(place(&puts_back) < place(&replaces), "{programs:?}");
        }
    }

    #[test]
    fn egress_is_attached_before_ingress() {
        let sides: Vec<_> = on_interface().map(|on| on.direction).collect();
        assert_eq!(sides, [Direction::Egress, Direction::Ingress]);
    }

    #[test]
    fn the_egress_program_is_the_one_that_the_kernel_runs() {
        let egress = on_side(Direction::Egress).unwrap();
        assert_eq!(egress.form_without(&[]), Some("wsl_mirror_eg"));
        assert_eq!(egress.form_without(&[Kfunc::KernelContext]), Some("wsl_mirror_egl"));
        assert!(egress.has_form("wsl_mirror_egl") && !egress.has_form("wsl_mirror"));
    }
}
