//! The kernel functions that the program calls and the kernel fields that it reads, by placeholder.
//!
//! rustc emits no debug information for extern functions, so an object written in Rust cannot carry the
//! `.ksyms` relocations by which other loaders resolve kfuncs. Instead the program calls helper numbers that
//! no kernel has ([`Kfunc::placeholder`]) and loads from offsets that no structure has
//! ([`Field::placeholder`], [`Field::number_placeholder`]); the loader looks both up in the running kernel's BTF and writes the real numbers
//! into the instructions before the verifier sees them. An object that was not treated so is refused by
//! every kernel: nothing can go wrong unnoticed.

/// The first placeholder; helper numbers are a few hundred.
const KFUNC_BASE: u32 = 0x7f00_0000;
/// The first placeholder offset; `struct nf_conn` and `struct sk_buff` are some 250 bytes long.
const FIELD_BASE: u16 = 0x7a00;
/// The first placeholder number, where the program needs an offset as a number.
const NUMBER_BASE: u32 = 0x7a00_0000;

/// A kfunc (`net/netfilter/nf_conntrack_bpf.c`, `nf_nat_bpf.c`, `kernel/bpf/helpers.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kfunc {
    /// Finds the entry of a tuple.
    Lookup = 1,
    /// Makes an entry that is in no table yet.
    Alloc = 2,
    /// Makes the entry's address translation.
    SetNatInfo = 3,
    /// Sets the lifetime of an entry that is in no table yet.
    SetTimeout = 4,
    /// Puts an entry into the table.
    Insert = 5,
    /// Sets the lifetime of an entry in the table.
    ChangeTimeout = 6,
    /// Gives back a reference.
    Release = 7,
    /// The `struct sk_buff` behind a program's context (`bpf_cast_to_kern_ctx`).
    KernelContext = 8,
}

impl Kfunc {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Lookup,
        Self::Alloc,
        Self::SetNatInfo,
        Self::SetTimeout,
        Self::Insert,
        Self::ChangeTimeout,
        Self::Release,
        Self::KernelContext,
    ];

    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lookup => "bpf_skb_ct_lookup",
            Self::Alloc => "bpf_skb_ct_alloc",
            Self::SetNatInfo => "bpf_ct_set_nat_info",
            Self::SetTimeout => "bpf_ct_set_timeout",
            Self::Insert => "bpf_ct_insert_entry",
            Self::ChangeTimeout => "bpf_ct_change_timeout",
            Self::Release => "bpf_ct_release",
            Self::KernelContext => "bpf_cast_to_kern_ctx",
        }
    }

    /// The release of Linux that has it, as major and minor number; without BTF to ask, that tells what a kernel
    /// lacks for certain.
    pub const fn since(self) -> (u16, u16) {
        match self {
            Self::Lookup | Self::Release => (5, 18),
            Self::Alloc | Self::SetTimeout | Self::Insert | Self::ChangeTimeout => (6, 0),
            Self::SetNatInfo => (6, 1),
            Self::KernelContext => (6, 2),
        }
    }

    /// Whether the programs work without it. Without [`Kfunc::KernelContext`] the loader attaches the egress program
    /// that looks a reply's flow up.
    pub const fn is_optional(self) -> bool {
        matches!(self, Self::KernelContext)
    }

    /// The helper number by which the object calls it.
    pub const fn placeholder(self) -> u32 {
        KFUNC_BASE + self as u32
    }
}

/// A field of a kernel structure that the programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Field {
    /// `nf_conn.status`: the `IPS_*` bits, an unsigned long.
    Status = 0x10,
    /// `nf_conn.proto.tcp.state`: `enum tcp_conntrack`, a byte.
    TcpState = 0x20,
    /// `sk_buff._nfct`: the packet's entry, with `enum ip_conntrack_info` in the lowest three bits.
    SkbConntrack = 0x30,
    /// `nf_conn.tuplehash[1].tuple.src.u3.ip`: from which address replies come, a `__be32`.
    ReplySource = 0x40,
    /// `nf_conn.tuplehash[1].tuple.src.u.all`: from which port replies come, a `__be16`.
    ReplySourcePort = 0x60,
    /// `nf_conn.tuplehash[1].tuple.dst.u.all`: to which port replies go, a `__be16`.
    ReplyPort = 0x50,
}

impl Field {
    /// All of them; the programs need each.
    pub const ALL: [Self; 6] = [
        Self::Status,
        Self::TcpState,
        Self::SkbConntrack,
        Self::ReplySource,
        Self::ReplySourcePort,
        Self::ReplyPort,
    ];

    /// The structure that it belongs to.
    pub const fn structure(self) -> &'static str {
        match self {
            Self::Status | Self::TcpState | Self::ReplySource | Self::ReplySourcePort | Self::ReplyPort => {
                "nf_conn"
            }
            Self::SkbConntrack => "sk_buff",
        }
    }

    /// The way to it from its structure: names of members.
    pub const fn path(self) -> &'static [&'static str] {
        match self {
            Self::Status => &["status"],
            Self::TcpState => &["proto", "tcp", "state"],
            Self::SkbConntrack => &["_nfct"],
            Self::ReplySource => &["tuplehash", "[1]", "tuple", "src", "u3", "ip"],
            Self::ReplySourcePort => &["tuplehash", "[1]", "tuple", "src", "u", "all"],
            Self::ReplyPort => &["tuplehash", "[1]", "tuple", "dst", "u", "all"],
        }
    }

    /// The offset from which the object loads it.
    pub const fn placeholder(self) -> u16 {
        FIELD_BASE + self as u16
    }

    /// The number that the object moves into a register where it needs the offset itself.
    pub const fn number_placeholder(self) -> u32 {
        NUMBER_BASE + self as u32
    }
}
