//! `cargo xtask test`: which suites run, one after the other, and what they came to.

mod cargo_test;
mod fuzz;
mod host;
mod lab;
mod libtest;
mod options;
mod report;
mod rerun;
mod suite;

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    engines,
    exit_code::ExitCode,
    root::is_root,
    setup::{self, Needs, Outcome},
    vm::{self, Effort, Selection},
};
use cargo_test::tests;
pub(crate) use libtest::{Count, Failure, Results, filters};
pub(crate) use options::Test;
use report::heading;
pub(crate) use report::{Group, Verdict, conclude};
pub(crate) use rerun::{Rerun, word};
pub(crate) use suite::Extent;
use suite::Suite;

impl Test {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let extent = if self.all { Extent::Full } else { Extent::Usual };
        let suites = Suite::of_run(&self.suites, extent);
        if self.write && !suites.contains(&Suite::Engines) {
            bail!("--write is for the matrix of engines: cargo xtask test engines --all --write");
        }
        if suites.iter().any(|suite| suite.needs_root()) && !is_root() {
            bail!(
                "the lab builds network namespaces and loads BPF programs, which takes root, and this is not \
                 root. Run this as root (`sudo -E env \"PATH=$PATH\" cargo xtask test`), or run the tests that \
                 need no root: `cargo xtask test host`"
            );
        }
        let mut needs = vec![Needs::Build];
        for suite in &suites {
            if !needs.contains(&suite.needs()) {
                needs.push(suite.needs());
            }
        }
        let mut machines = Machines::Equipped;
        for needs in needs {
            let outcome = setup::ensure(needs);
            if matches!(outcome, Ok(Outcome::Ready(_))) {
                continue;
            }
            if needs != Needs::Vm || !self.may_leave_machines_out() {
                outcome?;
                return Ok(ExitCode::Missing);
            }
            if let Err(error) = outcome {
                eprintln!("xtask: {error:#}");
            }
            machines = Machines::NotHere;
        }
        let run = Run { options: &self, extent, machines, groups: Vec::new(), tables: Vec::new() };
        Ok(run.all(&suites))
    }

    /// The user did not name the suite, and the results of the others stand without it.
    fn may_leave_machines_out(&self) -> bool {
        !self.suites.contains(&Suite::Vm) && env::var_os("CI").is_none()
    }
}

/// Whether set-up has what virtual machines need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machines {
    Equipped,
    NotHere,
}

/// A run, as it goes on.
struct Run<'a> {
    options: &'a Test,
    extent: Extent,
    machines: Machines,
    groups: Vec<Group>,
    /// The tables of suites that have one of their own.
    tables: Vec<String>,
}

