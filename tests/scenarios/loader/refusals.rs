//! What is refused: each with its exit code, with what to do, and nothing changed.

use std::fs;

use wsl_mirror_core::abi::LAYOUT;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{OrPanic as _, config, ok, refused, sh, wrapped},
    pins,
};

use crate::guest::{everything, unchanged};

const AS_NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

/// Lets `load` be refused after `prepare`, a script: with this code, naming all of `words`, and changing
/// nothing.
#[track_caller]
fn refused_after(prepare: &str, code: i32, words: &[&str]) {
    let lab = Lab::builder().build().or_panic();
    sh(&lab, prepare);
    println!("after `{prepare}`");
    refused_unchanged(&lab, &["load"], code, words);
}

#[track_caller]
fn refused_unchanged(lab: &Lab, arguments: &[&str], code: i32, words: &[&str]) {
    let before = everything(lab);
    let said = refused(lab, arguments, code);
    println!("{code:>2}  {}", said.trim_end());
    for word in words {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    unchanged(lab, &before);
}

#[test]
fn who_is_not_root_is_told_so_whatever_the_command() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    let before = everything(&lab);
    for arguments in [
        ["load"].as_slice(),
        &["load", "--dry-run"],
        &["load", "--config", "/nonexistent"],
        &["unload"],
        &["status"],
        &["log"],
        &["exempt", "list"],
        &["exempt", "add", "80"],
        &["exempt", "del", "80"],
        &["policy", "list"],
        &["policy", "set", "80", "direct"],
        &["policy", "unset", "80"],
    ] {
        let finished = wrapped(&lab, &AS_NOBODY, arguments);
        assert!(finished.status.code() == Some(5), "{finished}");
        assert!(finished.stderr.contains("root is needed") && finished.stderr.contains("sudo"), "{finished}");
    }
    unchanged(&lab, &before);
}

#[test]
fn without_a_bpffs_that_could_be_mounted_nothing_is_loaded() {
    let lab = Lab::builder().bpffs(false).build().unwrap();
    // Nowhere to mount it; cgroups are where they were.
    sh(
        &lab,
        "mkdir /run/kept && mount --rbind /sys/fs/cgroup /run/kept && mount -t tmpfs tmpfs /sys/fs && \
         mkdir /sys/fs/cgroup && mount --rbind /run/kept /sys/fs/cgroup",
    );
    let mounts = || sh(&lab, "cat /proc/self/mountinfo");
    let before = mounts();
    let said = refused(&lab, &["load"], 8);
    assert!(said.contains("mount -t bpf -o mode=0700 bpf /sys/fs/bpf"), "{said}");
    assert_eq!(mounts(), before);
}

#[test]
fn a_pin_path_that_somebody_else_could_have_made_is_refused() {
    const PARENT: &str = pins::PARENT;
    let directory = pins::directory();
    let nobody = AS_NOBODY.join(" ");
    for (prepare, words) in [
        (format!("chmod 1777 /sys/fs/bpf; {nobody} mkdir {PARENT}"), ["belongs to user 65534", PARENT]),
        (
            format!("chmod 1777 /sys/fs/bpf; {nobody} mkdir -p {directory}"),
            ["belongs to user 65534", "rm -r"],
        ),
        (format!("chmod 1777 /sys/fs/bpf; {nobody} ln -s /nowhere {PARENT}"), ["is no directory", "rm -r"]),
        (format!("ln -s /sys/fs {PARENT}"), ["is no directory", "rm -r"]),
        (format!("mkdir {PARENT}; ln -s /sys/fs/bpf {directory}"), ["is no directory", &directory]),
        (format!("mkdir -m 0770 {PARENT}"), ["writable for others", "0770"]),
        (format!("mkdir -m 0707 {PARENT}"), ["writable for others", "0707"]),
        (
            format!("mkdir -p -m 0700 {PARENT}; mkdir -m 0777 {directory}"),
            ["writable for others", &directory],
        ),
        (format!("mkdir {PARENT}; chown 65534 {PARENT}"), ["belongs to user 65534", "rm -r"]),
        ("chmod 0777 /sys/fs/bpf".to_owned(), ["writable for others", "/sys/fs/bpf is"]),
        ("chown 65534 /sys/fs/bpf".to_owned(), ["belongs to user 65534", "/sys/fs/bpf "]),
        (
            format!("bpftool map create {PARENT} type array key 4 value 4 entries 1 name x"),
            ["is no directory", "rm -r"],
        ),
    ] {
        refused_after(&prepare, 9, &words);
    }
}

