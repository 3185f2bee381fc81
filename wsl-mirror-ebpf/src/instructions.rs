//! BPF instructions that Rust does not express.
//!
//! On the host the functions do nothing: clippy and editors compile them there, and nothing runs them.

#[cfg(target_arch = "bpf")]
use core::arch::asm;

/// Loads the u64 at `base + OFFSET`.
///
/// One instruction, whose offset the loader replaces: the compiler must neither split the address computation off nor
/// merge loads.
///
/// # Safety
/// The u64 at the offset that the loader writes is readable.
#[inline(always)]
pub unsafe fn load_u64<const OFFSET: u16, T>(base: *const T) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise; no memory is written.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("{value} = *(u64 *)({base} + {offset})",
            value = lateout(reg) value, base = in(reg) base, offset = const OFFSET, options(readonly, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = base;
        value = 0;
    }
    value
}

/// Loads the u32 at `base + OFFSET`; likewise.
///
/// # Safety
/// The u32 at the offset that the loader writes is readable.
#[inline(always)]
pub unsafe fn load_u32<const OFFSET: u16, T>(base: *const T) -> u32 {
    let value: u64;
    // SAFETY: the caller's promise; no memory is written.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("{value} = *(u32 *)({base} + {offset})",
            value = lateout(reg) value, base = in(reg) base, offset = const OFFSET, options(readonly, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = base;
        value = 0;
    }
    value as u32
}

/// Loads the u16 at `base + OFFSET`; likewise.
///
/// # Safety
/// The u16 at the offset that the loader writes is readable.
#[inline(always)]
pub unsafe fn load_u16<const OFFSET: u16, T>(base: *const T) -> u16 {
    let value: u64;
    // SAFETY: the caller's promise; no memory is written.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("{value} = *(u16 *)({base} + {offset})",
            value = lateout(reg) value, base = in(reg) base, offset = const OFFSET, options(readonly, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = base;
        value = 0;
    }
    value as u16
}

/// Loads the byte at `base + OFFSET`; likewise.
///
/// # Safety
/// The byte at the offset that the loader writes is readable.
#[inline(always)]
pub unsafe fn load_u8<const OFFSET: u16, T>(base: *const T) -> u8 {
    let value: u64;
    // SAFETY: the caller's promise; no memory is written.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("{value} = *(u8 *)({base} + {offset})",
            value = lateout(reg) value, base = in(reg) base, offset = const OFFSET, options(readonly, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = base;
        value = 0;
    }
    value as u8
}

/// The number that the loader writes in place of `PLACEHOLDER`.
///
/// One move of a constant, whose number the loader replaces.
#[inline(always)]
pub fn number<const PLACEHOLDER: u32>() -> u64 {
    let value: u64;
    // SAFETY: no memory is touched.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("{value} = {placeholder}", value = lateout(reg) value, placeholder = const PLACEHOLDER,
            options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value = u64::from(PLACEHOLDER);
    }
    value
}

/// Adds 1 atomically. `core` has no atomics for a target without compare-and-swap.
///
/// # Safety
/// The counter is aligned, readable and writable.
#[inline(always)]
pub unsafe fn increment(counter: *mut u64) {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1_u64,
            options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = counter;
}

/// The same number, of which the verifier knows nothing: `unknown` is a number that it does not know, and it takes
/// whatever was mixed with such a number for unknown, even after the number has been taken out again.
#[inline(always)]
pub fn opaque(number: u64, unknown: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let number = {
        let mut same = number;
        // SAFETY: no memory is touched.
        unsafe {
            asm!("{same} ^= {unknown}", "{same} ^= {unknown}", same = inout(reg) same, unknown = in(reg) unknown,
                options(pure, nomem, nostack));
        }
        same
    };
    #[cfg(not(target_arch = "bpf"))]
    let _ = unknown;
    number
}

/// The same number, of which the compiler knows nothing.
///
/// One move: an empty instruction would get a line of its own in the debug information, which the kernel refuses.
#[inline(always)]
pub fn forget(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let number = {
        let same: u64;
        // SAFETY: no memory is touched.
        unsafe {
            asm!("{same} = {number}", same = lateout(reg) same, number = in(reg) number,
                options(pure, nomem, nostack));
        }
        same
    };
    number
}
