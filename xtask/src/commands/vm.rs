//! `cargo xtask vm`

use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    cargo::{self, Profile},
    exit_code::ExitCode,
    report,
    setup::{self, Needs, Outcome},
    vm::{self, Effort, Selection},
};

/// Run the lab's tests on other kernels, in virtual machines
///
/// On 6.1 and 6.12 unless told. A machine has qemu's emulated CPUs where KVM does not work, and sees the files of this
/// one read-only. Kernels come from the folder that `WSL_MIRROR_KERNELS` names, or from a cache below
/// `XDG_CACHE_HOME`; what is missing there is built from Debian's sources, which takes some 8 minutes each on two
/// cores. A kernel that panics, hangs or complains on its console has failed, whatever its tests say. Ends with a
/// table: kernels and groups of tests.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch on the command line")]
pub(crate) struct Vm {
    /// These kernels: by version, or by the path of a bzImage
    #[arg(long, value_name = "VERSION|PATH", num_args = 1.., conflicts_with = "all")]
    kernel: Vec<String>,
    /// Every kernel: also 7.2, 7.2 with its debugging checks, and 5.10, which has to be refused
    #[arg(long)]
    all: bool,
    /// Only show which kernels there are and where they lie
    #[arg(long, conflicts_with_all = ["kernel", "all", "shell"])]
    list: bool,
    /// A prompt in a machine, with the lab up, instead of tests
    #[arg(long, conflicts_with_all = ["all", "soak", "args"])]
    shell: bool,
    /// Many more rounds of what may go wrong once in a while
    #[arg(long)]
    soak: bool,
    /// For the test binaries: a filter, `--nocapture`, `--ignored`
    #[arg(last = true)]
    args: Vec<String>,
}

impl Vm {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        if self.list {
            print!("{}", vm::list());
            return Ok(ExitCode::Success);
        }
        if self.shell && !std::io::stdin().is_terminal() {
            bail!("--shell needs a terminal to be a prompt on");
        }
        if matches!(setup::ensure(Needs::Vm)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }
        let selection = match (self.all, self.kernel.is_empty()) {
            (true, _) => Selection::All,
            (false, false) => Selection::Named(self.kernel),
            // One prompt is enough.
            (false, true) if self.shell => Selection::Named(vec!["6.12".to_owned()]),
            (false, true) => Selection::Default,
        };
        let kernels = vm::kernels(&selection)?;
        let product = cargo::build_product(Profile::Release)?;
        if self.shell {
            let [kernel] = kernels.as_slice() else { bail!("--shell is for one kernel") };
            let program = cargo::build("xtask-lab", Profile::Release)?;
            let well = vm::shell(kernel, &product, &program)?;
            return Ok(if well { ExitCode::Success } else { ExitCode::Failed });
        }
        let built = vm::build(&product)?;
        let effort = Effort { soak: self.soak, arguments: &self.args };
        let groups = vm::run(&kernels, &built, &effort)?;
        report::print_failures(&groups);
        print!("\n{}", vm::matrix(&kernels, &groups));
        Ok(report::conclude(&groups, &self.args))
    }
}
