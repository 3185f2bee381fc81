//! `cargo xtask vm`: the lab's tests in virtual machines, on kernels other than this one.
//!
//! A machine runs one group of tests (one test binary) on one kernel, and as many machines run at once as the host
//! has cores: emulated ones use a core each. They see the host's files, read-only: what was built here runs there, and
//! engines and tools are those of the host.

mod choice;
mod console;
mod initramfs;
mod kernels;
mod machine;
mod matrix;
mod room;
mod run;
mod shell;

use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build::{self, Profile},
    exit_code::ExitCode,
    setup::{self, Needs, Outcome},
    shell::Switches,
    test::conclude,
};
pub(crate) use choice::{Choice, MOST_DIFFERENT};
pub(crate) use initramfs::quoted;
pub(crate) use kernels::{KERNELS, Selection, get as kernels};
pub(crate) use machine::possible;
pub(crate) use matrix::matrix;
pub(crate) use run::{Effort, SOAK, build_tests, run};

/// Run the lab's tests on other kernels, in virtual machines
///
/// Without options on 6.1 and 6.12. A machine has qemu's emulated CPUs where KVM does not work, and sees the files of
/// this one read-only. Kernels come from the folder that `WSL_MIRROR_KERNELS` names, or from a cache below
/// `XDG_CACHE_HOME`. A missing kernel is built from Debian's sources, in some 8 minutes on two cores. A kernel that
/// panics, hangs or complains on its console has failed, whatever its tests say. Ends with a table: kernels and
/// groups of tests.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch on the command line")]
pub(crate) struct Vm {
    /// These kernels: by version, or by the path of a bzImage
    #[arg(long, value_name = "VERSION|PATH", num_args = 1.., conflicts_with = "all")]
    kernel: Vec<String>,
    /// Every kernel: also 7.2, 7.2 with its debugging checks, and 5.10, which has to be refused
    #[arg(long)]
    all: bool,
    /// Only these of the lab's test binaries
    #[arg(long, value_name = "BINARY", conflicts_with = "shell")]
    test: Vec<String>,
    /// Only show which kernels there are and where they lie
    #[arg(long, conflicts_with_all = ["kernel", "all", "shell", "test"])]
    list: bool,
    /// A prompt in a machine, with the lab up, instead of tests
    #[arg(long, conflicts_with_all = ["all", "soak", "filter"])]
    shell: bool,
    /// Many more rounds of what may go wrong once in a while
    #[arg(long)]
    soak: bool,
    #[command(flatten)]
    switches: Switches,
    /// For the test binaries: a filter, `--exact`, `--nocapture`, `--ignored`
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Vm {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        if self.list {
            print!("{}", kernels::list());
            return Ok(ExitCode::Success);
        }
        if !self.shell && self.switches != Switches::default() {
            bail!("how Windows starts is an option of --shell");
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
        let kernels = kernels(&selection)?;
        let product = build::product(Profile::Release)?;
        if self.shell {
            let [kernel] = kernels.as_slice() else { bail!("--shell is for one kernel") };
            let program = build::package("xtask-lab", Profile::Release)?;
            let success = shell::shell(kernel, &product, &program, &self.switches.arguments())?;
            return Ok(if success { ExitCode::Success } else { ExitCode::Failed });
        }
        let mut built = build_tests(&product)?;
        built.choose(&self.test)?;
        let effort = Effort { soak: self.soak, choice: Choice::All, arguments: &self.filter };
        let groups = run(&kernels, &built, &effort)?;
        print!("\n{}", matrix(&kernels, &groups));
        Ok(conclude(&groups, &self.filter))
    }
}
