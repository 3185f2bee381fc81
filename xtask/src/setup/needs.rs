//! What tasks need: the toolchain, programs and headers, and the packages that bring them.

/// What a task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A toolchain for the object.
    Build,
    /// That, and the programs that the lab runs.
    Lab,
    /// That, and qemu.
    Vm,
    /// What fuzz targets are linked with.
    Fuzz,
    /// What puts other releases' engines into folders.
    Engines,
    /// A toolchain for C and what else the kernel's build runs.
    Kernels,
}

impl Needs {
    /// What it takes besides the toolchain.
    pub(super) fn tools(self) -> impl Iterator<Item = Tool> {
        let tools: &[&[Tool]] = match self {
            Self::Build => &[],
            Self::Lab => &[&LAB],
            Self::Vm => &[&LAB, &VM],
            Self::Kernels => &[&KERNELS],
            Self::Engines => &[&ENGINES],
            Self::Fuzz => &[&FUZZ],
        };
        tools.iter().copied().flatten().copied()
    }
}

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
