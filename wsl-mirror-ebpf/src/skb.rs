//! The packet's bytes and metadata: [`Skb`].

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::cty::c_void;
use aya_ebpf::programs::TcContext;
use wsl_mirror_core::packet::{Bytes, Frame};

use crate::instructions;

/// `skb->pkt_type` of a frame whose MAC address is the interface's (`include/uapi/linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// The socket buffer.
pub struct Skb {
    ctx: TcContext,
}

impl Skb {
    #[inline(always)]
    pub const fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    /// The packet of a function of the program.
    #[inline(always)]
    pub const fn of(context: *mut __sk_buff) -> Self {
        Self::new(TcContext::new(context))
    }

    /// The context, for a function of the program.
    #[inline(always)]
    pub const fn raw(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    #[inline(always)]
    pub const fn context(&self) -> &TcContext {
        &self.ctx
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }

    /// Whether direct access reaches the whole frame.
    #[inline(always)]
    pub fn is_linear(&self) -> bool {
        self.ctx.data_end() - self.ctx.data() >= self.len()
    }

    /// Whether the first `len` bytes are directly accessible.
    #[inline(always)]
    pub fn is_readable(&self, len: usize) -> bool {
        self.ctx.data() + len <= self.ctx.data_end()
    }

    /// Makes the first `len` bytes, or as many as there are, directly accessible.
    #[inline(always)]
    pub fn pull(&self, len: usize) -> Result<(), i32> {
        let len = if len < self.len() { len } else { self.len() };
        self.ctx.skb.pull_data(len as u32).map_err(|error| error as i32)
    }

    /// Index of the interface that the packet came in on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).ifindex }
    }

    /// The same number, of which the verifier knows no more than that it has 32 bits.
    #[inline(always)]
    pub fn opaque(&self, number: u64) -> u64 {
        instructions::opaque(number, u64::from(self.ctx.len()))
    }

    /// Sets these bits of `skb->mark`, and no other.
    #[inline(always)]
    pub fn add_mark(&mut self, bits: u32) {
        // SAFETY: the context is valid while the program runs, and `mark` is writable for tc programs.
        unsafe { (*self.raw()).mark |= bits }
    }
}

impl Frame for Skb {
    type Bytes = Pointer;

    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<Pointer> {
        let start = self.ctx.data() + offset;
        (start + len <= self.ctx.data_end()).then_some(Pointer(start as *const u8))
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.ctx.len() as usize
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    #[inline(always)]
    fn is_to_us(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).pkt_type == PACKET_HOST }
    }
}

/// Packet bytes that were compared with `data_end`: the verifier refuses any access beyond what was compared.
#[derive(Clone, Copy)]
pub struct Pointer(*const u8);

impl Pointer {
    /// The address of the byte at `offset`.
    #[inline(always)]
    const fn add(self, offset: usize) -> *const u8 {
        // SAFETY: within the bounds that `Skb::at` compared, or the verifier refuses the program.
        unsafe { self.0.add(offset) }
    }
}

// Headers are 2-aligned in every skb (NET_IP_ALIGN or not). x86 and arm64 load unaligned anyway; where a machine cannot,
// the verifier refuses the program.
#[expect(clippy::cast_ptr_alignment, reason = "of `read_unaligned` the compiler makes one load a byte")]
impl Bytes for Pointer {
    #[inline(always)]
    fn u8(&self, offset: usize) -> u8 {
        // SAFETY: as for `Pointer::add`.
        unsafe { *self.add(offset) }
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> u16 {
        // SAFETY: as for `Pointer::add`.
        u16::from_be(unsafe { *self.add(offset).cast::<u16>() })
    }

    #[inline(always)]
    fn four(&self, offset: usize) -> [u8; 4] {
        // SAFETY: as for `Pointer::add`.
        unsafe { *self.add(offset).cast::<u32>() }.to_ne_bytes()
    }
}
