//! Frames whose headers are not in the linear part of the socket buffer.
//!
//! `BPF_PROG_TEST_RUN` makes linear buffers (non-linear ones came with Linux 6.19), and so does send(2) on a
//! packet socket for anything that fits a page. A transmit ring does not copy: it hangs the ring's own page
//! into the buffer, behind a linear part as long as the virtio header says, at least an Ethernet header
//! (`tpacket_fill_skb`). veth passes such a buffer on as it is.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::{self, NonNull},
};

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::Namespace;

// linux/if_packet.h, linux/virtio_net.h
const PACKET_TX_RING: i32 = 13;
const PACKET_VNET_HDR: i32 = 15;
const STATUS_AVAILABLE: u32 = 0;
const STATUS_SEND_REQUEST: u32 = 1;
/// `TPACKET_HDRLEN - sizeof(struct sockaddr_ll)`: where a frame lies in its slot.
const DATA: usize = 32;
const VIRTIO_HEADER: usize = 10;
/// One slot, one block, one frame at a time.
const SLOT: usize = 4096;
const LINK_LEVEL_ADDRESS: libc::socklen_t = 20;

/// `struct tpacket_req`.
#[repr(C)]
struct Request {
    block_size: u32,
    blocks: u32,
    frame_size: u32,
    frames: u32,
}

/// A packet socket with a transmit ring.
#[derive(Debug)]
pub struct Ring {
    socket: OwnedFd,
    slot: NonNull<u8>,
}

impl Ring {
    /// Opens it on an interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.enter(|| socket(interface)).context("opening a packet socket")?;
        set(&socket, PACKET_VNET_HDR, &1_i32).context("PACKET_VNET_HDR")?;
        let slot = u32::try_from(SLOT)?;
        let request = Request { block_size: slot, blocks: 1, frame_size: slot, frames: 1 };
        set(&socket, PACKET_TX_RING, &request).context("PACKET_TX_RING")?;
        // SAFETY: a new mapping, wherever the kernel likes, of the ring that was just made.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SLOT,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        ensure!(address != libc::MAP_FAILED, "mapping the ring: {}", io::Error::last_os_error());
        let slot = NonNull::new(address.cast()).context("the ring is mapped at 0")?;
        Ok(Self { socket, slot })
    }

    /// Sends a frame of which only the first `linear` bytes are in the linear part.
    pub fn send(&self, frame: &[u8], linear: usize) -> Result<()> {
        ensure!(DATA + VIRTIO_HEADER + frame.len() <= SLOT, "{} bytes do not fit the slot", frame.len());
        let mut virtio = [0_u8; VIRTIO_HEADER];
        virtio[2..4].copy_from_slice(&u16::try_from(linear)?.to_le_bytes());
        let length = u32::try_from(VIRTIO_HEADER + frame.len())?;
        self.write(DATA, &virtio);
        self.write(DATA + VIRTIO_HEADER, frame);
        // struct tpacket_hdr: an unsigned long of status, then the length. The slot is zero otherwise.
        self.write(8, &length.to_ne_bytes());
        self.write(0, &STATUS_SEND_REQUEST.to_ne_bytes());
        // SAFETY: no buffer is passed: the frame is in the ring.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), ptr::null(), 0, 0) };
        ensure!(sent >= 0, "sending what is in the ring: {}", io::Error::last_os_error());
        ensure!(self.status() == STATUS_AVAILABLE, "the kernel did not take the frame: {:#x}", self.status());
        Ok(())
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SLOT);
        // SAFETY: within the mapping.
        let to = unsafe { self.slot.add(at) };
        // SAFETY: as above; nobody else writes to this page while no frame is under way.
        unsafe { to.copy_from_nonoverlapping(NonNull::from_ref(bytes).cast(), bytes.len()) };
    }

    /// Waits, since the buffer may still be on its way (`tpacket_destruct_skb` gives the slot back).
    fn status(&self) -> u32 {
        let read = || {
            // SAFETY: within the mapping, and aligned; the kernel writes to it at any time.
            unsafe { self.slot.cast::<u32>().read_volatile() }
        };
        for _ in 0..1_000 {
            if read() == STATUS_AVAILABLE {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        read()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and not used again.
        unsafe { libc::munmap(self.slot.as_ptr().cast(), SLOT) };
    }
}

fn socket(interface: &str) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface {interface}");
    // Protocol 0: it receives nothing.
    // SAFETY: plain integers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(socket >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: 0,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: a sockaddr_ll and its length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LINK_LEVEL_ADDRESS) };
    ensure!(bound == 0, "binding to {interface}: {}", io::Error::last_os_error());
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>())?;
    // SAFETY: the value and its length.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, ptr::from_ref(value).cast(), length)
    };
    ensure!(done == 0, "{}", io::Error::last_os_error());
    Ok(())
}
