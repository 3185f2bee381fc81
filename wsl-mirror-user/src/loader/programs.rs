//! The programs and maps that a plan works with.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData};
use aya::programs::{CgroupSockAddr, ProgramError, ProgramInfo, SchedClassifier, loaded_programs};
use aya::{Ebpf, EbpfLoader};

use super::attachments::{self, Direction, InterfaceAttachment, UdpAttachment};
use super::maps::{Access, Definition};
use super::object::Fitted;
use super::{cgroup, pins};
use crate::config::LogLevel;
use crate::exit::{Exit, Failure, OrExit as _};

/// How much of the verifier's log people see when the kernel refuses a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifierLog {
    /// The end, where the reason is.
    End,
    /// Everything.
    All,
}

/// Programs with their maps.
pub enum Programs {
    /// New ones.
    Loaded {
        /// The object's.
        ebpf: Ebpf,
        /// The names of the programs for the interface, as this kernel runs them.
        forms: BTreeMap<Direction, &'static str>,
    },
    /// The pinned ones.
    Pinned(BTreeMap<Direction, SchedClassifier>),
}

impl Programs {
    /// Loads the object's programs and maps. The maps of these names are the pinned ones.
    pub fn load(object: &Fitted, reused: &[&'static str], level: LogLevel, log: VerifierLog) -> Result<Self> {
        let level = level as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, true);
        for name in reused {
            loader.map_pin_path(name, pins::path(name));
        }
        let mut ebpf =
            loader.load(&object.bytes).or_exit(Exit::Kernel, || "the kernel refused our maps".into())?;
        let mut forms = BTreeMap::new();
        // The verifier never sees the other forms: it would refuse them.
        for on in attachments::on_interface() {
            let name = on.form_without(&object.lacks).context("no form of a program fits this kernel")?;
            accept(name, log, classifier(&mut ebpf, name)?.load())?;
            forms.insert(on.direction, name);
        }
        for on in attachments::on_cgroup().chain(attachments::of_udp().map(|udp| udp.on)) {
            accept(on.program, log, cgroup::load(&mut ebpf, on))?;
        }
        Ok(Self::Loaded { ebpf, forms })
    }

    /// Opens the pinned programs.
    pub fn pinned() -> Result<Self> {
        let mut programs = BTreeMap::new();
        for on in attachments::on_interface() {
            let info = pins::program_info(on.program_pin)?;
            let program = open(info).or_exit(Exit::Kernel, || {
                format!("cannot open the pinned program {}", pins::path(on.program_pin).display())
            })?;
            programs.insert(on.direction, program);
        }
        Ok(Self::Pinned(programs))
    }

    /// The program for the interface.
    pub fn on_interface(&mut self, on: InterfaceAttachment) -> Result<&mut SchedClassifier> {
        match self {
            Self::Loaded { ebpf, forms } => {
                classifier(ebpf, forms.get(&on.direction).context("no program of ours for this side")?)
            }
            Self::Pinned(programs) => {
                programs.get_mut(&on.direction).with_context(|| format!("{} is not pinned", on.program_pin))
            }
        }
    }

    /// The new program for a hook of UDP.
    pub fn of_udp(&mut self, udp: UdpAttachment) -> Result<&mut CgroupSockAddr> {
        let program = self.loaded()?.program_mut(udp.on.program);
        Ok(program.context("the eBPF object lacks a hook of ours")?.try_into()?)
    }

    /// The object's new programs and maps.
    pub fn loaded(&mut self) -> Result<&mut Ebpf> {
        match self {
            Self::Loaded { ebpf, .. } => Ok(ebpf),
            Self::Pinned(_) => bail!("the plan does not load the program first"),
        }
    }

    /// The map that the programs use, opened once more: that of new programs by its id, for it may be pinned or not.
    pub fn map<A: Access>(&mut self, definition: &Definition<A>) -> Result<A> {
        let Self::Loaded { ebpf, .. } = self else { return definition.pinned() };
        let name = definition.name();
        let map = ebpf.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
        let (Map::Array(data) | Map::HashMap(data) | Map::SkStorage(data)) = map else {
            bail!("the map {name} is of another kind than expected");
        };
        definition.access(MapData::from_id(data.info()?.id())?)
    }

    /// Pins a new map.
    pub fn pin_map(&mut self, name: &str) -> Result<()> {
        let map = self.loaded()?.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
        pins::pin_map(map, name)
    }
}

/// Opens the program of this id that is on the interface.
pub fn by_id(id: u32, on: InterfaceAttachment) -> Result<SchedClassifier> {
    // It is the pinned one, unless a load was killed at the wrong moment; then we have to look at all there are.
    let pinned = pins::program_info(on.program_pin).ok().filter(|info| info.id() == id);
    let info = pinned.or_else(|| loaded_programs().flatten().find(|info| info.id() == id));
    info.context("it is not there any more")
        .and_then(open)
        .or_exit(Exit::Kernel, || format!("cannot open the program that runs now (id {id})"))
}

fn open(info: ProgramInfo) -> Result<SchedClassifier> {
    let name = info.name_as_str().unwrap_or_default().to_owned();
    Ok(SchedClassifier::from_program_info(info, name.into())?)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name);
    Ok(program.context("the eBPF object has no program of ours")?.try_into()?)
}

/// Passes on what the kernel says about a program.
fn accept(name: &str, log: VerifierLog, loaded: Result<(), ProgramError>) -> Result<()> {
    match loaded {
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let text = verifier_text(&verifier_log.to_string(), log);
            Err(Failure::new(
                Exit::Kernel,
                format!("the kernel refused our program {name}: {io_error}{text}"),
            ))
        }
        done => done.or_exit(Exit::Kernel, || format!("the kernel refused our program {name}")),
    }
}

/// What the verifier says, or the end of it: the reason is there, after a line or two for each instruction that
/// it looked at.
fn verifier_text(log: &str, shown: VerifierLog) -> String {
    const SHOWN: usize = 20;
    let lines: Vec<&str> = log.trim_end().lines().collect();
    let hidden = match shown {
        VerifierLog::All => 0,
        VerifierLog::End => lines.len().saturating_sub(SHOWN),
    };
    let text = lines[hidden..].join("\n  ");
    match hidden {
        _ if lines.is_empty() => String::new(),
        0 => format!("; its verifier says:\n  {text}"),
        _ => format!(
            "; its verifier's last {SHOWN} of {} lines (`wsl-mirror load --verifier-log` shows all: please report \
             them):\n  {text}",
            lines.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_verifier_log_is_cut_to_its_end_unless_all_of_it_is_wanted() {
        let log = (1..=100).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
        let end = verifier_text(&log, VerifierLog::End);
        assert!(
            end.contains("20 of 100 lines") && end.contains("\n  line 81\n") && end.ends_with("line 100"),
            "{end}"
        );
        assert!(!end.contains("line 80\n"), "{end}");
        assert_eq!(verifier_text(&log, VerifierLog::All).lines().count(), 101);
        assert_eq!(verifier_text("line 1\n", VerifierLog::End), "; its verifier says:\n  line 1");
        assert_eq!(verifier_text("\n", VerifierLog::End), "");
    }
}
