//! What is attached where: the one list over which state, plan, apply and unload iterate.

use aya::programs::TcAttachType;
use wsl_mirror_core::kfuncs::Kfunc;

/// Every attachment. The programs on interfaces decide about packets, those on the cgroup write down who serves a socket.
///
/// The loader attaches in this order and detaches in the opposite one: the reply of a carried flow always meets the
/// egress program.
const ALL: [Entry; 6] = [
    Entry::on_interface(&EGRESS, Direction::Egress, "program_egress", "link_egress"),
    Entry::on_interface(&INGRESS, Direction::Ingress, "program", "link"),
    Entry::on_cgroup("wsl_mirror_bd4", CgroupProgram::Sock, "link_post_bind4"),
    Entry::on_cgroup("wsl_mirror_bd6", CgroupProgram::Sock, "link_post_bind6"),
    Entry::on_cgroup("wsl_mirror_gs4", CgroupProgram::SockAddr, "link_getsockname4"),
    Entry::on_cgroup("wsl_mirror_gs6", CgroupProgram::SockAddr, "link_getsockname6"),
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

/// A program on the cgroup. It runs in the process that binds or asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupAttachment {
    /// The program's name in the object and, cut to 15 bytes, in the kernel.
    pub program: &'static str,
    /// The program's type; the object's section names the hook.
    pub kind: CgroupProgram,
    /// The pin of its link.
    pub link_pin: &'static str,
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

    /// Everything that is pinned for it.
    fn pins(self) -> impl Iterator<Item = &'static str> {
        let pins = match self {
            Self::Interface(on) => [Some(on.program_pin), Some(on.link_pin)],
            Self::Cgroup(on) => [Some(on.link_pin), None],
        };
        pins.into_iter().flatten()
    }
}

/// The programs on the interface.
pub fn on_interface() -> impl Iterator<Item = InterfaceAttachment> {
    ALL.into_iter().filter_map(|attachment| match attachment {
        Entry::Interface(on) => Some(on),
        Entry::Cgroup(_) => None,
    })
}

/// The programs on the cgroup.
pub fn on_cgroup() -> impl Iterator<Item = CgroupAttachment> {
    ALL.into_iter().filter_map(|attachment| match attachment {
        Entry::Interface(_) => None,
        Entry::Cgroup(on) => Some(on),
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
            .chain(on_cgroup().map(|on| on.program))
            .collect();
        assert_eq!(programs.iter().collect::<HashSet<_>>().len(), ALL.len() + 1);
        assert!(programs.iter().all(|name| name.len() <= 15), "the kernel cuts them: {programs:?}");
        let sides = |direction| on_interface().filter(|on| on.direction == direction).count();
        assert!(Direction::ALL.into_iter().all(|direction| sides(direction) <= 1));
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
