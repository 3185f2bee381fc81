//! The pins: where they are, and what is there.

pub mod bpffs;

use std::ffi::CString;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fmt, io, mem};

use anyhow::{Context as _, Result};
use aya::maps::{MapError, MapInfo};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use wsl_mirror_core::abi::LAYOUT;

use super::object;
use super::owners::SocketHook;
use crate::exit::{Exit, Failure};

/// Our directory in bpffs.
pub const DIRECTORY: &str = "/sys/fs/bpf/wsl-mirror";
/// The program that runs.
pub const PROGRAM: &str = "program";
/// The link that holds it on the interface (tcx only).
pub const LINK: &str = "link";
/// A pin that is about to replace another one; left over if we were killed in between. bpffs wants no dots in
/// names (`bpf_lookup`).
const NEW: &str = "_new";

/// The maps that are pinned, each under its own name.
pub const MAPS: [&str; 12] = [
    "SETTINGS",
    "PORT_POLICY",
    "OWNERS",
    "SOCKET_OWNER",
    "SOCKET_DELIVERY",
    "PORT_DELIVERY",
    "FRAGMENTS",
    "VERDICTS",
    "PORT_STATS",
    "PORT_PACKETS",
    "FLOWS",
    "AYA_LOGS",
];

/// The directory of this release's layout.
pub fn directory() -> PathBuf {
    Path::new(DIRECTORY).join(layout_name())
}

fn layout_name() -> String {
    format!("v{LAYOUT}")
}

/// The path of a pin.
pub fn path(name: &str) -> PathBuf {
    directory().join(name)
}

/// The path under which a pin's successor is made.
pub fn path_of_new(name: &str) -> PathBuf {
    directory().join(format!("{name}{NEW}"))
}

/// Opens what is pinned there, whatever it is; aya does it too, but lets nobody have the descriptor of a link.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a value of this union, and means nothing.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the kernel reads the attributes, which are as long as we say, and the path, which outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_OBJ_GET, &raw const attributes, size_of::<bpf_attr>())
    };
    match i32::try_from(fd) {
        // SAFETY: it is a new descriptor, and nobody else's.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

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

    /// Whether this is pinned.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|pinned| pinned == name)
    }

    /// Fails if a pinned map is not laid out as the object that this binary carries wants it: aya would use it
    /// all the same. Names every difference at once.
    pub fn require_our_layout(&self) -> Result<()> {
        let object = aya_obj::Object::parse(object::pristine()).context("the eBPF object is damaged")?;
        let mut differences = Vec::new();
        for name in MAPS.iter().filter(|name| self.has(name)) {
            let pinned = MapInfo::from_pin(path(name)).map_err(|error| not_opened(name, error))?;
            let wanted =
                object.maps.get(*name).with_context(|| format!("the eBPF object has no map {name}"))?;
            let is = Shape {
                kind: pinned.map_type().map(|kind| kind as u32).unwrap_or_default(),
                key: pinned.key_size(),
                value: pinned.value_size(),
                entries: pinned.max_entries(),
                flags: pinned.map_flags(),
            };
            let should = Shape {
                kind: wanted.map_type(),
                key: wanted.key_size(),
                value: wanted.value_size(),
                entries: wanted.max_entries(),
                flags: wanted.map_flags(),
            };
            if is != should {
                differences.push(format!("{name} is {is}, expected {should}"));
            }
        }
        if differences.is_empty() { Ok(()) } else { Err(unknown_layout(&differences.join("; "))) }
    }
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

fn is_known(name: &str) -> bool {
    name == PROGRAM || name == LINK || SocketHook::is_pin(name) || MAPS.contains(&name)
}

fn foreign_layout(name: &str) -> anyhow::Error {
    let newer = name.strip_prefix('v').and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > LAYOUT);
    if newer {
        Failure::new(
            Exit::UnknownLayout,
            format!(
                "{DIRECTORY}/{name} was made by a newer release of wsl-mirror than this one (layout {}): use that \
                 release, or its `wsl-mirror unload` first",
                layout_name()
            ),
        )
    } else {
        unknown_layout(&format!("{DIRECTORY}/{name} is none of our layouts"))
    }
}

fn unknown_layout(what: &str) -> anyhow::Error {
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

    #[test]
    fn a_newer_layout_is_told_from_an_unknown_one() {
        assert!(foreign_layout("v2").to_string().contains("newer release"));
        assert!(!foreign_layout("v0").to_string().contains("newer release"));
        assert!(!foreign_layout("vista").to_string().contains("newer release"));
    }

    #[test]
    fn every_map_of_the_object_but_its_constants_is_pinned() {
        let object = aya_obj::Object::parse(object::pristine()).unwrap();
        let mut maps: Vec<_> = object.maps.keys().filter(|name| !name.starts_with('.')).collect();
        maps.sort();
        let mut pinned = MAPS.to_vec();
        pinned.sort_unstable();
        assert_eq!(maps, pinned);
    }
}