#[test]
fn pins_of_another_layout_are_refused() {
    let directory = pins::directory();
    let newer = pins::directory_of(LAYOUT + 1);
    let create =
        |path: &str, shape: &str| format!("bpftool map create {directory}/{path} type {shape} name x");
    for (prepare, words) in [
        (format!("mkdir -p -m 0700 {newer}"), ["newer release", "unload"]),
        (
            format!("mkdir -p -m 0700 {}", pins::directory_of(1)),
            ["older build", "with the build that made it"],
        ),
        (format!("mkdir -p -m 0700 {}", pins::directory_of(0)), ["none of our layouts", "rm -r"]),
        (format!("mkdir -p -m 0700 {}/vista", pins::PARENT), ["none of our layouts", "rm -r"]),
        (
            format!("mkdir -p {directory}; {}", create("FOREIGN", "array key 4 value 4 entries 1")),
            ["FOREIGN is none of our pins", "rm -r"],
        ),
        (
            format!("mkdir -p {directory}; {}", create("PORT_POLICY", "hash key 4 value 8 entries 9")),
            ["value 8 B, 9 entries", "value 4 B, 131072 entries"],
        ),
        (
            format!("mkdir -p {directory}; {}", create("PORT_POLICY", "hash key 4 value 2 entries 131072")),
            ["flags 0x0)", "flags 0x1)"],
        ),
        (
            // All differences at once.
            format!(
                "mkdir -p {directory}; {}; {}",
                create("SETTINGS", "array key 4 value 400 entries 1"),
                create("FRAGMENTS", "hash key 12 value 12 entries 32768 flags 0")
            ),
            ["SETTINGS is (type 2, key 4 B, value 400 B", "FRAGMENTS is (type 1"],
        ),
    ] {
        refused_after(&prepare, 10, &words);
    }
    // Those who only look, or unload, do not touch it either.
    let lab = Lab::builder().build().unwrap();
    sh(&lab, &format!("mkdir -p -m 0700 {newer}"));
    for arguments in [["status"].as_slice(), &["unload"], &["exempt", "list"], &["exempt", "add", "80"]] {
        refused_unchanged(&lab, arguments, 10, &["newer release"]);
    }
    sh(&lab, &format!("rmdir {newer}; mkdir -p -m 0700 {}", pins::directory_of(1)));
    refused_unchanged(&lab, &["unload"], 10, &["older build", "with the build that made it"]);
}

/// Shows the guest another BTF of the kernel, as `change` makes it, and other files beside it.
#[track_caller]
fn with_btf(lab: &Lab, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>> + Send, beside: &[&str]) {
    let btf = lab.guest().enter(|| fs::read("/sys/kernel/btf/vmlinux")).or_panic();
    sh(lab, "mount -t tmpfs tmpfs /sys/kernel/btf");
    lab.guest().enter(|| {
        if let Some(btf) = change(btf) {
            fs::write("/sys/kernel/btf/vmlinux", btf).or_panic();
        }
        for name in beside {
            fs::write(format!("/sys/kernel/btf/{name}"), "").or_panic();
        }
    });
}

