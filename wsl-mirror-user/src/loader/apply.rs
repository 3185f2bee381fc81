//! Carries out a plan, and undoes what it did when a step fails.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use wsl_mirror_core::abi::{Owner, OwnerPolicy, Settings};

use super::maps::{DeliveryMap, OwnersMap, PolicyMap, SettingsMap, SocketOwners};
use super::owners::{self, SocketHook};
use super::pins::{self, bpffs};
use super::plan::{Change, OwnerChange, RuleChange, Step};
use super::{delivery, hook};
use crate::config::LogLevel;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::notes::Notes;

/// What a plan is carried out on, beside the pins. All of it is known to be there before anything is touched.
pub struct Target<'a> {
    /// The interface's name.
    pub interface: &'a str,
    /// The object, fit for this kernel.
    pub object: &'a [u8],
    /// Where the hooks for sockets are attached.
    pub cgroup: OwnedFd,
    /// Whether all is shown that the verifier says about a program that it refuses.
    pub whole_verifier_log: bool,
}

/// Carries out the steps in order. When one fails, what the ones before it did is undone, last first, and
/// everything is as it was. The notes tell of either end.
pub fn apply(steps: &[Step], target: Target<'_>) -> (Notes, Result<()>) {
    let mut work = Work {
        interface: target.interface,
        target,
        loaded: None,
        pinned: None,
        undo: Vec::new(),
        prepared: Vec::new(),
        is_plain: false,
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
    loaded: Option<Ebpf>,
    /// The pinned program, where no new one is loaded.
    pinned: Option<SchedClassifier>,
    undo: Vec<Undo>,
    /// What was done for delivery by `lo`: undone after all else, or when a part of it cannot be done.
    prepared: Vec<delivery::Change>,
    /// Whether a part of it could not be done.
    is_plain: bool,
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
        self.undo_preparations()
            .into_iter()
            .fold(error, |error, failed| error.context(format!("and then {failed}")))
    }

    /// Gives what could not be undone.
    fn undo_preparations(&mut self) -> Vec<String> {
        let undos = self.prepared.drain(..).rev().filter_map(delivery::Change::undo);
        undos
            .filter_map(|undo| undo.carry_out().err().map(|error| format!("could not {undo}: {error:#}")))
            .collect()
    }

    fn ebpf(&mut self) -> Result<&mut Ebpf> {
        self.loaded.as_mut().context("the plan does not load the program first")
    }

    fn program(&mut self) -> Result<&mut SchedClassifier> {
        let Self { pinned, loaded, .. } = self;
        if let Some(pinned) = pinned {
            return Ok(pinned);
        }
        let ebpf = loaded.as_mut().context("the plan does not load the program first")?;
        let program = ebpf.program_mut(hook::PROGRAM_NAME);
        Ok(program.context("the eBPF object has no program of ours")?.try_into()?)
    }

    /// The map that the program uses, opened once more: that of a new one by its id, for it may be pinned or not.
    fn map(&mut self, name: &'static str) -> Result<aya::maps::Map> {
        use aya::maps::{Map, MapData};
        if self.pinned.is_some() {
            let path = pins::path(name);
            let data = MapData::from_pin(&path)
                .or_exit(Exit::Kernel, || format!("cannot open the pinned map {}", path.display()))?;
            return Ok(Map::from_map_data(data)?);
        }
        let map = self.ebpf()?.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
        let (Map::Array(data) | Map::HashMap(data) | Map::SkStorage(data)) = map else {
            anyhow::bail!("the map {name} is of another kind than expected");
        };
        let again = MapData::from_id(data.info()?.id())?;
        Ok(Map::from_map_data(again)?)
    }

    fn carry_out(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::MountBpffs => {
                bpffs::mount_it()?;
                self.on_failure("unmount bpffs", bpffs::unmount_it);
                self.notes.add(format!("mounted bpffs at {}", bpffs::ROOT));
                Ok(())
            }
            Step::MakeDirectories => self.make_directories(),
            Step::RemoveLeftover(name) => remove(&pins::path(name)),
            Step::LoadProgram { reused, log } => self.load(reused, *log),
            Step::UsePinned => self.use_pinned(),
            Step::WritePolicies(changes) => self.write_policies(changes),
            Step::WriteRules(changes) => self.write_rules(changes.clone()),
            Step::WriteOwners(changes) => self.write_owners(changes),
            Step::WriteSettings { old, new } => {
                let mut map = SettingsMap::from_map(self.map("SETTINGS")?)?;
                map.set(if self.is_plain { Settings { lo_ifindex: 0, ..*new } } else { *new })?;
                if let Some(old) = *old {
                    self.on_failure("restore SETTINGS", move || map.set(old));
                }
                Ok(())
            }
            Step::PinMap(name) => {
                let path = pins::path(name);
                let map =
                    self.ebpf()?.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
                map.pin(&path).or_exit(Exit::Kernel, || format!("cannot pin at {}", path.display()))?;
                self.on_failure(format!("unpin {name}"), move || remove(&path));
                Ok(())
            }
            Step::PinProgram => {
                let path = pins::path_of_new(pins::PROGRAM);
                self.program()?
                    .pin(&path)
                    .or_exit(Exit::Kernel, || format!("cannot pin at {}", path.display()))?;
                self.on_failure("unpin the new program", move || remove_if_there(&path));
                Ok(())
            }
            Step::AttachSocketHook(hook) => self.attach_socket_hook(*hook),
            Step::TagSockets(owners) => self.tag_sockets(owners),
            Step::AttachLink => self.attach_link(),
            Step::ReplaceInLink { old } => self.replace_in_link(*old),
            Step::AddClsact => {
                let index = crate::host::interface::require_index(self.interface)?;
                hook::add_clsact(self.interface)?;
                self.on_failure("remove the clsact qdisc", move || hook::remove_clsact(index));
                Ok(())
            }
            Step::AddFilter => self.add_filter(),
            Step::ReplaceInFilter { old } => self.replace_in_filter(*old),
            Step::SwapProgramPin => rename(&pins::path_of_new(pins::PROGRAM), &pins::path(pins::PROGRAM)),
            Step::PrepareDelivery(change) => {
                self.prepare_delivery(*change);
                Ok(())
            }
            Step::CleanUp(change) => {
                // What is loaded works all the same, and the next load or unload tries again.
                if let Err(error) = change.carry_out() {
                    self.notes.add(format!("could not {change}: {error:#}"));
                }
                Ok(())
            }
        }
    }

    /// The first change that fails ends it: what was changed before it is undone, and the program will be told to take
    /// the plain way. That is no reason not to steer.
    fn prepare_delivery(&mut self, change: delivery::Change) {
        if self.is_plain {
            return;
        }
        let Err(error) = change.carry_out() else {
            self.prepared.push(change);
            return;
        };
        self.is_plain = true;
        self.notes.add(format!(
            "could not {change}: {error:#}; so ports behind a rule that drops what does not come in on lo stay out of \
             reach"
        ));
        let failed = self.undo_preparations();
        self.notes.extend(failed);
    }

    fn make_directories(&mut self) -> Result<()> {
        for path in [Path::new(pins::DIRECTORY).to_owned(), pins::directory()] {
            if !bpffs::make_directory(&path)? {
                continue;
            }
            self.on_failure(format!("remove {}", path.display()), move || {
                std::fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))
            });
        }
        Ok(())
    }

    fn load(&mut self, reused: &[&'static str], log: LogLevel) -> Result<()> {
        let level = log as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, true);
        for name in reused {
            loader.map_pin_path(name, pins::path(name));
        }
        let ebpf =
            loader.load(self.target.object).or_exit(Exit::Kernel, || "the kernel refused our maps".into())?;
        self.loaded = Some(ebpf);
        let done = self.program()?.load();
        self.accepted(hook::PROGRAM_NAME, done)?;
        for hook in SocketHook::ALL {
            let done = hook.load(self.ebpf()?);
            self.accepted(hook.program(), done)?;
        }
        Ok(())
    }

    fn use_pinned(&mut self) -> Result<()> {
        let path = pins::path(pins::PROGRAM);
        let program = ProgramInfo::from_pin(&path)
            .and_then(|info| SchedClassifier::from_program_info(info, hook::PROGRAM_NAME.into()))
            .or_exit(Exit::Kernel, || format!("cannot open the pinned program {}", path.display()))?;
        self.pinned = Some(program);
        Ok(())
    }

    /// What the kernel says about a program.
    fn accepted(&self, name: &str, loaded: Result<(), ProgramError>) -> Result<()> {
        match loaded {
            Err(ProgramError::LoadError { io_error, verifier_log }) => {
                let said = verifier_says(&verifier_log.to_string(), self.target.whole_verifier_log);
                Err(Failure::new(
                    Exit::Kernel,
                    format!("the kernel refused our program {name}: {io_error}{said}"),
                ))
            }
            done => done.or_exit(Exit::Kernel, || format!("the kernel refused our program {name}")),
        }
    }

    fn attach_socket_hook(&mut self, hook: SocketHook) -> Result<()> {
        let Self { target, loaded, .. } = self;
        let ebpf = loaded.as_mut().context("the plan does not load the program first")?;
        let link = hook.attach(ebpf, target.cgroup.as_fd())?;
        let id = link.info().or_exit(Exit::Kernel, || "cannot ask about a link".into())?.id();
        // For a moment the old one and the new one run both, and write the same.
        self.pin_link(link, hook.pin(), move || owners::wait_until_gone(&HashSet::from([id])))
    }

    fn tag_sockets(&mut self, owners: &BTreeMap<Owner, OwnerPolicy>) -> Result<()> {
        let mut map = SocketOwners::from_map(self.map("SOCKET_OWNER")?)?;
        // Tags go with their sockets, or with the map: nothing is to be undone.
        if let Some(failed) = owners::tag_sockets(&mut map, owners, &mut HashSet::new()) {
            self.notes.add(failed);
        }
        Ok(())
    }

    fn write_rules(&mut self, changes: Vec<RuleChange>) -> Result<()> {
        let mut map = DeliveryMap::from_map(self.map("PORT_DELIVERY")?)?;
        for change in &changes {
            map.set(change.key, change.new);
        }
        self.on_failure("restore PORT_DELIVERY", move || {
            for change in changes {
                map.set(change.key, change.old);
            }
            Ok(())
        });
        Ok(())
    }

    fn write_owners(&mut self, changes: &[OwnerChange]) -> Result<()> {
        let map = Rc::new(RefCell::new(OwnersMap::from_map(self.map("OWNERS")?)?));
        for OwnerChange { owner, old, new } in changes.iter().copied() {
            map.borrow_mut().set(owner, new)?;
            let map = Rc::clone(&map);
            self.on_failure(format!("restore {} in OWNERS", owner.name()), move || {
                map.borrow_mut().set(owner, old)
            });
        }
        Ok(())
    }

    fn write_policies(&mut self, changes: &[Change]) -> Result<()> {
        let map = Rc::new(RefCell::new(PolicyMap::from_map(self.map("PORT_POLICY")?)?));
        for Change { key, old, new } in changes.iter().copied() {
            map.borrow_mut().set(key, new)?;
            let map = Rc::clone(&map);
            self.on_failure(format!("restore port {}", key.port), move || map.borrow_mut().set(key, old));
        }
        Ok(())
    }

    fn attach_link(&mut self) -> Result<()> {
        let interface = self.interface;
        let program = self.program()?;
        let id = program
            .attach_with_options(
                interface,
                TcAttachType::Ingress,
                TcAttachOptions::TcxOrder(LinkOrder::first()),
            )
            .or_exit(Exit::Kernel, || {
                format!("the kernel refused to attach the program to {interface} (tcx)")
            })?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        // A link that is pinned there is dead (its interface went away), or else it would have been updated.
        let (name, program) = (interface.to_owned(), program.info()?.id());
        self.pin_link(link, pins::LINK, move || hook::wait_until_off(&name, program))
    }

    /// Pins a new link under this name, in one stroke where one is pinned already. `gone` waits until it has no effect
    /// any more after its pin was removed.
    fn pin_link(
        &mut self,
        link: FdLink,
        name: &'static str,
        gone: impl FnOnce() -> Result<()> + 'static,
    ) -> Result<()> {
        let pin = |link: FdLink, path: &Path| {
            link.pin(path)
                .map(drop)
                .or_exit(Exit::Kernel, || format!("cannot pin a link at {}", path.display()))
        };
        let pinned = pins::path(name);
        if !pinned.exists() {
            pin(link, &pinned)?;
            self.on_failure(format!("unpin {name}"), move || {
                remove(&pinned)?;
                gone()
            });
            return Ok(());
        }
        let old = FdLink::from(open_link(name)?);
        let new = pins::path_of_new(name);
        pin(link, &new)?;
        let beside = new.clone();
        self.on_failure(format!("unpin the new {name}"), move || remove_if_there(&beside));
        rename(&new, &pinned)?;
        self.on_failure(format!("put the old {name} back"), move || {
            remove(&pinned)?;
            pin(old, &pinned)?;
            gone()
        });
        Ok(())
    }

    fn replace_in_link(&mut self, old: u32) -> Result<()> {
        let mut old = hook::program(old)?;
        self.program()?.attach_to_link(pinned_link()?).or_exit(Exit::Kernel, || {
            "the kernel refused to replace the program in the pinned link".into()
        })?;
        self.on_failure("put the old program back into the link", move || {
            old.attach_to_link(pinned_link()?)?;
            Ok(())
        });
        Ok(())
    }

    fn add_filter(&mut self) -> Result<()> {
        let interface = self.interface;
        let options = NlOptions {
            priority: hook::FILTER_PRIORITY,
            handle: hook::FILTER_HANDLE,
            ..NlOptions::default()
        };
        let program = self.program()?;
        let id = program
            .attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
            .or_exit(Exit::Kernel, || {
                format!("the kernel refused to attach the program to {interface} (cls_bpf)")
            })?;
        keep(program, id)?;
        let name = interface.to_owned();
        self.on_failure("remove the filter", move || hook::remove_filter(&name));
        Ok(())
    }

    fn replace_in_filter(&mut self, old: u32) -> Result<()> {
        let interface = self.interface;
        let mut old = hook::program(old)?;
        replace_filter(self.program()?, interface)?;
        let name = interface.to_owned();
        self.on_failure("put the old program back into the filter", move || replace_filter(&mut old, &name));
        Ok(())
    }
}

