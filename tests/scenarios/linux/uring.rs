//! `io_uring`'s connect meets the same hooks.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::SockAddr;
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{checks::OrPanic as _, tcp};

use crate::world::{World, assert_container_over, published};

#[test]
fn a_connect_by_io_uring_reaches_the_container() {
    let world = World::loaded(Service::Holder);
    let ring = match Ring::new() {
        Ok(ring) => ring,
        Err(error) => return println!("skipped: this kernel makes no io_uring: {error}"),
    };
    let socket = world.clients.tcp().or_panic();
    socket.set_read_timeout(Some(tcp::limit())).or_panic();
    assert_eq!(ring.connect(socket.as_raw_fd(), &SockAddr::from(published())).or_panic(), 0, "the result");
    assert_container_over(&mut TcpStream::from(socket), published());
}

/// `IORING_OP_CONNECT`.
const CONNECT: u8 = 16;
/// `IORING_OFF_SQES`.
const ENTRIES: i64 = 0x1000_0000;
/// `IORING_OFF_CQ_RING`.
const COMPLETIONS: i64 = 0x0800_0000;
/// `IORING_ENTER_GETEVENTS`.
const GET_EVENTS: u32 = 1;
const PAGE: usize = 4096;

/// `struct io_uring_params`: the offsets of the submission queue from 40 on, those of the completion queue from 80 on.
#[repr(C)]
struct Parameters {
    head: [u32; 10],
    submission: [u32; 10],
    completion: [u32; 10],
}

/// A ring for one entry.
struct Ring {
    descriptor: OwnedFd,
    submission: *mut u32,
    completion: *mut u32,
    entries: *mut u32,
    parameters: Parameters,
}

impl Ring {
    fn new() -> io::Result<Self> {
        let mut parameters = Parameters { head: [0; 10], submission: [0; 10], completion: [0; 10] };
        // SAFETY: the pointer is to the kernel's structure.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
        let ring = RawFd::try_from(ring).map_err(io::Error::other)?;
        if ring < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it.
        let ring = unsafe { OwnedFd::from_raw_fd(ring) };
        let map = |offset| {
            // SAFETY: a new mapping of the ring; all three are smaller than a page for one entry.
            let address = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    PAGE,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_POPULATE,
                    ring.as_raw_fd(),
                    offset,
                )
            };
            if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
        };
        let (submission, completion, entries) = (map(0)?, map(COMPLETIONS)?, map(ENTRIES)?);
        Ok(Self { descriptor: ring, submission, completion, entries, parameters })
    }

    /// Connects; gives the call's result.
    fn connect(&self, socket: RawFd, to: &SockAddr) -> io::Result<i32> {
        let mut entry = [0_u8; 64];
        entry[0] = CONNECT;
        entry[4..8].copy_from_slice(&socket.to_ne_bytes());
        // The length stands where other calls have an offset.
        entry[8..16].copy_from_slice(&u64::from(to.len()).to_ne_bytes());
        entry[16..24].copy_from_slice(&(to.as_ptr() as u64).to_ne_bytes());
        // SAFETY: the first entry of the queue is ours until it is submitted.
        unsafe { ptr::copy_nonoverlapping(entry.as_ptr(), self.entries.cast(), entry.len()) };
        // The array of indices is full of zeros: our entry's.
        // SAFETY: within the mapping; offsets are in bytes.
        let tail = unsafe { self.submission.add(self.parameters.submission[1] as usize / 4) };
        // SAFETY: `tail` of the submission queue, which both sides use as an atomic number.
        let tail = unsafe { AtomicU32::from_ptr(tail) };
        tail.fetch_add(1, Ordering::Release);
        // SAFETY: numbers and a null pointer.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.descriptor.as_raw_fd(),
                1,
                1,
                GET_EVENTS,
                ptr::null::<libc::c_void>(),
                0,
            )
        };
        if entered != 1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: within the mapping: `cqes` of the completion queue. Its result follows 8 bytes of ours.
        let result = unsafe { self.completion.add(self.parameters.completion[5] as usize / 4 + 2) };
        // SAFETY: the kernel has said that one is there.
        Ok(unsafe { result.read_volatile() }.cast_signed())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for mapping in [self.submission, self.completion, self.entries] {
            // SAFETY: our own mapping, which nobody refers to any more.
            unsafe { libc::munmap(mapping.cast(), PAGE) };
        }
    }
}