/// Puts one name in the place of another one of the same length.
fn rename(btf: &mut [u8], from: &str, to: &str) {
    let (from, to) = (format!("\0{from}\0"), format!("\0{to}\0"));
    assert_eq!(from.len(), to.len());
    let at = btf.windows(from.len()).position(|window| window == from.as_bytes());
    let Some(at) = at else { panic!("the kernel's BTF has no {from:?}") };
    btf[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn kernels_that_lack_something_are_refused_with_what_they_lack() {
    let without_alloc = |mut btf: Vec<u8>| {
        rename(&mut btf, "bpf_skb_ct_alloc", "bpf_skb_xx_alloc");
        rename(&mut btf, "bpf_ct_set_nat_info", "bpf_xx_set_nat_info");
        Some(btf)
    };

    let lab = Lab::builder().build().unwrap();
    with_btf(&lab, |_| None, &[]);
    refused_unchanged(&lab, &["load"], 11, &["no BTF", "CONFIG_DEBUG_INFO_BTF"]);

    let lab = Lab::builder().build().unwrap();
    with_btf(&lab, without_alloc, &[]);
    let both = "bpf_skb_ct_alloc, bpf_ct_set_nat_info";
    refused_unchanged(&lab, &["load"], 12, &[both, "6.1", "wsl --update"]);

    let lab = Lab::builder().build().unwrap();
    with_btf(&lab, without_alloc, &["nf_conntrack"]);
    refused_unchanged(&lab, &["load"], 13, &[both, "is a module", "CONFIG_NF_CONNTRACK=y"]);
}

/// On the real thing: see `cargo xtask vm --list`.
#[test]
#[ignore = "for a kernel before 6.1: cargo xtask vm --kernel 5.10"]
fn a_kernel_that_is_too_old_is_refused_by_what_it_lacks() {
    let lab = Lab::builder().build().unwrap();
    let lacking =
        ["kernel 5.", "bpf_skb_ct_lookup", "bpf_skb_ct_alloc", "bpf_ct_set_nat_info", "Linux 6.1 or later"];
    refused_unchanged(&lab, &["load"], 12, &lacking);
    refused_unchanged(&lab, &["load", "--dry-run"], 12, &lacking);
    // Nothing is loaded, and looking and unloading work all the same.
    refused_unchanged(&lab, &["status"], 3, &[]);
    let before = everything(&lab);
    ok(&lab, &["unload"]);
    unchanged(&lab, &before);
}

#[test]
fn a_damaged_btf_is_an_error_and_not_a_crash() {
    for cut in [0, 1, 20, 24, 1000, 3_000_000] {
        let lab = Lab::builder().build().unwrap();
        with_btf(&lab, |btf| Some(btf[..cut.min(btf.len() - 1)].to_vec()), &[]);
        refused_unchanged(&lab, &["load"], 11, &["BTF", "/sys/kernel/btf/vmlinux"]);
    }
}

#[test]
fn a_program_that_the_kernel_refuses_does_not_flood_the_terminal() {
    let lab = Lab::builder().build().unwrap();
    // A kfunc that a tc program may not call, under the name of one that it may.
    let swapped = |mut btf: Vec<u8>| {
        rename(&mut btf, "bpf_skb_ct_alloc", "bpf_yyy_ct_alloc");
        rename(&mut btf, "bpf_xdp_ct_alloc", "bpf_skb_ct_alloc");
        Some(btf)
    };
    with_btf(&lab, swapped, &[]);
    let words = ["the kernel refused our program wsl_mirror: ", "call bpf_xdp_ct_alloc#", "--verifier-log"];
    refused_unchanged(&lab, &["load"], 16, &words);
    let short = refused(&lab, &["load"], 16);
    assert!(short.lines().count() <= 23, "{short}");
    let long = refused(&lab, &["load", "--verifier-log"], 16);
    assert!(long.lines().count() > 50 && long.contains("call bpf_xdp_ct_alloc#"), "{long}");
}

#[test]
fn an_interface_that_is_not_there_or_is_not_the_steered_one_is_refused() {
    let lab = Lab::builder().loopback0(false).build().unwrap();
    refused_unchanged(&lab, &["load"], 7, &["no network interface loopback0", "networkingMode=mirrored"]);
    refused_unchanged(&lab, &["load", "--interface", "lo9"], 7, &["no network interface lo9", "ip link"]);
    refused_unchanged(&lab, &["load", "--interface", "a/b"], 7, &["a/b"]);

    lab.add_loopback0().unwrap();
    ok(&lab, &["load"]);
    refused_unchanged(&lab, &["load", "--interface", "eth0"], 15, &["steers loopback0 already", "unload"]);
    lab.remove_loopback0().unwrap();
    ok(&lab, &["load", "--interface", "eth0"]);
}

#[test]
fn a_configuration_with_a_mistake_is_refused_with_its_place() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    for (text, words) in [
        ("mark = 0x1000\nexemt = [22]\n", ["line 2, column 1", "exemt"]),
        ("exempt = [\n  22,\n  70000,\n]\n", ["line 3, column 3", "70000 is no port"]),
        ("exempt = [\"80/sctp\"]\n", ["line 1, column 11", "no protocol"]),
        ("exempt = [22\n", ["line 1, column 13", "unclosed array"]),
        ("mark = 0x1ff\n", ["line 1, column 8", "at most 8"]),
        ("alias = \"127.0.0.1\"\n", ["line 1, column 9", "cannot be 127.0.0.1"]),
        ("delivery = \"auto\"\n", ["line 1, column 1", "no key \"delivery\""]),
        ("hook = \"xdp\"\n", ["line 1, column 8", "cls_bpf"]),
    ] {
        let path = config(&lab, text);
        let words = [words.as_slice(), &[path.as_str()]].concat();
        refused_unchanged(&lab, &["load", "--config", &path], 6, &words);
    }
    let missing = format!("{SCRATCH}/no-such.toml");
    refused_unchanged(&lab, &["load", "--config", &missing], 6, &[&missing, "No such file"]);
    refused_unchanged(&lab, &["load", "--config", SCRATCH], 6, &[SCRATCH, "directory"]);
    // The file in /etc may be missing, but not unreadable or wrong.
    lab.guest().enter(|| fs::write("/etc/wsl-mirror.toml", "exempt = [80")).unwrap();
    refused_unchanged(&lab, &["load"], 6, &["/etc/wsl-mirror.toml", "line 1"]);
    lab.guest().enter(|| fs::write("/etc/wsl-mirror.toml", b"\xff\xfe")).unwrap();
    refused_unchanged(&lab, &["load"], 6, &["/etc/wsl-mirror.toml"]);
}
