//! What the running kernel calls its functions and where it keeps its fields: a reader for vmlinux' BTF.
//!
//! Only the two questions that [`super::relocate`] asks. aya-obj parses BTF but keeps members to itself;
//! btf-rs answers everything and takes 90 ms to start doing so, where this takes 6 (a 5.5 MB BTF, the same
//! machine in the same run): as much as a whole `load` may take.
//! Format: `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`.

use std::fmt;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u8 = 1;
const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_TYPEDEF: u8 = 8;
const KIND_VOLATILE: u8 = 9;
const KIND_CONST: u8 = 10;
const KIND_RESTRICT: u8 = 11;
const KIND_FUNC: u8 = 12;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;
const KIND_DATASEC: u8 = 15;
const KIND_DECL_TAG: u8 = 17;
const KIND_TYPE_TAG: u8 = 18;
const KIND_ENUM64: u8 = 19;
/// The newest kind that this reader knows the size of.
const KIND_MAX: u8 = KIND_ENUM64;

/// Why a BTF blob could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

fn malformed<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

/// A type's fixed part.
#[derive(Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the kernel's own words for it")]
struct Type<'a> {
    name: u32,
    kind: u8,
    /// For structures: member offsets carry a bit field size (`kind_flag`).
    flagged: bool,
    /// Size, or the type that this one refers to.
    size_or_type: u32,
    /// What follows the fixed part.
    rest: &'a [u8],
}

/// A parsed BTF blob.
pub struct Btf<'a> {
    strings: &'a [u8],
    /// Type 1 is the first.
    types: Vec<Type<'a>>,
}

impl<'a> Btf<'a> {
    /// Reads a whole blob, as `/sys/kernel/btf/vmlinux` has it, in this machine's byte order.
    pub fn parse(blob: &'a [u8]) -> Result<Self, Malformed> {
        let Some(magic) = blob.first_chunk::<2>() else { return malformed("no header") };
        if u16::from_ne_bytes(*magic) != MAGIC {
            return malformed("not BTF of this machine's byte order (magic number)");
        }
        let header = |offset| u32_at(blob, offset).map(|value| value as usize);
        let (header_len, type_off, type_len, str_off, str_len) =
            (header(4)?, header(8)?, header(12)?, header(16)?, header(20)?);
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            blob.get(start..start.checked_add(len)?)
        };
        let (Some(mut rest), Some(strings)) = (section(type_off, type_len), section(str_off, str_len)) else {
            return malformed("a section reaches beyond the end");
        };
        let mut types = Vec::with_capacity(rest.len() / 20);
        while !rest.is_empty() {
            let (name, info, size_or_type) = (u32_at(rest, 0)?, u32_at(rest, 4)?, u32_at(rest, 8)?);
            let (kind, flagged) = (((info >> 24) & 0x1f) as u8, info >> 31 != 0);
            let len = tail_len(kind, (info & 0xffff) as usize)?;
            let Some((tail, next)) = rest.get(12..).and_then(|rest| rest.split_at_checked(len)) else {
                return malformed("a type reaches beyond the end");
            };
            types.push(Type { name, kind, flagged, size_or_type, rest: tail });
            rest = next;
        }
        Ok(Self { strings, types })
    }

    /// The id of the function of this name.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(name, KIND_FUNC).map(|(id, _)| id)
    }

    /// The offset in bytes of a field of a structure, found by what is on the way to it: names of members
    /// (anonymous structures and unions are looked into), and elements of arrays as `[1]`.
    pub fn field_offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let (_, mut holder) = self.find(structure, KIND_STRUCT)?;
        let mut bits = 0_u32;
        for name in path {
            let (offset, id) = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(index) => self.element(holder, index.parse().ok()?)?,
                None => self.member(holder, name, 0)?,
            };
            bits = bits.checked_add(offset)?;
            holder = self.resolve(id)?;
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    fn find(&self, name: &str, kind: u8) -> Option<(u32, Type<'a>)> {
        let position = self.types.iter().position(|t| t.kind == kind && self.is_named(t.name, name))?;
        Some((u32::try_from(position).ok()? + 1, self.types[position]))
    }

    /// Bit offset and type id of a member.
    fn member(&self, holder: Type<'a>, name: &str, depth: u8) -> Option<(u32, u32)> {
        // Anonymous members nest a few levels deep; a blob that claims more is no kernel's.
        if depth > 8 || !matches!(holder.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        holder.rest.chunks_exact(12).find_map(|member| {
            let (member_name, id, offset) =
                (u32_at(member, 0).ok()?, u32_at(member, 4).ok()?, u32_at(member, 8).ok()?);
            let offset = if holder.flagged { offset & 0x00ff_ffff } else { offset };
            if self.is_named(member_name, name) {
                return Some((offset, id));
            }
            if !self.is_named(member_name, "") {
                return None;
            }
            let (inner, id) = self.member(self.resolve(id)?, name, depth + 1)?;
            Some((offset.checked_add(inner)?, id))
        })
    }

    /// Bit offset and type id of an element of an array of structures.
    fn element(&self, array: Type<'a>, index: u32) -> Option<(u32, u32)> {
        if array.kind != KIND_ARRAY {
            return None;
        }
        // struct btf_array: type of the elements, type of the index, number.
        let (id, count) = (u32_at(array.rest, 0).ok()?, u32_at(array.rest, 8).ok()?);
        let element = self.resolve(id)?;
        if index >= count || !matches!(element.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        Some((index.checked_mul(element.size_or_type)?.checked_mul(8)?, id))
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type<'a>> {
        for _ in 0..32 {
            let found = *self.types.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
            match found.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = found.size_or_type;
                }
                _ => return Some(found),
            }
        }
        None
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        self.strings
            .get(offset as usize..)
            .and_then(|rest| rest.get(..=name.len()))
            .is_some_and(|found| &found[..name.len()] == name.as_bytes() && found[name.len()] == 0)
    }
}

