//! Carries out a plan, and undoes what it did when a step fails.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use aya::programs::links::FdLink;
use wsl_mirror_core::abi::{Owner, OwnerPolicy, Settings};

use super::attachments::{CgroupAttachment, InterfaceAttachment, UdpAttachment};
use super::listeners::{Listeners, Maps, Surroundings};
use super::look::Look;
use super::object::Fitted;
use super::pins::{self, bpffs};
use super::programs::{self, Programs};
use super::source_alias::Change;
use super::step::{OwnerChange, PolicyChange, Step};
use super::udp_hooks::UdpHooks;
use super::{cgroup, clsact, maps, tcx};
use crate::config::Switch;
use crate::host::firewall::Firewall;
use crate::host::interface;
use crate::notes::Notes;

pub use super::programs::VerifierLog;

/// What a plan is carried out on, beside the pins. The caller has checked that all of it exists.
pub struct Target<'a> {
    /// The interface's name.
    pub interface: &'a str,
    /// The packet filters: holders' targets come from them.
    pub firewall: &'a Firewall,
    /// The object, fit for this kernel.
    pub object: &'a Fitted,
    /// Where the programs on the cgroup are attached.
    pub cgroup: OwnedFd,
    /// What people see when the kernel refuses a program.
    pub verifier_log: VerifierLog,
}

/// Carries out the steps in order. A step that fails undoes the ones before it, last first. The notes are for both ends.
pub fn apply(steps: &[Step], target: Target<'_>) -> (Notes, Result<()>) {
    let mut work = Work {
        interface: target.interface,
        target,
        programs: None,
        undo: Vec::new(),
        notes: Notes::default(),
    };
    for step in steps {
        if let Err(error) = work.carry_out(step) {
            let error = work.undo_all(error.context(format!("could not {step}")));
            return (work.notes, Err(error));
        }
    }
    (work.notes, Ok(()))
}

type Undo = (String, Box<dyn FnOnce() -> Result<()>>);

struct Work<'a> {
    interface: &'a str,
    target: Target<'a>,
    programs: Option<Programs>,
    undo: Vec<Undo>,
    notes: Notes,
}

