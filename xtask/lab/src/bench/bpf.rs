//! The calls of bpf(2) that the measurement needs, without anything between it and the kernel.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_GET: i32 = 7;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ENABLE_STATS: i32 = 32;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// With no relative: the last on the hook.
const BPF_F_AFTER: u32 = 1 << 4;

/// A program of type `sched_cls`.
#[derive(Debug)]
pub(super) struct Program {
    fd: OwnedFd,
    /// The array that its tail call reads: without a descriptor the kernel empties it (`prog_array_map_clear`).
    _tail: Option<OwnedFd>,
}

/// An attachment that ends when this is dropped.
#[derive(Debug)]
pub(super) struct Link(#[expect(dead_code, reason = "the descriptor is the attachment")] OwnedFd);

/// The kernel counts the runs of all programs, and their time, for as long as this lives.
#[derive(Debug)]
pub(super) struct Statistics(#[expect(dead_code, reason = "the descriptor is the switch")] OwnedFd);

/// A side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// Runs of a program, and the nanoseconds that they took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) count: u64,
    pub(super) nanoseconds: u64,
}

impl Runs {
    /// Nanoseconds of each run since `before`; none if it did not run.
    pub(super) fn each_since(self, before: Self) -> Option<f64> {
        let count = self.count - before.count;
        #[expect(clippy::cast_precision_loss, reason = "exact for the first hundred days")]
        let each = |nanoseconds: u64| nanoseconds as f64 / count as f64;
        (count > 0).then(|| each(self.nanoseconds - before.nanoseconds))
    }
}

/// An address in a frame that the program rewrites. Each run of a measurement finds it as it was at first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restored {
    /// Offset in the frame, in bytes.
    pub(super) offset: u16,
    pub(super) address: [u8; 4],
}

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, registers: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers, offset, immediate }
    }
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
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct StatsAttr {
    /// 0: `BPF_STATS_RUN_TIME`.
    kind: u32,
}

