//! Writes the running kernel's kfunc ids and field offsets over the object's placeholders.
//!
//! Why there are placeholders: [`wsl_mirror_ebpf::kernel`]. The walk goes over the executable sections in
//! instructions of 8 bytes (16 for `ld_imm64`); a call to a placeholder becomes a kfunc call, a load from a
//! placeholder offset gets the real one. Ids change with every build of a kernel: they are looked up at each
//! load and never kept.

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _, SectionFlags, elf};
use wsl_mirror_ebpf::kernel::{Field, Kfunc};

use super::btf::Btf;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_LD | BPF_IMM | BPF_DW`, the one instruction that is two long.
const LD_IMM64: u8 = 0x18;
/// `BPF_LDX | BPF_MEM | BPF_DW` and `BPF_B`.
const LOADS: [u8; 2] = [0x79, 0x71];
/// `BPF_PSEUDO_KFUNC_CALL` in the source register's half of the register byte.
const PSEUDO_KFUNC_CALL: u8 = 2 << 4;

/// What the running kernel has in place of each placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    kfuncs: Vec<(Kfunc, i32)>,
    fields: Vec<(Field, i16)>,
}

/// What the running kernel does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Kernel functions by name.
    pub kfuncs: Vec<&'static str>,
    /// Fields of `struct nf_conn`.
    pub fields: Vec<String>,
}

impl Targets {
    /// Looks everything up, and says all that is missing at once.
    pub fn resolve(btf: &Btf<'_>) -> Result<Self, Missing> {
        let mut missing = Missing::default();
        let mut targets = Self { kfuncs: Vec::new(), fields: Vec::new() };
        for kfunc in Kfunc::ALL {
            match btf.function(kfunc.name()).and_then(|id| i32::try_from(id).ok()) {
                Some(id) => targets.kfuncs.push((kfunc, id)),
                None => missing.kfuncs.push(kfunc.name()),
            }
        }
        for field in Field::ALL {
            match btf.field_offset("nf_conn", field.path()).and_then(|offset| i16::try_from(offset).ok()) {
                Some(offset) => targets.fields.push((field, offset)),
                None => missing.fields.push(format!("nf_conn.{}", field.path().join("."))),
            }
        }
        if missing == Missing::default() { Ok(targets) } else { Err(missing) }
    }

    fn kfunc(&self, placeholder: i32) -> Option<i32> {
        let found = self.kfuncs.iter().find(|(kfunc, _)| kfunc.placeholder().cast_signed() == placeholder);
        found.map(|(_, id)| *id)
    }

    fn field(&self, placeholder: i16) -> Option<i16> {
        let found = self.fields.iter().find(|(field, _)| field.placeholder().cast_signed() == placeholder);
        found.map(|(_, offset)| *offset)
    }
}

/// Writes the targets into the object's instructions.
///
/// An object in which a placeholder never occurs was not built from this source tree: that is an error, and
/// so is one that does not end on an instruction.
pub fn relocate(object: &mut [u8], targets: &Targets) -> Result<()> {
    let mut uses = vec![0_usize; targets.kfuncs.len() + targets.fields.len()];
    for range in executable_sections(object)? {
        let instructions = &mut object[range];
        let mut at = 0;
        while at < instructions.len() {
            let Some(instruction) = instructions.get_mut(at..at + 8) else {
                bail!("the eBPF object is damaged: its code ends in the middle of an instruction");
            };
            let code = instruction[0];
            let imm = i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
            let off = i16::from_le_bytes([instruction[2], instruction[3]]);
            if code == CALL && instruction[1] == 0 {
                if let Some(id) = targets.kfunc(imm) {
                    instruction[1] = PSEUDO_KFUNC_CALL;
                    instruction[4..8].copy_from_slice(&id.to_le_bytes());
                    if let Some(n) = targets.kfuncs.iter().position(|(_, found)| *found == id) {
                        uses[n] += 1;
                    }
                }
            } else if LOADS.contains(&code)
                && let Some(offset) = targets.field(off)
            {
                instruction[2..4].copy_from_slice(&offset.to_le_bytes());
                if let Some(n) = targets.fields.iter().position(|(_, found)| *found == offset) {
                    uses[targets.kfuncs.len() + n] += 1;
                }
            }
            at += if code == LD_IMM64 { 16 } else { 8 };
        }
    }
    if uses.contains(&0) {
        bail!("the eBPF object does not use every kernel function that this program resolves for it: rebuild it");
    }
    Ok(())
}

fn executable_sections(object: &[u8]) -> Result<Vec<std::ops::Range<usize>>> {
    let file = object::File::parse(object).context("the eBPF object is no ELF file")?;
    let executable = u64::from(elf::SHF_EXECINSTR);
    let mut ranges = Vec::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & executable == 0 {
            continue;
        }
        let Some((start, len)) = section.file_range() else { continue };
        let range = usize::try_from(start)?..usize::try_from(start.saturating_add(len))?;
        if range.end > object.len() {
            bail!("the eBPF object is damaged: a section reaches beyond its end");
        }
        ranges.push(range);
    }
    Ok(ranges)
}
