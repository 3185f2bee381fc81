//! Writes the running kernel's kfunc ids and field offsets over the object's placeholders.
//!
//! Why there are placeholders: [`wsl_mirror_core::kfuncs`]. The walk goes over the executable sections in
//! instructions of 8 bytes (16 for `ld_imm64`); a call to a placeholder becomes a kfunc call, a load from a
//! placeholder offset and a move of a placeholder number get the real offset. Ids change with every build of a kernel: they are looked up at each
//! load and never kept.

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _, SectionFlags, elf};
use wsl_mirror_core::kfuncs::{Field, Kfunc};

use super::btf::Btf;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_LD | BPF_IMM | BPF_DW`, the one instruction that is two long.
const LD_IMM64: u8 = 0x18;
/// `BPF_LDX | BPF_MEM | BPF_DW`, `BPF_W`, `BPF_H` and `BPF_B`.
const LOADS: [u8; 4] = [0x79, 0x61, 0x69, 0x71];
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;
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
    /// Fields of structures.
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
                None if kfunc.is_optional() => {}
                None => missing.kfuncs.push(kfunc.name()),
            }
        }
        for field in Field::ALL {
            let offset = btf.field_offset(field.structure(), field.path());
            match offset.and_then(|offset| i16::try_from(offset).ok()) {
                Some(offset) => targets.fields.push((field, offset)),
                None => missing.fields.push(format!("{}.{}", field.structure(), field.path().join("."))),
            }
        }
        if missing == Missing::default() { Ok(targets) } else { Err(missing) }
    }

    /// Numbers of no kernel.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn made_up() -> Self {
        Self {
            kfuncs: Kfunc::ALL.iter().zip(1000..).map(|(kfunc, id)| (*kfunc, id)).collect(),
            fields: Field::ALL.iter().zip(100..).map(|(field, offset)| (*field, offset)).collect(),
        }
    }

    /// The optional kfuncs that the kernel lacks.
    pub fn lacks(&self) -> Vec<Kfunc> {
        let is_there = |kfunc: &Kfunc| self.kfuncs.iter().any(|(found, _)| found == kfunc);
        Kfunc::ALL.into_iter().filter(|kfunc| !is_there(kfunc)).collect()
    }

    fn kfunc(&self, placeholder: i32) -> Option<(Kfunc, i32)> {
        self.kfuncs.iter().copied().find(|(kfunc, _)| kfunc.placeholder().cast_signed() == placeholder)
    }

    fn field(&self, placeholder: i16) -> Option<(Field, i16)> {
        self.fields.iter().copied().find(|(field, _)| field.placeholder().cast_signed() == placeholder)
    }

    fn number(&self, placeholder: i32) -> Option<(Field, i16)> {
        self.fields.iter().copied().find(|(field, _)| field.number_placeholder().cast_signed() == placeholder)
    }
}

/// Writes the targets into the object's instructions.
///
/// An object in which a placeholder never occurs was not built from this source tree: that is an error, and
/// so is one that does not end on an instruction.
pub fn relocate(object: &mut [u8], targets: &Targets) -> Result<()> {
    let (mut kfuncs, mut fields) = (Vec::new(), Vec::new());
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
                if let Some((kfunc, id)) = targets.kfunc(imm) {
                    instruction[1] = PSEUDO_KFUNC_CALL;
                    instruction[4..8].copy_from_slice(&id.to_le_bytes());
                    kfuncs.push(kfunc);
                }
            } else if LOADS.contains(&code)
                && let Some((field, offset)) = targets.field(off)
            {
                instruction[2..4].copy_from_slice(&offset.to_le_bytes());
                fields.push(field);
            } else if code == MOVE
                && let Some((field, offset)) = targets.number(imm)
            {
                instruction[4..8].copy_from_slice(&i32::from(offset).to_le_bytes());
                fields.push(field);
            }
            at += if code == LD_IMM64 { 16 } else { 8 };
        }
    }
    let is_unused = targets.kfuncs.iter().any(|(kfunc, _)| !kfuncs.contains(kfunc))
        || targets.fields.iter().any(|(field, _)| !fields.contains(field));
    if is_unused {
        bail!(
            "the eBPF object does not use every kernel function that this program resolves for it: rebuild it"
        );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::object::pristine;

    /// The instructions of an object's sections, in pieces of 8 bytes.
    fn instructions(object: &[u8]) -> Vec<[u8; 8]> {
        let ranges = executable_sections(object).unwrap();
        ranges.into_iter().flat_map(|range| object[range].as_chunks::<8>().0.to_vec()).collect()
    }

    #[test]
    fn every_placeholder_is_replaced_and_nothing_else_is_touched() {
        let mut object = pristine().to_vec();
        relocate(&mut object, &Targets::made_up()).unwrap();
        assert_eq!(object.len(), pristine().len());
        let (before, after) = (instructions(pristine()), instructions(&object));
        let changed: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(changed.len() >= Kfunc::ALL.len() + Field::ALL.len());
        for (before, after) in changed {
            let imm = |i: &[u8; 8]| i32::from_le_bytes([i[4], i[5], i[6], i[7]]);
            if before[0] == CALL {
                let index = usize::try_from(imm(after) - 1000).unwrap();
                assert_eq!(imm(before).cast_unsigned(), Kfunc::ALL[index].placeholder());
                assert_eq!((before[1], after[1]), (0, PSEUDO_KFUNC_CALL));
            } else if before[0] == MOVE {
                let index = usize::try_from(imm(after) - 100).unwrap();
                assert_eq!(imm(before).cast_unsigned(), Field::ALL[index].number_placeholder());
                assert_eq!(before[..4], after[..4]);
            } else {
                let offset = |i: &[u8; 8]| u16::from_le_bytes([i[2], i[3]]);
                let index = usize::from(offset(after) - 100);
                assert_eq!(offset(before), Field::ALL[index].placeholder());
                assert_eq!((before[..2].to_vec(), imm(before)), (after[..2].to_vec(), imm(after)));
            }
        }
        let differing = object.iter().zip(pristine()).filter(|(a, b)| a != b).count();
        let in_code: usize =
            before.iter().zip(&after).map(|(a, b)| a.iter().zip(b).filter(|(a, b)| a != b).count()).sum();
        assert_eq!(differing, in_code, "bytes outside the code have changed");
    }

    #[test]
    fn an_optional_kfunc_that_the_kernel_lacks_is_left_alone() {
        let mut targets = Targets::made_up();
        targets.kfuncs.retain(|(kfunc, _)| !kfunc.is_optional());
        assert_eq!(targets.lacks(), [Kfunc::KernelContext]);
        let mut object = pristine().to_vec();
        relocate(&mut object, &targets).unwrap();
        let call = |i: &&[u8; 8]| i[0] == CALL && i[1] == 0;
        let placeholder = Kfunc::KernelContext.placeholder().to_le_bytes();
        let left = instructions(&object);
        assert!(left.iter().filter(call).any(|i| i[4..] == placeholder));
    }

    #[test]
    fn an_object_without_the_placeholders_is_refused() {
        let mut object = pristine().to_vec();
        relocate(&mut object, &Targets::made_up()).unwrap();
        assert!(relocate(&mut object, &Targets::made_up()).is_err(), "relocated twice");
    }

    #[test]
    fn a_damaged_object_is_an_error_and_never_a_panic() {
        let intact = pristine();
        // Shorter: every length of the headers, then a few.
        for len in (0..256).chain((256..intact.len()).step_by(997)) {
            let _ = relocate(&mut intact[..len].to_vec(), &Targets::made_up());
        }
        // Every byte of the file header and of the section headers, which say where everything is.
        let sections = usize::try_from(u64::from_le_bytes(*intact[40..].first_chunk().unwrap())).unwrap();
        for position in (0..64).chain(sections..intact.len()) {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut damaged = intact.to_vec();
                damaged[position] = value;
                let _ = relocate(&mut damaged, &Targets::made_up());
            }
        }
    }

    #[test]
    fn code_that_ends_in_the_middle_of_an_instruction_is_refused() {
        let mut object = pristine().to_vec();
        let file = object::File::parse(&*object).unwrap();
        // The size of the program's section, in its header (`Elf64_Shdr::sh_size`).
        let index = file.section_by_name("classifier").unwrap().index().0;
        let sections = usize::try_from(u64::from_le_bytes(*object[40..].first_chunk().unwrap())).unwrap();
        let size = sections + index * 64 + 32;
        let len = u64::from_le_bytes(*object[size..].first_chunk().unwrap());
        object[size..size + 8].copy_from_slice(&(len - 4).to_le_bytes());
        let error = relocate(&mut object, &Targets::made_up()).unwrap_err();
        assert!(error.to_string().contains("middle of an instruction"), "{error}");
    }
}
