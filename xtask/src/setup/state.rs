//! What the machine has, as far as the plan depends on it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use wsl_mirror_toolchain::{CARGO_OVERRIDE, LINKER_OVERRIDE, Missing, Toolchain};

use super::{Needs, apt::Apt, host::Host, unpacked};

/// A program that a task runs, or a header that it compiles with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    /// What is run; a header as C includes it, in angle brackets.
    pub(super) program: &'static str,
    /// The package that brings it on Debian.
    pub(super) package: &'static str,
}

/// What the lab runs: a real engine, the tools that look at what it did, and a static busybox to put into
/// containers, which have no libraries.
pub(super) const LAB: [Tool; 12] = [
    Tool { program: "dockerd", package: "docker.io" },
    // Part of docker.io up to bookworm, a package of its own from trixie on.
    Tool { program: "docker", package: "docker-cli" },
    Tool { program: "iptables", package: "iptables" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "tc", package: "iproute2" },
    Tool { program: "conntrack", package: "conntrack" },
    Tool { program: "bpftool", package: "bpftool" },
    Tool { program: "sysctl", package: "procps" },
    Tool { program: "strace", package: "strace" },
    // It judges our unit; nothing of systemd is started.
    Tool { program: "systemd-analyze", package: "systemd" },
    BUSYBOX,
];

/// What a virtual machine needs besides the lab that runs in it.
pub(super) const VM: [Tool; 1] = [Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" }];

/// What building a kernel with BTF needs.
pub(super) const KERNELS: [Tool; 13] = [
    Tool { program: "make", package: "make" },
    Tool { program: "gcc", package: "gcc" },
    Tool { program: "ld", package: "binutils" },
    Tool { program: "flex", package: "flex" },
    Tool { program: "bison", package: "bison" },
    Tool { program: "bc", package: "bc" },
    Tool { program: "perl", package: "perl" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "python3", package: "python3" },
    Tool { program: "pahole", package: "dwarves" },
    Tool { program: "<libelf.h>", package: "libelf-dev" },
    Tool { program: "<openssl/evp.h>", package: "libssl-dev" },
    Tool { program: "dpkg-deb", package: "dpkg" },
];

/// What puts engines of other Debian releases into folders.
pub(super) const ENGINES: [Tool; 2] =
    [Tool { program: "mmdebstrap", package: "mmdebstrap" }, Tool { program: "dpkg-deb", package: "dpkg" }];

/// libFuzzer is C++.
pub(super) const FUZZ: [Tool; 1] = [Tool { program: "g++", package: "g++" }];

/// Has to be static, unlike the others.
pub(super) const BUSYBOX: Tool = Tool { program: "busybox", package: "busybox-static" };

/// What was read; a value, so that a test can make one up.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) toolchain: Result<Toolchain, Missing>,
    /// Those that were asked for.
    pub(super) missing_tools: Vec<Tool>,
    pub(super) root: bool,
    /// `None` without apt, and when nothing is missing: asking it takes longer than all the rest.
    pub(super) apt: Option<Apt>,
    /// rustup, as rustup.rs installs it.
    pub(super) rustup: bool,
    pub(super) binstall: bool,
    /// LLVMs that bpf-linker could be linked with.
    pub(super) llvm_dev: Vec<u32>,
    /// The variables by which the user chose a toolchain.
    pub(super) overrides: Vec<&'static str>,
}

impl State {
    pub(super) fn read(host: &Host, needs: Needs, apt_updated: bool) -> Self {
        let toolchain = wsl_mirror_toolchain::find();
        let tools: &[&[Tool]] = match needs {
            Needs::Build => &[],
            Needs::Lab => &[&LAB],
            Needs::Vm => &[&LAB, &VM],
            Needs::Kernels => &[&KERNELS],
            Needs::Engines => &[&ENGINES],
            Needs::Fuzz => &[&FUZZ],
        };
        let tools = tools.iter().copied().flatten().copied();
        let missing_tools: Vec<Tool> = tools.filter(|tool| !has(host, *tool)).collect();
        let complete = toolchain.is_ok() && missing_tools.is_empty();
        let apt = if complete { None } else { Apt::read(host, &missing_tools, apt_updated) };
        Self {
            toolchain,
            missing_tools,
            // The owner of our own entry is our effective user.
            root: fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0),
            apt,
            rustup: program("rustup").is_some(),
            binstall: program("cargo-binstall").is_some(),
            llvm_dev: super::plan::LINKER_LLVMS.filter(|llvm| has_llvm_dev(*llvm)).collect(),
            overrides: [CARGO_OVERRIDE, LINKER_OVERRIDE]
                .into_iter()
                .filter(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
                .collect(),
        }
    }
}

