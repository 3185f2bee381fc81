//! The three calls of bpf(2) that the measurement needs, without anything between it and the kernel.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_GET: i32 = 7;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// A program of type `sched_cls`.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[repr(C)]
struct GetAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct __sk_buff` as far as it is given: the kernel takes the rest for zeros.
#[repr(C)]
#[derive(Default)]
struct Context {
    before: [u32; 10],
    ifindex: u32,
}

impl Program {
    /// `r0 = -1; exit`: what every classifier costs that does nothing, `TCX_NEXT` being its verdict.
    pub(super) fn empty() -> Result<Self> {
        let instructions = [
            // BPF_ALU64 | BPF_MOV | BPF_K
            Instruction { code: 0xb7, registers: 0, offset: 0, immediate: -1 },
            // BPF_JMP | BPF_EXIT
            Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
        ];
        let mut attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: 2,
            insns: instructions.as_ptr().addr() as u64,
            license: c"GPL".as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
        };
        // SAFETY: the structure is the command's, and what it points to outlives the call.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.context("loading an empty program")?;
        Ok(owned(fd))
    }

    /// One that is pinned; to be called where that bpffs is mounted.
    pub(super) fn pinned(path: &str) -> Result<Self> {
        let name = CString::new(path).context("a path with a NUL byte")?;
        let mut attr = GetAttr { pathname: name.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 };
        // SAFETY: the structure is the command's, and the path outlives the call.
        let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }.with_context(|| format!("opening {path}"))?;
        Ok(owned(fd))
    }

    /// Nanoseconds per run, of `repeats` runs on a frame that came in on an interface of the calling thread's
    /// network namespace.
    ///
    /// The thread's CPU time is taken, not what the kernel reports: that is whole nanoseconds, too coarse for
    /// a limit of three of them. The rest of the system call is a few microseconds, nothing per run.
    pub(super) fn time(&self, frame: &[u8], ifindex: u32, repeats: u32) -> Result<f64> {
        let context = Context { ifindex, ..Context::default() };
        let mut attr = TestAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr().addr() as u64,
            repeat: repeats,
            ctx_size_in: u32::try_from(size_of::<Context>())?,
            ctx_in: (&raw const context).addr() as u64,
            ..TestAttr::default()
        };
        let started = cpu_time();
        // SAFETY: the structure is the command's, and what it points to outlives the call.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }.context("BPF_PROG_TEST_RUN")?;
        let took = cpu_time() - started;
        anyhow::ensure!(attr.retval == u32::MAX, "the program returned {:#x}, not TCX_NEXT", attr.retval);
        Ok(took / f64::from(repeats))
    }
}

/// Nanoseconds of CPU that the calling thread has had.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "exact for the first hundred days of CPU time")]
    let nanoseconds = (time.tv_sec * 1_000_000_000 + time.tv_nsec) as f64;
    nanoseconds
}

/// bpf(2).
///
/// # Safety
/// `attr` is the structure that `command` reads, and its pointers are valid for the lengths beside them.
unsafe fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: as the caller promises; the kernel reads and writes no more than the size that it is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: i32) -> Program {
    // SAFETY: the kernel has just made this descriptor for us.
    Program(unsafe { OwnedFd::from_raw_fd(fd) })
}