/// `struct bpf_prog_info` up to `run_cnt`.
#[repr(C)]
struct ProgramInfo {
    before: [u64; 24],
    run_time_ns: u64,
    run_cnt: u64,
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
        Self::load(&[
            // r0 = -1; exit
            Instruction::new(0xb7, 0, 0, -1),
            Instruction::new(0x95, 0, 0, 0),
        ])
        .context("loading an empty program")
    }

    /// One that puts an address back into the frame and then goes on to `program` by a tail call.
    ///
    /// `BPF_PROG_TEST_RUN` repeats a program on one frame, which a carried packet's run changes.
    pub(super) fn restoring(restored: Restored, program: &Self) -> Result<Self> {
        let array = array_of(program)?;
        let offset = i16::try_from(restored.offset).context("an offset in a frame")?;
        let end = i32::from(restored.offset) + 4;
        Self::load(&[
            // r2 = ctx->data; r3 = ctx->data_end
            Instruction::new(0x61, 0x12, 76, 0),
            Instruction::new(0x61, 0x13, 80, 0),
            // if r2 + end > r3 goto the last two
            Instruction::new(0xbf, 0x24, 0, 0),
            Instruction::new(0x07, 0x04, 0, end),
            Instruction::new(0x2d, 0x34, 5, 0),
            // *(u32 *)(r2 + offset) = address
            Instruction::new(0x62, 0x02, offset, i32::from_ne_bytes(restored.address)),
            // r2 = array; r3 = 0; tail call
            Instruction::new(0x18, 0x12, 0, array.as_raw_fd()),
            Instruction::new(0, 0, 0, 0),
            Instruction::new(0xb7, 0x03, 0, 0),
            Instruction::new(0x85, 0, 0, 12),
            // r0 = 0, which no measured program returns; exit
            Instruction::new(0xb7, 0, 0, 0),
            Instruction::new(0x95, 0, 0, 0),
        ])
        .map(|restoring| Self { _tail: Some(array), ..restoring })
        .context("loading a program that restores a frame")
    }

    fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let mut attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
            insns: instructions.as_ptr().addr() as u64,
            license: c"GPL".as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
        };
        // SAFETY: the structure is the command's, and what it points to outlives the call.
        unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.map(|fd| Self { fd: owned(fd), _tail: None })
    }

    /// One that is pinned; to be called where that bpffs is mounted.
    pub(super) fn pinned(path: &str) -> Result<Self> {
        let name = CString::new(path).context("a path with a NUL byte")?;
        let mut attr = GetAttr { pathname: name.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 };
        // SAFETY: the structure is the command's, and the path outlives the call.
        let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }.with_context(|| format!("opening {path}"))?;
        Ok(Self { fd: owned(fd), _tail: None })
    }

    /// Attaches it as the last on a hook of an interface of the calling thread's network namespace (tcx, Linux 6.6).
    pub(super) fn attach(&self, ifindex: u32, direction: Direction) -> Result<Link> {
        let mut attr = LinkAttr {
            prog_fd: self.fd.as_raw_fd().cast_unsigned(),
            target_ifindex: ifindex,
            attach_type: match direction {
                Direction::Ingress => BPF_TCX_INGRESS,
                Direction::Egress => BPF_TCX_EGRESS,
            },
            flags: BPF_F_AFTER,
            relative: 0,
            padding: 0,
            expected_revision: 0,
        };
        // SAFETY: the structure is the command's.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }
            .with_context(|| format!("attaching by tcx to {direction:?}"))?;
        Ok(Link(owned(fd)))
    }

    /// What the kernel has counted of it while a [`Statistics`] lived.
    pub(super) fn runs(&self) -> Result<Runs> {
        let mut info = ProgramInfo { before: [0; 24], run_time_ns: 0, run_cnt: 0 };
        let mut attr = InfoAttr {
            bpf_fd: self.fd.as_raw_fd().cast_unsigned(),
            info_len: u32::try_from(size_of::<ProgramInfo>())?,
            info: (&raw mut info).addr() as u64,
        };
        // SAFETY: the structure is the command's; the kernel writes no more than the length beside the pointer.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.context("BPF_OBJ_GET_INFO_BY_FD")?;
        Ok(Runs { count: info.run_cnt, nanoseconds: info.run_time_ns })
    }

    /// Nanoseconds per run, of `repeats` runs on a frame that came in on an interface of the calling thread's
    /// network namespace.
    ///
    /// The thread's CPU time is taken, not what the kernel reports: that is whole nanoseconds, too coarse for
    /// a limit of three of them. The rest of the system call is a few microseconds, nothing per run.
    pub(super) fn time(&self, frame: &[u8], ifindex: u32, repeats: u32) -> Result<f64> {
        let context = Context { ifindex, ..Context::default() };
        let mut attr = TestAttr {
            prog_fd: self.fd.as_raw_fd().cast_unsigned(),
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

/// An array of programs whose only one this is.
fn array_of(program: &Program) -> Result<OwnedFd> {
    let mut attr = MapAttr { map_type: BPF_MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: the structure is the command's.
    let array = owned(unsafe { bpf(BPF_MAP_CREATE, &mut attr) }.context("creating an array of programs")?);
    let (key, value) = (0_u32, program.fd.as_raw_fd());
    let mut attr = ElementAttr {
        map_fd: array.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const key).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: the structure is the command's, and key and value outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.context("putting a program into an array")?;
    Ok(array)
}

impl Statistics {
    /// Switches them on.
    pub(super) fn enable() -> Result<Self> {
        let mut attr = StatsAttr { kind: 0 };
        // SAFETY: the structure is the command's.
        let fd = unsafe { bpf(BPF_ENABLE_STATS, &mut attr) }.context("BPF_ENABLE_STATS")?;
        Ok(Self(owned(fd)))
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
