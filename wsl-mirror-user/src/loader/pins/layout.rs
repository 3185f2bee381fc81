//! The layout of pinned maps, against the object's.

use std::cmp::Ordering;
use std::fmt;

use anyhow::{Context as _, Result};
use aya::maps::{MapError, MapInfo};
use wsl_mirror_core::abi::LAYOUT;

use super::paths::{DIRECTORY, layout_name, path};
use crate::exit::{Exit, Failure};
use crate::loader::object;

/// Every difference, in words.
pub fn differences(names: impl Iterator<Item = &'static str>) -> Result<Vec<String>> {
    let object = aya_obj::Object::parse(object::pristine()).context("the eBPF object is damaged")?;
    let mut differences = Vec::new();
    for name in names {
        let pinned = MapInfo::from_pin(path(name)).map_err(|error| not_opened(name, error))?;
        let expected = object.maps.get(name).with_context(|| format!("the eBPF object has no map {name}"))?;
        let is = Shape {
            kind: pinned.map_type().map(|kind| kind as u32).unwrap_or_default(),
            key: pinned.key_size(),
            value: pinned.value_size(),
            entries: pinned.max_entries(),
            flags: pinned.map_flags(),
        };
        let should = Shape {
            kind: expected.map_type(),
            key: expected.key_size(),
            value: expected.value_size(),
            entries: expected.max_entries(),
            flags: expected.map_flags(),
        };
        if is != should {
            differences.push(format!("{name} is {is}, expected {should}"));
        }
    }
    Ok(differences)
}

/// A pin of a map's name that cannot be opened as a map: of another layout, unless the kernel would not open
/// anything there (bpffs mounted read-only, no more descriptors, …).
fn not_opened(name: &str, error: MapError) -> anyhow::Error {
    let path = path(name);
    match &error {
        MapError::SyscallError(call) if call.call == "BPF_OBJ_GET" => {
            anyhow::Error::new(error).context(Failure {
                exit: Exit::Kernel,
                message: format!("cannot open the pinned map {}", path.display()),
            })
        }
        _ => unknown_layout(&format!("{} is no map: {error}", path.display())),
    }
}

/// What has to be the same for two maps to be laid out alike.
#[derive(PartialEq, Eq)]
struct Shape {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, value, entries, flags } = self;
        write!(f, "(type {kind}, key {key} B, value {value} B, {entries} entries, flags {flags:#x})")
    }
}

/// Refuses a directory beside that of our layout.
pub fn foreign_layout(name: &str) -> anyhow::Error {
    let number = name.strip_prefix('v').and_then(|number| number.parse::<u32>().ok());
    let message = match number.map(|number| number.cmp(&LAYOUT)) {
        Some(Ordering::Greater) => format!(
            "{DIRECTORY}/{name} was made by a newer release of wsl-mirror than this one (layout {}): use that \
             release, or its `wsl-mirror unload` first",
            layout_name()
        ),
        Some(Ordering::Less) if number != Some(0) => format!(
            "{DIRECTORY}/{name} was made by an older build of wsl-mirror than this one (layout {}): run \
             `wsl-mirror unload` with the build that made it first",
            layout_name()
        ),
        _ => return unknown_layout(&format!("{DIRECTORY}/{name} is none of our layouts")),
    };
    Failure::new(Exit::UnknownLayout, message)
}

/// Refuses pins that are not laid out as ours.
pub fn unknown_layout(what: &str) -> anyhow::Error {
    Failure::new(
        Exit::UnknownLayout,
        format!(
            "the pins are not laid out as this release of wsl-mirror does it: {what}. If no other release is in \
             use, remove them (`rm -r {DIRECTORY}`; with a tcx link that ends the steering) and load again"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::pins::paths::MAPS;

    #[test]
    fn every_map_of_the_object_but_its_constants_is_pinned() {
        let object = aya_obj::Object::parse(object::pristine()).unwrap();
        let mut maps: Vec<_> = object.maps.keys().filter(|name| !name.starts_with('.')).collect();
        maps.sort();
        let mut pinned = MAPS.to_vec();
        pinned.sort_unstable();
        assert_eq!(maps, pinned);
    }

    #[test]
    fn layouts_of_other_builds_are_told_from_unknown_ones() {
        let older = foreign_layout("v1").to_string();
        assert!(older.contains("older build") && older.contains("with the build that made it"), "{older}");
        assert!(foreign_layout("v3").to_string().contains("newer release"));
        assert!(!foreign_layout("v0").to_string().contains("newer release"));
        assert!(!foreign_layout("vista").to_string().contains("newer release"));
    }
}