/// Length of what follows a type's fixed part.
fn tail_len(kind: u8, members: usize) -> Result<usize, Malformed> {
    Ok(match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * members,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * members,
        1..=KIND_MAX => 0,
        _ => return malformed(format!("type of unknown kind {kind}")),
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, Malformed> {
    match bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(bytes) => Ok(u32::from_ne_bytes(*bytes)),
        None => malformed("ends in the middle of a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with `typedef struct { u32 pad; union { struct { u8 state; } tcp; }; } …` in miniature.
    pub(crate) fn blob(types: &[u8], strings: &[u8]) -> Vec<u8> {
        let mut blob = Vec::new();
        blob.extend(MAGIC.to_ne_bytes());
        blob.extend([1, 0]);
        for value in [24, 0, types.len(), types.len(), strings.len()] {
            blob.extend(u32::try_from(value).unwrap().to_ne_bytes());
        }
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    fn entry(name: u32, kind: u8, members: u32, size_or_type: u32, tail: &[u32]) -> Vec<u8> {
        [name, u32::from(kind) << 24 | members, size_or_type]
            .iter()
            .chain(tail)
            .flat_map(|value| value.to_ne_bytes())
            .collect()
    }

    // Offsets:            0 1       9      15   19
    const STRINGS: &[u8] = b"\0nf_conn\0proto\0tcp\0state\0";

    fn nf_conn() -> Vec<u8> {
        let mut types = entry(19, KIND_INT, 0, 1, &[8]); // 1: u8
        types.extend(entry(0, KIND_STRUCT, 1, 4, &[19, 1, 16])); // 2: struct { … u8 state at bit 16 }
        types.extend(entry(0, KIND_UNION, 1, 4, &[15, 2, 0])); // 3: union { struct 2 tcp }
        types.extend(entry(9, KIND_TYPEDEF, 0, 3, &[])); // 4: typedef union 3
        types.extend(entry(0, KIND_STRUCT, 1, 8, &[9, 4, 32])); // 5: struct { typedef 4 proto at bit 32 }
        types.extend(entry(1, KIND_STRUCT, 1, 16, &[0, 5, 64])); // 6: struct nf_conn { struct 5 at bit 64 }
        types.extend(entry(1, KIND_FUNC, 0, 1, &[])); // 7: a function of the same name
        blob(&types, STRINGS)
    }

    #[test]
    fn a_field_is_found_through_anonymous_members_typedefs_and_unions() {
        let blob = nf_conn();
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(btf.field_offset("nf_conn", &["proto", "tcp", "state"]), Some(8 + 4 + 2));
        assert_eq!(btf.field_offset("nf_conn", &["proto", "udp"]), None);
        assert_eq!(btf.field_offset("nf_con", &["proto"]), None);
    }

    #[test]
    fn an_element_of_an_array_is_found_by_its_number() {
        // nf_conn { struct { u8 tcp; u8 state } proto[2] }
        let mut types = entry(19, KIND_INT, 0, 1, &[8]); // 1: u8
        types.extend(entry(0, KIND_STRUCT, 2, 6, &[15, 1, 0, 19, 1, 40])); // 2: struct, 6 bytes long
        types.extend(entry(0, KIND_ARRAY, 0, 0, &[2, 1, 2])); // 3: [struct 2; 2]
        types.extend(entry(1, KIND_STRUCT, 1, 16, &[9, 3, 32])); // 4: struct nf_conn { array 3 at bit 32 }
        let blob = blob(&types, STRINGS);
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(btf.field_offset("nf_conn", &["proto", "[0]", "state"]), Some(4 + 5));
        assert_eq!(btf.field_offset("nf_conn", &["proto", "[1]", "state"]), Some(4 + 6 + 5));
        for path in [["proto", "[2]", "state"], ["proto", "[x]", "state"], ["proto", "tcp", "state"]] {
            assert_eq!(btf.field_offset("nf_conn", &path), None, "{path:?}");
        }
    }

    #[test]
    fn a_function_is_not_taken_for_a_structure_of_the_same_name() {
        let blob = nf_conn();
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(btf.function("nf_conn"), Some(7));
        assert_eq!(btf.function("proto"), None);
    }

    #[test]
    fn a_damaged_blob_is_an_error_and_never_a_panic() {
        let blob = nf_conn();
        for len in 0..blob.len() {
            let _ = Btf::parse(&blob[..len]);
        }
        for position in 0..blob.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut damaged = blob.clone();
                damaged[position] = value;
                if let Ok(btf) = Btf::parse(&damaged) {
                    let _ = btf.function("nf_conn");
                    let _ = btf.field_offset("nf_conn", &["proto", "tcp", "state"]);
                }
            }
        }
    }
}
