//! Services that systemd confines to localhost (`IPAddressAllow=localhost`, `IPAddressDeny=any`): filters on the service's
//! cgroup that see the container's address.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use socket2::SockAddr;
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    checks::{OrPanic as _, ok},
    clients::Clients,
    loopback,
    published::machine::PORT,
};

use crate::world::{HANG, World, ask, assert_from_first, assert_from_proxy, published, who_at};

/// systemd's filters drop what a translated client sends. The way out is an exempt port, or the container's network in
/// `IPAddressAllow`.
#[test]
fn a_service_confined_to_localhost_needs_an_exempt_port() {
    let world = World::new(Service::Proxy);
    let lab = world.lab();
    let confined = Clients::in_group(lab, lab.guest(), "confined").or_panic();
    let filters =
        [ON_INGRESS, ON_EGRESS].map(|hook| confine(&lab.group("confined").or_panic(), hook).or_panic());
    assert_from_proxy(who_at(&confined, loopback(PORT)), "without wsl-mirror");

    world.load();
    let socket = confined.tcp().or_panic();
    let connected = socket.connect_timeout(&SockAddr::from(published()), HANG);
    assert_eq!(connected.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut), "TCP");
    let sent = ask(&confined.udp().or_panic(), published());
    assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::PermissionDenied), "UDP");
    // Others are not confined.
    assert_from_first(world.who(PORT));

    ok(lab, &["exempt", "add", "8080"]);
    assert_from_proxy(who_at(&confined, loopback(PORT)), "an exempt port");
    let (who, _) = ask(&confined.udp().or_panic(), published()).or_panic();
    assert_from_proxy::<()>(Ok(who), "an exempt port");
    ok(lab, &["exempt", "del", "8080"]);
    drop(filters);
    // The kernel detaches a link a moment after its descriptor is closed.
    std::thread::sleep(Duration::from_millis(50));
    assert_from_first(who_at(&confined, loopback(PORT)));
}

/// `BPF_CGROUP_INET_INGRESS` and `BPF_CGROUP_INET_EGRESS`.
const ON_INGRESS: u32 = 0;
const ON_EGRESS: u32 = 1;
/// `BPF_PROG_TYPE_CGROUP_SKB`.
const CGROUP_SKB: u32 = 8;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// Where an IPv4 header has its source and its destination.
const SOURCE: u64 = 12;
const DESTINATION: u64 = 16;
const LICENSE: &CStr = c"GPL";

/// Lets packets of this cgroup pass to and from 127.0.0.0/8 alone, until the link is dropped.
fn confine(group: &Path, hook: u32) -> io::Result<OwnedFd> {
    let offset = if hook == ON_EGRESS { DESTINATION } else { SOURCE };
    let instructions: [u64; 10] = [
        // The helper's arguments: the packet is in r1; r2 is the offset, r3 a place on the stack, r4 the length.
        0xb7 | 2 << 8 | offset << 32,
        0xbf | 3 << 8 | 10 << 12,
        0x07 | 3 << 8 | 0xffff_fff8 << 32,
        0xb7 | 4 << 8 | 4 << 32,
        // bpf_skb_load_bytes
        0x85 | 26 << 32,
        // r1 is the first byte of the address. r0 is 1, and 0 unless that is 127.
        0x71 | 1 << 8 | 10 << 12 | 0xfff8 << 16,
        0xb7 | 1 << 32,
        0x15 | 1 << 8 | 1 << 16 | 127 << 32,
        0xb7,
        0x95,
    ];

    let mut load = [0_u64; 16];
    load[0] = u64::from(CGROUP_SKB) | (instructions.len() as u64) << 32;
    load[1] = instructions.as_ptr() as u64;
    load[2] = LICENSE.as_ptr() as u64;
    // `expected_attach_type`
    load[8] = u64::from(hook) << 32;
    let program = bpf(PROG_LOAD, &load)?;
    let group = File::open(group)?;
    let link = [descriptor(&program) | descriptor(&group) << 32, u64::from(hook), 0, 0];
    bpf(LINK_CREATE, &link)
}

fn descriptor(of: &impl std::os::fd::AsRawFd) -> u64 {
    u64::from(of.as_raw_fd().cast_unsigned())
}

/// bpf(2), of a call that gives a descriptor.
fn bpf(call: libc::c_int, attributes: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are the call's, with their length; what they point to outlives it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, call, attributes.as_ptr(), size_of_val(attributes)) };
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
