//! Carries out a plan, and undoes what it did when a step fails.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use super::maps::{PolicyMap, SettingsMap};
use super::plan::{Change, Step};
use super::{hook, object, pins};
use crate::config::LogLevel;
use crate::exit::{Exit, OrExit as _};
use crate::host::bpffs;

/// Carries out the steps in order. When one fails, what the ones before it did is undone, last first, and
/// everything is as it was.
pub fn apply(steps: &[Step], interface: &str) -> Result<()> {
    let mut work = Work { interface, loaded: None, undo: Vec::new() };
    for step in steps {
        if let Err(error) = work.carry_out(step) {
            return Err(work.undo_all(error.context(format!("could not {step}"))));
        }
    }
    Ok(())
}

type Undo = (String, Box<dyn FnOnce() -> Result<()>>);

struct Work<'a> {
    interface: &'a str,
    loaded: Option<Ebpf>,
    undo: Vec<Undo>,
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

    fn ebpf(&mut self) -> Result<&mut Ebpf> {
        self.loaded.as_mut().context("the plan does not load the program first")
    }

    fn program(&mut self) -> Result<&mut SchedClassifier> {
        let program = self.ebpf()?.program_mut(hook::PROGRAM_NAME);
        Ok(program.context("the eBPF object has no program of ours")?.try_into()?)
    }

    /// The map that the new program uses, opened once more by its id: it may be pinned or not.
    fn map(&mut self, name: &'static str) -> Result<aya::maps::Map> {
        use aya::maps::{Map, MapData};
        let map = self.ebpf()?.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
        let (Map::Array(data) | Map::HashMap(data)) = map else {
            anyhow::bail!("the map {name} is of another kind than expected");
        };
        let again = MapData::from_id(data.info()?.id())?;
        Ok(Map::from_map_data(again)?)
    }

    fn carry_out(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::MountBpffs => {
                bpffs::mount_it()?;
                eprintln!("wsl-mirror: mounted bpffs at {}", bpffs::ROOT);
                self.on_failure("unmount bpffs", || bpffs::unmount_ours().map(|_| ()));
                Ok(())
            }
            Step::MakeDirectories => self.make_directories(),
            Step::RemoveLeftover(name) => remove(&pins::path(name)),
            Step::LoadProgram { reused, log } => self.load(reused, *log),
            Step::WritePolicies(changes) => self.write_policies(changes),
            Step::WriteSettings { old, new } => {
                let mut map = SettingsMap::from_map(self.map("SETTINGS")?)?;
                map.set(*new)?;
                if let Some(old) = *old {
                    self.on_failure("restore SETTINGS", move || map.set(old));
                }
                Ok(())
            }
            Step::PinMap(name) => {
                let path = pins::path(name);
                let map = self.ebpf()?.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
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
            Step::AttachLink => self.attach_link(),
            Step::ReplaceInLink => self.replace_in_link(),
            Step::AddClsact => {
                hook::add_clsact(self.interface)?;
                let index = crate::host::interface::require_index(self.interface)?;
                self.on_failure("remove the clsact qdisc", move || hook::remove_clsact(index));
                Ok(())
            }
            Step::AddFilter => self.add_filter(),
            Step::ReplaceInFilter => self.replace_in_filter(),
            Step::SwapProgramPin => {
                let (new, pinned) = (pins::path_of_new(pins::PROGRAM), pins::path(pins::PROGRAM));
                std::fs::rename(&new, &pinned)
                    .or_exit(Exit::Kernel, || format!("cannot rename {} to {}", new.display(), pinned.display()))
            }
        }
    }

    fn make_directories(&mut self) -> Result<()> {
        for path in [Path::new(pins::DIRECTORY).to_owned(), pins::directory()] {
            if bpffs::is_directory(&path) == Some(true) {
                continue;
            }
            bpffs::make_directory(&path)?;
            self.on_failure(format!("remove {}", path.display()), move || {
                std::fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))
            });
        }
        Ok(())
    }

    fn load(&mut self, reused: &[&'static str], log: LogLevel) -> Result<()> {
        let object = object::for_this_kernel()?;
        let level = log as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, true);
        for name in reused {
            loader.map_pin_path(name, pins::path(name));
        }
        let ebpf = loader.load(&object).or_exit(Exit::Kernel, || "the kernel refused our maps".into())?;
        self.loaded = Some(ebpf);
        self.program()?.load().or_exit(Exit::Kernel, || {
            "the kernel refused our program; please report this with the text that follows".into()
        })
    }

    fn write_policies(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            // Opened for each, so that each undo has its own; a load changes few ports or none.
            let Change { key, old, new } = *change;
            let mut map = PolicyMap::from_map(self.map("PORT_POLICY")?)?;
            map.set(key, new)?;
            self.on_failure(format!("restore port {}", key.port), move || map.set(key, old));
        }
        Ok(())
    }

    fn attach_link(&mut self) -> Result<()> {
        let interface = self.interface;
        let program = self.program()?;
        let id = program
            .attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::TcxOrder(LinkOrder::first()))
            .or_exit(Exit::Kernel, || format!("the kernel refused to attach the program to {interface} (tcx)"))?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        // Beside a link whose interface went away, then over it.
        let (new, pinned) = (pins::path_of_new(pins::LINK), pins::path(pins::LINK));
        link.pin(&new).or_exit(Exit::Kernel, || format!("cannot pin the link at {}", new.display()))?;
        let first = new.clone();
        self.on_failure("unpin the new link", move || remove_if_there(&first));
        let was_there = pinned.exists();
        std::fs::rename(&new, &pinned)
            .or_exit(Exit::Kernel, || format!("cannot rename {} to {}", new.display(), pinned.display()))?;
        if !was_there {
            self.on_failure("unpin the link", move || remove(&pinned));
        }
        Ok(())
    }

    fn replace_in_link(&mut self) -> Result<()> {
        self.program()?.attach_to_link(pinned_link()?).or_exit(Exit::Kernel, || {
            "the kernel refused to replace the program in the pinned link".into()
        })?;
        self.on_failure("put the old program back into the link", || {
            let mut old = SchedClassifier::from_pin(pins::path(pins::PROGRAM))?;
            old.attach_to_link(pinned_link()?)?;
            Ok(())
        });
        Ok(())
    }

    fn add_filter(&mut self) -> Result<()> {
        let interface = self.interface;
        let options =
            NlOptions { priority: hook::FILTER_PRIORITY, handle: hook::FILTER_HANDLE, ..NlOptions::default() };
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

    fn replace_in_filter(&mut self) -> Result<()> {
        let interface = self.interface;
        replace_filter(self.program()?, interface)?;
        let name = interface.to_owned();
        self.on_failure("put the old program back into the filter", move || {
            replace_filter(&mut SchedClassifier::from_pin(pins::path(pins::PROGRAM))?, &name)
        });
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

fn pinned_link() -> Result<SchedClassifierLink> {
    let path = pins::path(pins::LINK);
    let link = PinnedLink::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))?;
    FdLink::from(link).try_into().or_exit(Exit::UnknownLayout, || format!("{} is no tcx link", path.display()))
}

/// Removes a pin.
pub fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).or_exit(Exit::Kernel, || format!("cannot remove {}", path.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    if path.exists() { remove(path) } else { Ok(()) }
}
