//! What is pinned.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::bpffs;
use super::layout::{self, foreign_layout, unknown_layout};
use super::paths::{DIRECTORY, MAPS, NEW, directories, directory, layout_name, path};
use crate::loader::attachments;

/// What is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// Whether [`DIRECTORY`] exists.
    pub has_directory: bool,
    /// Whether [`directory`] exists.
    pub has_layout: bool,
    /// The names in it, leftovers apart.
    pub names: Vec<String>,
    /// What a killed `load` left over.
    pub leftovers: Vec<String>,
}

impl Pins {
    /// Looks at the pin path. Refuses what somebody else could have made, and what we do not know.
    pub fn read() -> Result<Self> {
        let mut pins = Self::default();
        if !bpffs::is_mounted() {
            return Ok(pins);
        }
        bpffs::require_safe(Path::new(bpffs::ROOT))?;
        if !bpffs::has_safe(Path::new(DIRECTORY))? {
            return Ok(pins);
        }
        pins.has_directory = true;
        let layouts = bpffs::list(Path::new(DIRECTORY))?.unwrap_or_default();
        if let Some(foreign) = layouts.iter().find(|name| **name != layout_name()) {
            return Err(foreign_layout(foreign));
        }
        if !bpffs::has_safe(&directory())? {
            return Ok(pins);
        }
        pins.has_layout = true;
        for name in bpffs::list(&directory())?.unwrap_or_default() {
            if name.strip_suffix(NEW).is_some_and(is_known) {
                pins.leftovers.push(name);
            } else if is_known(&name) {
                pins.names.push(name);
            } else {
                return Err(unknown_layout(&format!("{} is none of our pins", path(&name).display())));
            }
        }
        Ok(pins)
    }

    /// Whether nothing of ours is there at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Our directories that are there, outermost first.
    pub fn directories(&self) -> Vec<PathBuf> {
        let exist = [self.has_directory, self.has_layout];
        directories().into_iter().zip(exist).filter_map(|(path, exists)| exists.then_some(path)).collect()
    }

    /// Whether this is pinned.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|pinned| pinned == name)
    }

    /// Fails if a pinned map is not laid out as the object that this binary carries wants it: aya would use it
    /// all the same. Names every difference at once.
    pub fn require_our_layout(&self) -> Result<()> {
        let differences = layout::differences(MAPS.into_iter().filter(|name| self.has(name)))?;
        if differences.is_empty() { Ok(()) } else { Err(unknown_layout(&differences.join("; "))) }
    }
}

fn is_known(name: &str) -> bool {
    MAPS.contains(&name) || attachments::pins().any(|pin| pin == name)
}
