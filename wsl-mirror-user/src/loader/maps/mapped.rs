//! Access to an array through memory: programs and user space write fields of one element at the same time.

use std::ptr::{self, NonNull};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::AsFd as _;
use wsl_mirror_core::abi::PORTS;

use super::typed::Access;
use crate::exit::{Exit, OrExit as _};

/// An element of a mapped array.
pub trait Element: Pod {
    /// What user space may do with it.
    const PROTECTION: ProtFlags;
}

/// An array with an element for each port, mapped into memory.
pub struct Mapped<T> {
    start: NonNull<T>,
    /// The mapping is of it.
    _map: MapData,
}

impl<T> Mapped<T> {
    const LENGTH: usize = PORTS * size_of::<T>();

    /// A pointer to an element. Nobody may make a reference to the element: others write to it.
    pub(super) fn element(&self, index: usize) -> NonNull<T> {
        assert!(index < PORTS, "no port has the index {index}");
        // SAFETY: the index lies within the mapping, which is page-aligned.
        unsafe { self.start.add(index) }
    }
}

impl<T: Element> Access for Mapped<T> {
    fn new(name: &'static str, map: MapData) -> Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            mmap(ptr::null_mut(), Self::LENGTH, T::PROTECTION, MapFlags::SHARED, map.fd().as_fd(), 0)
        }
        .or_exit(Exit::Kernel, || format!("cannot map {name} into memory"))?;
        let start = NonNull::new(start.cast()).with_context(|| format!("{name} was mapped nowhere"))?;
        Ok(Self { start, _map: map })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), Self::LENGTH) };
    }
}
