//! Hooks for Linux' own clients. Those of UDP are on the cgroup only while a UDP port has a container.

use std::{fs, net::Ipv4Addr, path::Path};

use aya::programs::links::{FdLink, PinnedLink};
use wsl_mirror_lab::{
    Lab, SCRATCH, Sockets,
    checks::{OrPanic as _, load, load_with, ok, sh, status, wrapped},
    lab_sockets, pins,
    sockets::{PROXY, proxy_arguments},
};

use crate::faults::injected;

const HOOKS: [&str; 3] = ["link_recvmsg4", "link_recvmsg6", "link_sendmsg4"];
/// Nobody answers there.
const CONTAINER: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 29, 0, 2), 80);
const TARGET: &str = "172.29.0.2:80 172.29.0.1 proxy open";

/// A lab with the bridge of [`CONTAINER`].
#[track_caller]
fn bridged() -> Lab {
    let lab = Lab::builder().build().or_panic();
    sh(&lab, "ip link add br9 type bridge; ip addr add 172.29.0.1/16 dev br9; ip link set br9 up");
    lab
}

/// A docker-proxy with a UDP port, socket `u`.
#[track_caller]
fn udp_proxy(lab: &Lab) -> Sockets {
    let guest = |program: &str| lab.guest().command(program);
    let mut proxy = lab_sockets!(lab, command guest, PROXY, proxy_arguments("udp", 8082, CONTAINER));
    proxy.tell("bind u udp 0.0.0.0:8082").or_panic();
    proxy
}

/// Link and program of each of UDP's hooks that is attached.
#[track_caller]
fn udp_hooks(lab: &Lab) -> Vec<[u32; 2]> {
    lab.guest().enter(|| {
        let pinned = HOOKS.map(pins::path).into_iter().filter(|path| Path::new(path).exists());
        let info = |path| FdLink::from(PinnedLink::from_pin(path).or_panic()).info().or_panic();
        pinned.map(info).map(|info| [info.id(), info.program_id()]).collect()
    })
}

#[test]
fn hooks_of_udp_come_and_go_with_udp_targets() {
    let lab = bridged();
    let guest = |program: &str| lab.guest().command(program);
    let mut tcp = lab_sockets!(&lab, command guest, PROXY, proxy_arguments("tcp", 8080, CONTAINER));
    tcp.serve("0.0.0.0:8080").or_panic();
    let shown = || status(&lab).0["linux_clients"]["udp_hooks"].clone();
    load(&lab);
    assert_eq!(tcp.tell("target 0.0.0.0:8080").or_panic(), TARGET);
    assert_eq!((udp_hooks(&lab), shown()), (vec![], false.into()));
    let mut udp = udp_proxy(&lab);
    load(&lab);
    let first = udp_hooks(&lab);
    assert_eq!((first.len(), shown()), (HOOKS.len(), true.into()));
    assert_eq!(udp.tell("target u").or_panic(), TARGET);

    // The new programs are in the same links: there is no moment without them, and none with both.
    load(&lab);
    let second = udp_hooks(&lab);
    let parts = |hooks: &[[u32; 2]], part: usize| hooks.iter().map(|hook| hook[part]).collect::<Vec<_>>();
    assert_eq!(parts(&second, 0), parts(&first, 0));
    let old = parts(&first, 1);
    assert!(parts(&second, 1).iter().all(|program| !old.contains(program)), "{first:?} {second:?}");

    udp.tell("close u").or_panic();
    load(&lab);
    assert_eq!((udp_hooks(&lab), shown()), (vec![], false.into()));
}