/// Filters live on without us, but aya would take one away with its program's last handle.
fn keep(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<()> {
    let link = program.take_link(id)?;
    std::mem::forget(link);
    Ok(())
}

fn replace_filter(program: &mut SchedClassifier, interface: &str) -> Result<()> {
    let filter = SchedClassifierLink::attached(
        interface,
        TcAttachType::Ingress,
        hook::FILTER_PRIORITY,
        hook::FILTER_HANDLE,
        None,
    )?;
    let id = program.attach_to_link(filter).or_exit(Exit::Kernel, || {
        format!("the kernel refused to replace the program in our filter on {interface}")
    })?;
    keep(program, id)
}

fn open_link(name: &str) -> Result<PinnedLink> {
    let path = pins::path(name);
    PinnedLink::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))
}

fn pinned_link() -> Result<SchedClassifierLink> {
    FdLink::from(open_link(pins::LINK)?)
        .try_into()
        .or_exit(Exit::UnknownLayout, || format!("{} is no tcx link", pins::path(pins::LINK).display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
        .or_exit(Exit::Kernel, || format!("cannot rename {} to {}", from.display(), to.display()))
}

/// What the verifier says, or the end of it: the reason is there, after a line or two for each instruction that
/// it looked at.
fn verifier_says(log: &str, all_of_it: bool) -> String {
    const SHOWN: usize = 20;
    let lines: Vec<&str> = log.trim_end().lines().collect();
    let hidden = if all_of_it { 0 } else { lines.len().saturating_sub(SHOWN) };
    let said = lines[hidden..].join("\n  ");
    match hidden {
        _ if lines.is_empty() => String::new(),
        0 => format!("; its verifier says:\n  {said}"),
        _ => format!(
            "; its verifier's last {SHOWN} of {} lines (`wsl-mirror load --verifier-log` shows all: please report \
             them):\n  {said}",
            lines.len()
        ),
    }
}

/// Removes a pin.
pub fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).or_exit(Exit::Kernel, || format!("cannot remove {}", path.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    if path.exists() { remove(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_verifier_log_is_cut_to_its_end_unless_all_of_it_is_wanted() {
        let log = (1..=100).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
        let end = verifier_says(&log, false);
        assert!(
            end.contains("20 of 100 lines") && end.contains("\n  line 81\n") && end.ends_with("line 100"),
            "{end}"
        );
        assert!(!end.contains("line 80\n"), "{end}");
        assert_eq!(verifier_says(&log, true).lines().count(), 101);
        assert_eq!(verifier_says("line 1\n", false), "; its verifier says:\n  line 1");
        assert_eq!(verifier_says("\n", false), "");
    }
}
