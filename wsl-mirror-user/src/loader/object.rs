//! The object that this binary carries, made fit for the running kernel.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};

use wsl_mirror_core::kfuncs::Kfunc;

use super::btf::Btf;
use super::relocate::{Missing, Targets, relocate};
use crate::exit::{Exit, Failure, OrExit as _};

/// The object as it was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WSL_MIRROR_OBJECT"));

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Where the kernel shows a loaded conntrack module: its BTF, and the module itself.
const MODULE: [&str; 2] = ["/sys/kernel/btf/nf_conntrack", "/sys/module/nf_conntrack/initstate"];

/// The object as it was built: for what does not depend on the kernel.
pub fn pristine() -> &'static [u8] {
    OBJECT
}

/// The object with the running kernel's kfuncs and offsets in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fitted {
    /// The ELF file.
    pub bytes: Vec<u8>,
    /// The optional kfuncs that the kernel lacks. Programs that call them cannot be loaded.
    pub lacks: Vec<Kfunc>,
}

/// Fits the object to the running kernel.
pub fn for_this_kernel() -> Result<Fitted> {
    let blob = std::fs::read(VMLINUX).map_err(no_btf)?;
    let targets = match Btf::parse(&blob).map(|btf| Targets::resolve(&btf)) {
        Ok(Ok(targets)) => targets,
        Ok(Err(missing)) => return Err(unsupported(&missing, conntrack())),
        Err(malformed) => {
            return Err(malformed)
                .or_exit(Exit::NoBtf, || format!("cannot read the kernel's BTF ({VMLINUX})"));
        }
    };
    let mut bytes = OBJECT.to_vec();
    relocate(&mut bytes, &targets).context("cannot fit the eBPF object to this kernel")?;
    Ok(Fitted { bytes, lacks: targets.lacks() })
}

fn no_btf(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        // Of a kernel that is too old, BTF is not what it needs: rebuilt with it, it would be refused again.
        let lacks = kfuncs_after(&release());
        if !lacks.is_empty() {
            let missing = Missing { kfuncs: lacks, fields: vec![format!("BTF ({VMLINUX})")] };
            return unsupported(&missing, Conntrack::NoModule);
        }
        Failure::new(
            Exit::NoBtf,
            format!(
                "the kernel has no BTF ({VMLINUX} does not exist): CONFIG_DEBUG_INFO_BTF is needed. WSL's own \
                 kernels from 2.5 on have it; if .wslconfig names another `kernel`, remove that line or build \
                 it with BTF"
            ),
        )
    } else {
        anyhow::Error::new(error).context(Failure {
            exit: Exit::NoBtf,
            message: format!("cannot read the kernel's BTF ({VMLINUX})"),
        })
    }
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The kfuncs that no program works without and that came after this release (`5.10.102.1-microsoft-standard-WSL2`); none if it cannot be read.
pub fn kfuncs_after(release: &str) -> Vec<&'static str> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u16>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return Vec::new() };
    let lacks = |kfunc: &Kfunc| !kfunc.is_optional() && (major, minor) < kfunc.since();
    Kfunc::ALL.into_iter().filter(lacks).map(Kfunc::name).collect()
}

/// How this kernel has conntrack.
#[derive(Clone, Copy)]
enum Conntrack {
    Module,
    /// Built in, or not there.
    NoModule,
}

fn conntrack() -> Conntrack {
    let is_module = MODULE.iter().any(|path| Path::new(path).exists());
    if is_module { Conntrack::Module } else { Conntrack::NoModule }
}

fn unsupported(missing: &Missing, conntrack: Conntrack) -> anyhow::Error {
    let mut lacks: Vec<String> = missing.kfuncs.iter().map(|name| (*name).to_owned()).collect();
    lacks.extend(missing.fields.iter().cloned());
    let lacks = lacks.join(", ");
    let release = release();
    match conntrack {
        Conntrack::Module => Failure::new(
            Exit::ConntrackModule,
            format!(
                "the kernel's conntrack is a module (nf_conntrack), and of a module the functions that wsl-mirror \
                 needs are out of reach: {lacks}. Kernel {release} has to be built with CONFIG_NF_CONNTRACK=y \
                 and CONFIG_NF_NAT=y, as WSL's own kernels are; if .wslconfig names another `kernel`, remove \
                 that line"
            ),
        ),
        Conntrack::NoModule => Failure::new(
            Exit::NoKfuncs,
            format!(
                "kernel {release} lacks what wsl-mirror calls in conntrack: {lacks}. Linux 6.1 or later with \
                 CONFIG_NF_CONNTRACK=y and CONFIG_NF_NAT=y has it; `wsl --update` brings WSL's newest kernel"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn what_is_too_new_for_a_kernel_is_told_by_its_release() {
        let needed = Kfunc::ALL.iter().filter(|kfunc| !kfunc.is_optional()).count();
        assert_eq!(kfuncs_after("5.10.102.1-microsoft-standard-WSL2").len(), needed);
        assert_eq!(kfuncs_after("5.15.167.4-microsoft-standard-WSL2").len(), needed);
        assert_eq!(kfuncs_after("6.0.0"), ["bpf_ct_set_nat_info"]);
        for fine in ["6.1.0", "6.6.87.2-microsoft-standard-WSL2", "7.2.13", "10.0-rc1", "unheard of", ""] {
            assert!(kfuncs_after(fine).is_empty(), "{fine}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named_with_what_to_do() {
        let missing = Missing { kfuncs: vec!["bpf_skb_ct_alloc"], fields: vec!["nf_conn.status".into()] };
        let module = unsupported(&missing, Conntrack::Module);
        assert_eq!(exit_of(&module), Exit::ConntrackModule);
        assert!(module.to_string().contains("CONFIG_NF_CONNTRACK=y"));
        let absent = unsupported(&missing, Conntrack::NoModule);
        assert_eq!(exit_of(&absent), Exit::NoKfuncs);
        for part in ["bpf_skb_ct_alloc", "nf_conn.status", "6.1"] {
            assert!(absent.to_string().contains(part), "{absent}");
        }
    }
}