/// Else an unconnected datagram that is sent in between would miss them.
#[test]
fn hooks_of_udp_are_attached_before_a_target_is_written() {
    let lab = bridged();
    let mut udp = udp_proxy(&lab);
    let trace = format!("{SCRATCH}/trace");
    wrapped(&lab, &["strace", "-qq", "-o", &trace, "-e", "trace=bpf"], &["load"]).success().or_panic();
    assert_eq!(udp.tell("target u").or_panic(), TARGET);
    let trace = lab.guest().enter(|| fs::read_to_string(&trace)).or_panic();
    let calls: Vec<&str> = trace.lines().collect();
    let last = |words: [&str; 2]| {
        calls.iter().rposition(|call| words.iter().all(|word| call.contains(word))).expect(words[0])
    };
    // A load writes targets after everything else that is in maps.
    let written = last(["BPF_MAP_UPDATE_ELEM", "flags=BPF_ANY"]);
    for hook in HOOKS {
        assert!(last(["BPF_OBJ_PIN", hook]) < written, "{hook} comes late:\n{trace}");
    }
}

#[test]
fn a_hook_of_udp_that_was_detached_is_attached_anew() {
    let lab = bridged();
    let _udp = udp_proxy(&lab);
    load(&lab);
    let [link, _] = udp_hooks(&lab)[0];
    lab.guest().run("bpftool", ["link", "detach", "id", &link.to_string()]).or_panic();
    assert_eq!(status(&lab).0["linux_clients"]["udp_hooks"], false);
    load(&lab);
    assert_ne!(udp_hooks(&lab)[0][0], link);
    assert_eq!(status(&lab).0["linux_clients"]["udp_hooks"], true);
    // Nothing of it is left over.
    ok(&lab, &["unload"]);
    assert_eq!(udp_hooks(&lab), Vec::<[u32; 2]>::new());
}

/// The last thing that a load does is to rename the pin of the program on ingress.
#[test]
fn a_load_that_fails_puts_hooks_of_udp_back() {
    let lab = bridged();
    let mut udp = udp_proxy(&lab);
    load(&lab);
    let before = udp_hooks(&lab);
    let fails = || {
        for (when, words) in [(1, "could not pin wsl_mirror_rm4"), (HOOKS.len() + 2, "rename that pin")] {
            let (said, _) = injected(&lab, "rename", "error=ENOMEM", when, &["load"]);
            assert!(!said.status.success() && said.stderr.contains(words), "{said}");
            assert_eq!(udp_hooks(&lab), before);
            let pins = sh(&lab, &format!("ls {}", pins::directory()));
            assert!(!pins.contains("_new"), "{pins}");
        }
    };
    fails();
    udp.tell("close u").or_panic();
    fails();
    load(&lab);
    assert_eq!(udp_hooks(&lab), Vec::<[u32; 2]>::new());
}

#[test]
fn switched_off_clients_take_hooks_of_udp_along() {
    let lab = bridged();
    let mut udp = udp_proxy(&lab);
    load(&lab);
    assert_eq!(udp_hooks(&lab).len(), HOOKS.len());
    load_with(&lab, "linux_clients = \"off\"\n");
    assert_eq!(udp_hooks(&lab), Vec::<[u32; 2]>::new());
    assert_eq!(status(&lab).0["linux_clients"]["state"], "off");
    assert_eq!(udp.tell("target u").or_panic(), TARGET, "Windows' clients need it");
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\nclients  of Linux are left alone\n"), "{text}");
}

#[test]
fn ports_that_windows_never_sends_are_no_policies() {
    let lab = Lab::builder().build().or_panic();
    let flags = || {
        let dump = sh(&lab, &format!("bpftool map dump pinned {}", pins::path("PORT_POLICY")));
        dump.matches("\"flags\": 1").count()
    };
    load_with(&lab, "[ports]\n5004 = { windows_never_sends = true }\n");
    assert_eq!((flags(), &*ok(&lab, &["policy", "list"]).stdout), (3, ""), "53, 68 and 5004 of UDP");
    ok(&lab, &["policy", "set", "53", "pass"]);
    ok(&lab, &["policy", "unset", "53"]);
    assert_eq!(flags(), 3, "the command line has its own field");
    assert_eq!(status(&lab).0["policies"], 0);
    load(&lab);
    assert_eq!(flags(), 2, "those that are built in");
}