/// Where the C compiler looks for headers; on Debian those of one architecture have a folder of their own.
const HEADERS: [&str; 4] =
    ["/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu"];

pub(super) fn has(host: &Host, tool: Tool) -> bool {
    if let Some(header) = tool.program.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) {
        return HEADERS.iter().any(|folder| Path::new(folder).join(header).exists());
    }
    candidates(host, tool.program).any(|path| tool != BUSYBOX || is_static(&path))
}

/// The programs of this name: on PATH, in the system's folders, which are not on every user's PATH, and unpacked.
fn candidates(host: &Host, name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let folders: Vec<_> = env::split_paths(&path).chain(system).chain(unpacked_folders(host)).collect();
    folders.into_iter().map(move |folder| folder.join(name)).filter(|path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

fn unpacked_folders(host: &Host) -> Vec<PathBuf> {
    host.unpacked.as_deref().map(unpacked::bins).unwrap_or_default()
}

/// Looks for a program.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    candidates(&Host::this(), name).next()
}

/// The static busybox.
pub(crate) fn busybox() -> Option<PathBuf> {
    candidates(&Host::this(), BUSYBOX.program).find(|path| is_static(path))
}

/// Names unpacked programs to the lab, whose guests have them in /usr/bin.
const UNPACKED: &str = "WSL_MIRROR_UNPACKED";

/// What has a program and its children find unpacked programs: `path` with their folders behind it, as the machine's own
/// come first, and the list for the lab. Names and values of variables.
pub(crate) fn environment(path: &OsStr) -> Vec<(&'static str, OsString)> {
    let host = Host::this();
    let folders = unpacked_folders(&host);
    let programs = host.unpacked.iter().flat_map(|folder| unpacked::programs(folder, &LAB));
    let in_use = programs.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let chosen = if name == BUSYBOX.program { busybox() } else { program(&name) };
        chosen.as_ref() == Some(path)
    });
    let join = |paths: Vec<PathBuf>| env::join_paths(paths).ok();
    // A folder with a colon in its name cannot be on PATH; then PATH stays as it is.
    let extended = join(env::split_paths(path).chain(folders).collect());
    let in_use = join(in_use.collect()).filter(|list| !list.is_empty());
    let extended = ("PATH", extended.unwrap_or_else(|| path.to_owned()));
    [extended].into_iter().chain(in_use.map(|list| (UNPACKED, list))).collect()
}

/// Has a command and its children find unpacked programs.
pub(crate) fn equip(command: &mut Command) {
    command.envs(environment(&env::var_os("PATH").unwrap_or_default()));
}

/// A dynamic program names its loader right behind its headers.
pub(super) fn is_static(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.windows(4).any(|window| window == b"/ld-")
}

/// Where apt.llvm.org and Debian put an LLVM; the library's link comes with the -dev package.
fn has_llvm_dev(llvm: u32) -> bool {
    Path::new(&format!("/usr/lib/llvm-{llvm}/lib/libLLVM.so")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let file = env::temp_dir().join(format!("wsl-mirror-static-{}", std::process::id()));
        let write = |bytes: &[u8]| fs::write(&file, bytes).unwrap_or_else(|error| panic!("writing: {error}"));
        write(b"\x7fELF....\0/lib64/ld-linux-x86-64.so.2\0");
        assert!(!is_static(&file));
        write(b"\x7fELF....\0/lib/ld-musl-aarch64.so.1\0");
        assert!(!is_static(&file));
        write(b"\x7fELF....");
        assert!(is_static(&file));
        fs::remove_file(&file).unwrap_or_else(|error| panic!("removing: {error}"));
        assert!(!is_static(&file), "what is not there is not static");
    }
}