impl Run<'_> {
    fn all(mut self, suites: &[Suite]) -> ExitCode {
        let checks = suites.contains(&Suite::Host) && !self.options.has_filter();
        if checks {
            self.groups.extend(host::checks());
        }
        let needs_product = |suite: &Suite| !matches!(suite, Suite::Host | Suite::Fuzz);
        // Once, and before the tests: a lab that ran an older binary would prove nothing.
        let product = (checks || suites.iter().any(needs_product)).then(|| self.product()).flatten();
        for suite in suites {
            let started = Instant::now();
            let result = self.suite(*suite, product.as_deref());
            self.conclude_suite(*suite, result, started.elapsed());
        }
        for table in &self.tables {
            print!("\n{table}");
        }
        conclude(&self.groups, &self.options.filter)
    }

    fn product(&mut self) -> Option<PathBuf> {
        heading("release build");
        let started = Instant::now();
        let product = build::product(Profile::Release);
        if let Err(error) = &product {
            eprintln!("xtask: {error:#}");
        }
        let rerun = Rerun::Command("cargo xtask build".to_owned());
        let verdict = product.as_ref().map_or(Verdict::Failed, |_| Verdict::Ok);
        self.groups.push(Group::without_tests("release build", verdict, started.elapsed(), rerun));
        product.ok()
    }

    /// An error before or after the tests is one failure more, and takes nothing from the results of other suites.
    fn conclude_suite(&mut self, suite: Suite, result: Result<()>, time: Duration) {
        if let Err(error) = result {
            eprintln!("xtask: {error:#}");
            let rerun = self.options.rerun(suite.name());
            self.groups.push(Group::without_tests(suite.name(), Verdict::Failed, time, rerun));
        }
    }

    fn suite(&mut self, suite: Suite, product: Option<&Path>) -> Result<()> {
        let options = self.options;
        match (suite, product) {
            (Suite::Host, _) => {
                heading("unit tests");
                let group =
                    tests("unit tests", &mut host::unit_tests(), &options.filter, options.rerun("host"))?;
                self.groups.push(group);
            }
            (Suite::Fuzz, _) => self.groups.extend(fuzz::run(&options.filter, &options.rerun("fuzz"))),
            (Suite::Lab, Some(product)) => self.groups.push(lab::run(options, product)?),
            (Suite::Engines, Some(product)) => {
                let (group, rows) = lab::engines(options, self.extent, product)?;
                self.groups.push(group);
                self.tables.push(engines::table(&rows));
            }
            (Suite::Vm, _) if self.machines == Machines::NotHere => {
                heading("vm");
                println!("no virtual machines here: set-up could not install what they need");
                let rerun = options.rerun("vm");
                self.groups.push(Group::without_tests("vm", Verdict::NotHere, Duration::ZERO, rerun));
            }
            (Suite::Vm, Some(product)) => self.machines(product),
            (Suite::Dist, Some(product)) => {
                self.groups.push(lab::dist(options, product)?);
                self.groups.push(host::unpacked_packages(options)?);
            }
            (Suite::Lab | Suite::Engines | Suite::Vm | Suite::Dist, None) => {
                let (name, rerun) = (suite.name(), options.rerun(suite.name()));
                self.groups.push(Group::without_tests(name, Verdict::NotRun, Duration::ZERO, rerun));
            }
        }
        Ok(())
    }

    /// Runs the lab's tests on other kernels. A failure before they can run is one failure more, and takes nothing
    /// from the results of other suites.
    fn machines(&mut self, product: &Path) {
        heading("vm");
        let started = Instant::now();
        let options = self.options;
        let folder = env::var(vm::KERNELS).ok();
        let rerun = options.rerun("vm").with_variable(vm::KERNELS, folder.as_deref());
        let group = |verdict| vec![Group::without_tests("vm", verdict, started.elapsed(), rerun.clone())];
        let (selection, choice) = match self.extent {
            Extent::Full => (Selection::Default, vm::Choice::FaceTheKernel),
            Extent::Usual => {
                (Selection::Named(vec![vm::MOST_DIFFERENT.to_owned()]), vm::Choice::DifferByKernel)
            }
        };
        let kernels = match vm::possible().and_then(|()| vm::kernels(&selection)) {
            Ok(kernels) => kernels,
            Err(error) if options.may_leave_machines_out() => {
                println!("no virtual machines here: {error:#}");
                self.groups.extend(group(Verdict::NotHere));
                return;
            }
            Err(error) => {
                eprintln!("xtask: {error:#}");
                self.groups.extend(group(Verdict::Failed));
                return;
            }
        };
        let effort = Effort { soak: options.soak, choice, arguments: &options.filter };
        match vm::build_tests(product).and_then(|built| vm::run(&kernels, &built, &effort)) {
            Ok(groups) => {
                self.tables.push(vm::matrix(&kernels, &groups));
                self.groups.extend(groups);
            }
            Err(error) => {
                eprintln!("xtask: {error:#}");
                self.groups.extend(group(Verdict::Failed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Test {
        Test { suites: Vec::new(), all: false, soak: false, write: false, filter: Vec::new() }
    }

    fn run(options: &Test, machines: Machines) -> Run<'_> {
        Run { options, extent: Extent::Usual, machines, groups: Vec::new(), tables: Vec::new() }
    }

    // A machine without qemu ran no test at all.
    #[test]
    fn a_run_without_qemu_leaves_the_machines_out() {
        let options = options();
        let mut run = run(&options, Machines::NotHere);
        run.suite(Suite::Vm, None).unwrap();
        let verdicts: Vec<_> = run.groups.iter().map(|group| group.verdict).collect();
        assert_eq!(verdicts, [Verdict::NotHere]);
        let named = Test { suites: vec![Suite::Vm], ..options };
        assert!(!named.may_leave_machines_out());
    }

    // The error ended the run without the results of other suites.
    #[test]
    fn an_error_of_a_suite_is_a_failed_group() {
        let options = options();
        let mut run = run(&options, Machines::Equipped);
        run.conclude_suite(Suite::Lab, Ok(()), Duration::ZERO);
        run.conclude_suite(Suite::Engines, Err(anyhow::anyhow!("no mirror")), Duration::ZERO);
        let [group] = run.groups.as_slice() else { panic!("{:?}", run.groups) };
        assert_eq!((group.name.as_str(), group.verdict), ("engines", Verdict::Failed));
        assert_eq!(group.rerun.group(), "cargo xtask test engines");
    }
}