impl Work<'_> {
    fn on_failure(&mut self, what: impl Into<String>, undo: impl FnOnce() -> Result<()> + 'static) {
        self.undo.push((what.into(), Box::new(undo)));
    }

    fn undo_all(&mut self, mut error: anyhow::Error) -> anyhow::Error {
        for (what, undo) in self.undo.drain(..).rev() {
            if let Err(undo_error) = undo() {
                error = error.context(format!("and then could not {what}: {undo_error:#}"));
            }
        }
        error
    }

    fn programs(&mut self) -> Result<&mut Programs> {
        self.programs.as_mut().context("the plan does not load the program first")
    }

    fn carry_out(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::MountBpffs => self.mount_bpffs(),
            Step::MakeDirectories => self.make_directories(),
            Step::RemoveLeftover(name) => pins::remove(name),
            Step::LoadProgram { reused, log } => {
                let Target { object, verifier_log, .. } = self.target;
                self.programs = Some(Programs::load(object, reused, *log, verifier_log)?);
                Ok(())
            }
            Step::UsePinned => {
                self.programs = Some(Programs::pinned()?);
                Ok(())
            }
            Step::ChangeRouting(change) | Step::ChangeLocalRules(change) => self.change_routing(change),
            Step::ClearLoMark(settings) => {
                self.write_settings(Some(*settings), Settings { lo_mark: 0, ..*settings })
            }
            Step::WritePolicies(changes) => self.write_policies(changes),
            Step::WriteOwners(changes) => self.write_owners(changes),
            Step::WriteSettings { old, new } => self.write_settings(*old, *new),
            Step::PinMap(name) => {
                let name = *name;
                self.programs()?.pin_map(name)?;
                self.on_failure(format!("unpin {name}"), move || pins::remove(name));
                Ok(())
            }
            Step::PinProgram(on) => {
                let name = on.program_pin;
                pins::pin_new_program(self.programs()?.on_interface(*on)?, name)?;
                self.on_failure("unpin the new program", move || pins::remove_new(name));
                Ok(())
            }
            Step::AttachToCgroup(on) => self.attach_to_cgroup(*on),
            Step::PinUdpProgram(udp) => self.pin_udp_program(*udp),
            Step::TagSockets { owners, linux_clients } => self.tag_sockets(owners, *linux_clients),
            Step::AttachLink(on) => self.attach_link(*on),
            Step::ReplaceInLink { on, old } => self.replace_in_link(*on, *old),
            Step::AddClsact => self.add_clsact(),
            Step::AddFilter(on) => self.add_filter(*on),
            Step::ReplaceInFilter { on, old } => self.replace_in_filter(*on, *old),
            Step::SwapProgramPin(on) => pins::replace_by_new(on.program_pin),
        }
    }

    fn mount_bpffs(&mut self) -> Result<()> {
        bpffs::mount_it()?;
        self.on_failure("unmount bpffs", bpffs::unmount_it);
        self.notes.add(format!("mounted bpffs at {}", bpffs::ROOT));
        Ok(())
    }

    fn make_directories(&mut self) -> Result<()> {
        for path in pins::directories() {
            if bpffs::make_directory(&path)? {
                self.on_failure(format!("remove {}", path.display()), move || pins::remove_directory(&path));
            }
        }
        Ok(())
    }

    fn change_routing(&mut self, change: &Change) -> Result<()> {
        change.carry_out()?;
        let reversed = change.clone().reversed();
        self.on_failure(reversed.to_string(), move || reversed.carry_out());
        Ok(())
    }

    fn attach_to_cgroup(&mut self, on: CgroupAttachment) -> Result<()> {
        let Self { target, programs, .. } = self;
        let programs = programs.as_mut().context("the plan does not load the program first")?;
        let change = cgroup::attach(programs.loaded()?, on, target.cgroup.as_fd())?;
        self.undo_on_failure(change);
        Ok(())
    }

    fn undo_on_failure(&mut self, change: cgroup::Change) {
        self.on_failure(format!("take {} back", change.on().program), move || change.undo());
    }

    fn pin_udp_program(&mut self, udp: UdpAttachment) -> Result<()> {
        let name = udp.program_pin;
        let old = pins::replace_program(self.programs()?.of_udp(udp)?, udp)?;
        self.on_failure(format!("take {name} back"), move || match old {
            Some(mut old) => pins::replace_program(&mut old, udp).map(drop),
            None => pins::remove(name),
        });
        Ok(())
    }

    fn tag_sockets(&mut self, owners: &BTreeMap<Owner, OwnerPolicy>, linux_clients: Switch) -> Result<()> {
        let Self { target, programs, notes, interface, .. } = self;
        let programs = programs.as_mut().context("the plan does not load the program first")?;
        let mut maps =
            Maps { owners: programs.map(&maps::SOCKET_OWNER)?, targets: programs.map(&maps::SOCKET_TARGET)? };
        let firewall = &target.firewall;
        let (publications, linux_access) = (firewall.publications(), firewall.linux_access());
        let surroundings =
            Surroundings { owners, publications: &publications, linux_access: &linux_access, interface };
        let cgroup = || Ok(target.cgroup.try_clone()?);
        let mut udp_hooks = UdpHooks::loaded(programs.loaded()?, &cgroup, linux_clients);
        // Tags and targets end with their sockets or with the map: nothing has to be undone.
        let looked = Listeners::default().look(Look::Everything, &mut maps, &mut udp_hooks, &surroundings);
        notes.extend(looked);
        for change in udp_hooks.into_changes() {
            self.undo_on_failure(change);
        }
        Ok(())
    }

    fn write_settings(&mut self, old: Option<Settings>, new: Settings) -> Result<()> {
        let mut map = self.programs()?.map(&maps::SETTINGS)?;
        map.set(new)?;
        if let Some(old) = old {
            self.on_failure("restore SETTINGS", move || map.set(old));
        }
        Ok(())
    }

    fn write_owners(&mut self, changes: &[OwnerChange]) -> Result<()> {
        let map = Rc::new(RefCell::new(self.programs()?.map(&maps::OWNERS)?));
        for OwnerChange { owner, old, new } in changes.iter().copied() {
            map.borrow_mut().set(owner, new)?;
            let map = Rc::clone(&map);
            self.on_failure(format!("restore {} in OWNERS", owner.name()), move || {
                map.borrow_mut().set(owner, old)
            });
        }
        Ok(())
    }

    fn write_policies(&mut self, changes: &[PolicyChange]) -> Result<()> {
        let map = Rc::new(RefCell::new(self.programs()?.map(&maps::PORT_POLICY)?));
        for PolicyChange { key, old, new } in changes.iter().copied() {
            map.borrow_mut().set_policy(key, new)?;
            let map = Rc::clone(&map);
            self.on_failure(format!("restore port {}", key.port), move || {
                map.borrow_mut().set_policy(key, old)
            });
        }
        Ok(())
    }

    fn attach_link(&mut self, on: InterfaceAttachment) -> Result<()> {
        let (interface, direction) = (self.interface, on.direction);
        let program = self.programs()?.on_interface(on)?;
        let link = tcx::attach(program, interface, direction)?;
        // A link that is pinned there is dead (its interface went away), or else it would have been updated.
        let (interface, id) = (interface.to_owned(), program.info()?.id());
        self.pin_link(link, on.link_pin, move || tcx::wait_until_off(&interface, direction, id))
    }

    /// Pins a new link. `gone` waits until the link has no effect any more after its pin was removed.
    fn pin_link(
        &mut self,
        link: FdLink,
        name: &'static str,
        gone: impl FnOnce() -> Result<()> + 'static,
    ) -> Result<()> {
        let old = pins::pin_link(link, name)?;
        let what = if old.is_some() { format!("put the old {name} back") } else { format!("unpin {name}") };
        self.on_failure(what, move || {
            pins::unpin_link(name, old)?;
            gone()
        });
        Ok(())
    }

    fn replace_in_link(&mut self, on: InterfaceAttachment, old: u32) -> Result<()> {
        let mut old = programs::by_id(old, on)?;
        tcx::replace(self.programs()?.on_interface(on)?, on)?;
        self.on_failure("put the old program back into the link", move || tcx::replace(&mut old, on));
        Ok(())
    }

    fn add_clsact(&mut self) -> Result<()> {
        let index = interface::require_index(self.interface)?;
        clsact::add(self.interface)?;
        self.on_failure("remove the clsact qdisc", move || clsact::remove(index));
        Ok(())
    }

    fn add_filter(&mut self, on: InterfaceAttachment) -> Result<()> {
        let interface = self.interface;
        clsact::add_filter(self.programs()?.on_interface(on)?, interface, on.direction)?;
        let interface = interface.to_owned();
        self.on_failure("remove the filter", move || clsact::remove_filter(&interface, on.direction));
        Ok(())
    }

    fn replace_in_filter(&mut self, on: InterfaceAttachment, old: u32) -> Result<()> {
        let interface = self.interface;
        let mut old = programs::by_id(old, on)?;
        clsact::replace_in_filter(self.programs()?.on_interface(on)?, interface, on.direction)?;
        let interface = interface.to_owned();
        self.on_failure("put the old program back into the filter", move || {
            clsact::replace_in_filter(&mut old, &interface, on.direction)
        });
        Ok(())
    }
}
