//! The packages whose programs run out of folders, and how these programs do.

/// A package whose programs run out of a folder.
///
/// Not here are Docker, which consists of programs that call each other by their paths, compilers and headers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) name: &'static str,
    pub(super) programs: &'static [Program],
}

/// How a program runs out of a folder. `{root}`, `{lib}` and `{bin}` stand for the folders of the files, of the
/// architecture's libraries and of the wrappers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: &'static str,
    /// The file's name, where it is another.
    pub(super) file: Option<&'static str>,
    /// Arguments in front of the user's.
    pub(super) arguments: &'static [&'static str],
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// Folders of libraries besides the usual.
    pub(super) libraries: &'static [&'static str],
}

impl Program {
    const fn plain(name: &'static str) -> Self {
        Self { name, file: None, arguments: &[], environment: &[], libraries: &[] }
    }

    /// One of the applets of an iptables program. Only an installation makes the links of these names.
    const fn applet(name: &'static str, applet: &'static [&'static str], file: &'static str) -> Self {
        Self {
            file: Some(file),
            arguments: applet,
            environment: &[("XTABLES_LIBDIR", "{lib}/xtables")],
            ..Self::plain(name)
        }
    }

    const fn nft(name: &'static str, applet: &'static [&'static str]) -> Self {
        Self::applet(name, applet, "xtables-nft-multi")
    }

    const fn legacy(name: &'static str, applet: &'static [&'static str]) -> Self {
        Self::applet(name, applet, "xtables-legacy-multi")
    }
}

const M4: Program = Program::plain("m4");

pub(super) const PACKAGES: [Bundle; 16] = [
    Bundle {
        name: "qemu-system-x86",
        programs: &[Program {
            arguments: &[
                "-L",
                "{root}/usr/share/qemu",
                "-L",
                "{root}/usr/share/seabios",
                "-L",
                "{root}/usr/lib/ipxe/qemu",
            ],
            environment: &[("QEMU_MODULE_DIR", "{lib}/qemu")],
            ..Program::plain("qemu-system-x86_64")
        }],
    },
    Bundle { name: "busybox-static", programs: &[Program::plain("busybox")] },
    Bundle {
        name: "iptables",
        programs: &[
            Program::nft("iptables", &["iptables"]),
            Program::nft("iptables-save", &["iptables-save"]),
            Program::nft("iptables-restore", &["iptables-restore"]),
            Program::nft("ip6tables", &["ip6tables"]),
            Program::nft("ip6tables-save", &["ip6tables-save"]),
            Program::nft("ip6tables-restore", &["ip6tables-restore"]),
            Program::nft("iptables-nft", &["iptables"]),
            Program::nft("iptables-nft-save", &["iptables-save"]),
            Program::nft("iptables-nft-restore", &["iptables-restore"]),
            Program::nft("ip6tables-nft", &["ip6tables"]),
            Program::nft("ip6tables-nft-save", &["ip6tables-save"]),
            Program::nft("ip6tables-nft-restore", &["ip6tables-restore"]),
            Program::legacy("iptables-legacy", &["iptables"]),
            Program::legacy("iptables-legacy-save", &["iptables-save"]),
            Program::legacy("iptables-legacy-restore", &["iptables-restore"]),
            Program::legacy("ip6tables-legacy", &["ip6tables"]),
            Program::legacy("ip6tables-legacy-save", &["ip6tables-save"]),
            Program::legacy("ip6tables-legacy-restore", &["ip6tables-restore"]),
        ],
    },
    Bundle { name: "nftables", programs: &[Program::plain("nft")] },
    Bundle { name: "conntrack", programs: &[Program::plain("conntrack")] },
    Bundle { name: "bpftool", programs: &[Program::plain("bpftool")] },
    Bundle { name: "strace", programs: &[Program::plain("strace")] },
    Bundle {
        name: "iproute2",
        programs: &[
            Program::plain("ip"),
            Program { environment: &[("TC_LIB_DIR", "{root}/usr/lib/tc")], ..Program::plain("tc") },
        ],
    },
    Bundle { name: "procps", programs: &[Program::plain("sysctl")] },
    Bundle { name: "mmdebstrap", programs: &[Program::plain("mmdebstrap")] },
    Bundle { name: "make", programs: &[Program::plain("make")] },
    Bundle {
        name: "flex",
        programs: &[Program { environment: &[("M4", "{bin}/m4")], ..Program::plain("flex") }, M4],
    },
    Bundle {
        name: "bison",
        programs: &[
            Program {
                environment: &[("M4", "{bin}/m4"), ("BISON_PKGDATADIR", "{root}/usr/share/bison")],
                ..Program::plain("bison")
            },
            M4,
        ],
    },
    Bundle { name: "bc", programs: &[Program::plain("bc")] },
    Bundle { name: "xz-utils", programs: &[Program::plain("xz")] },
    Bundle { name: "dwarves", programs: &[Program::plain("pahole")] },
];

/// The package of this name, if its programs run out of a folder.
pub(crate) fn of(name: &str) -> Option<&'static Bundle> {
    PACKAGES.iter().find(|package| package.name == name)
}
