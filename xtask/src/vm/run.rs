//! Runs groups of tests in machines, as many at once as the host has cores.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Result, bail};

use super::{
    choice::{self, Choice},
    initramfs::quoted,
    kernels::{Expectation, KERNELS, Kernel},
    machine::{self, Accelerator, End},
    room::{Room, slowness},
};
use crate::{
    build::{self, cargo},
    engines, setup,
    test::{Failure, Group, Rerun, Results, Verdict, filters, word},
};

/// How many tests run at once in a machine: many mostly wait.
const THREADS: &str = "2";
/// The folder that the lab's tests run in, as `cargo test` does it.
const TESTS: &str = "tests";
/// The test of a kernel that cannot run the program.
const REFUSAL: (&str, &str) = ("loader", "refusals::a_kernel_that_is_too_old_is_refused_by_what_it_lacks");
/// Groups that take longest, which start first; others in any order after them.
const LONGEST_FIRST: [&str; 3] = ["dataplane", "loader", "lab"];

/// What the host has built for the machines.
pub(crate) struct Built {
    /// `wsl-mirror`.
    pub(crate) product: PathBuf,
    /// Test binaries by the names of their targets.
    pub(crate) groups: Vec<(String, PathBuf)>,
}

impl Built {
    /// Leaves only these test binaries; without names, all.
    pub(super) fn choose(&mut self, names: &[String]) -> Result<()> {
        let known: Vec<&str> = self.groups.iter().map(|(name, _)| name.as_str()).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
            bail!("--test {name}: the lab's test binaries are {}", known.join(", "));
        }
        if !names.is_empty() {
            self.groups.retain(|(name, _)| names.contains(name));
        }
        Ok(())
    }
}

/// One group of tests on one kernel.
struct Job<'a> {
    kernel: &'a Kernel,
    group: String,
    binary: &'a Path,
    arguments: Vec<String>,
    rerun: Rerun,
}

/// Set for the long version of the lab's tests (`wsl_mirror_lab::pace`).
pub(crate) const SOAK: &str = "WSL_MIRROR_LAB_SOAK";

/// Whether tests share labs, and say so (`wsl_mirror_lab::SharedLab`). Machines have the host's setting.
const POOL: &str = "WSL_MIRROR_LAB_POOL";

/// Which tests run, and how long.
pub(crate) struct Effort<'a> {
    pub(crate) soak: bool,
    pub(crate) choice: Choice,
    /// For the test binaries.
    pub(crate) arguments: &'a [String],
}

impl Effort<'_> {
    /// A filter chooses instead of the table of [`choice`].
    fn goes_by_the_table(&self) -> bool {
        self.choice != Choice::All && filters(self.arguments).is_empty()
    }
}

/// Builds the lab's test binaries.
pub(crate) fn build_tests(product: &Path) -> Result<Built> {
    let mut groups = build::tests(build::LAB_PACKAGE)?;
    groups.retain(|(name, _)| name != engines::BINARY);
    Ok(Built { product: product.to_owned(), groups })
}

/// Runs the chosen tests on every kernel, passes their output on, and returns a group for each binary and kernel.
///
/// # Errors
/// qemu cannot be started, or files cannot be written. A failure in a machine is in its group.
pub(crate) fn run(kernels: &[Kernel], built: &Built, effort: &Effort<'_>) -> Result<Vec<Group>> {
    let mut jobs = VecDeque::new();
    for kernel in kernels {
        jobs.extend(jobs_on(kernel, built, effort)?);
    }
    // A kernel may lie in the user's folder only.
    let folder = std::env::var(KERNELS).ok();
    for job in &mut jobs {
        job.rerun = job.rerun.clone().with_variable(KERNELS, folder.as_deref());
    }
    if jobs.is_empty() {
        // `conclude` says that no test has such a name.
        return Ok(Vec::new());
    }
    let room = Room::new(&built.product)?;
    let accelerator = room.accelerator(kernels)?;
    room.expect_complaints_to_be_heard(kernels, accelerator)?;
    jobs.make_contiguous().sort_by_key(|job| {
        LONGEST_FIRST.iter().position(|name| *name == job.group).unwrap_or(LONGEST_FIRST.len())
    });
    if effort.goes_by_the_table() {
        print!("{}", choice::table(effort.choice));
    }
    let machines = at_once().min(jobs.len());
    println!(
        "{} on {}, {machines} machine{} at a time, {}",
        count(jobs.len(), "group"),
        kernels.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
        if machines == 1 { "" } else { "s" },
        match accelerator {
            Accelerator::Kvm => "by KVM",
            Accelerator::Software => "in software (KVM boots nothing here)",
        }
    );

    let (jobs, done) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..machines {
            scope.spawn(|| {
                loop {
                    let Some(job) = jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                        break;
                    };
                    let group = run_job(&room, &job, &script(&job, built, effort, accelerator), accelerator);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(group);
                }
            });
        }
    });
    let mut groups = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    groups.sort_by_key(|group| {
        kernels.iter().position(|kernel| group.name.starts_with(&format!("{} ", kernel.name)))
    });
    let bad = groups.iter().map(|group| group.verdict).find(|verdict| *verdict != Verdict::Ok);
    room.leave(bad.unwrap_or(Verdict::Ok));
    Ok(groups)
}

fn jobs_on<'a>(kernel: &'a Kernel, built: &'a Built, effort: &Effort<'_>) -> Result<Vec<Job<'a>>> {
    let soak = if effort.soak { " --soak" } else { "" };
    let command = format!("cargo xtask vm --kernel {}{soak}", word(&kernel.argument));
    if kernel.expectation == Expectation::Refused {
        // The user's filter does not apply: this kernel has one test.
        let (group, test) = REFUSAL;
        let Some((_, binary)) = built.groups.iter().find(|(name, _)| name == group) else {
            // The user chose other binaries.
            return Ok(Vec::new());
        };
        let arguments = ["--ignored", "--exact", test].map(str::to_owned).to_vec();
        let rerun = Rerun::Command(command);
        return Ok(vec![Job { kernel, group: "refusal".to_owned(), binary, arguments, rerun }]);
    }
    let is_filtered = !filters(effort.arguments).is_empty();
    let mut jobs = Vec::new();
    for (name, binary) in &built.groups {
        let own = if effort.goes_by_the_table() {
            choice::filters_of(effort.choice, name)
        } else {
            Some(Vec::new())
        };
        let Some(own) = own else { continue };
        if let Some(filter) = own.iter().find(|filter| !has_tests(binary, &[filter])) {
            bail!(
                "{name} has no test that is called {filter}*, and the table of tests that face the kernel wants it"
            );
        }
        let arguments = [own.as_slice(), effort.arguments].concat();
        // A machine costs seconds.
        if is_filtered && !has_tests(binary, &arguments) {
            continue;
        }
        let rerun = Rerun::tests(&format!("{command} --test {name}")).with(&arguments);
        jobs.push(Job { kernel, group: name.clone(), binary, arguments, rerun });
    }
    Ok(jobs)
}

/// Whether a test binary would run anything with these arguments. The host asks: a list does not depend on the kernel.
fn has_tests(binary: &Path, arguments: &[impl AsRef<OsStr>]) -> bool {
    let list = Command::new(binary).arg("--list").args(arguments).stdin(Stdio::null()).output();
    // Only the machine's own run can say what is wrong with a binary that lists nothing.
    list.map_or(true, |list| {
        !list.status.success()
            || String::from_utf8_lossy(&list.stdout).lines().any(|line| line.ends_with(": test"))
    })
}

/// Runs a job in a machine. A machine that cannot be made takes nothing from the results of the others.
fn run_job(room: &Room, job: &Job<'_>, script: &str, accelerator: Accelerator) -> Group {
    let started = Instant::now();
    let name = format!("{} {}", job.kernel.name, job.group);
    let mut results = Results::default();
    let end = room.machine(job.kernel, &job.group, script, accelerator).and_then(|machine| {
        machine.run(|line| {
            results.line(line);
            println!("{name} │ {line}");
        })
    });
    let verdict = match end.unwrap_or_else(|error| End::Broken(format!("{error:#}"))) {
        End::Exit(0) if job.kernel.expectation == Expectation::Refused && results.count.passed == 0 => {
            println!("{name} │ the test that has to show the refusal is not there");
            Verdict::Failed
        }
        End::Exit(0) => Verdict::Ok,
        End::Exit(code) => {
            println!("{name} │ ended with {code}");
            Verdict::Failed
        }
        End::Broken(text) => {
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            for line in &lines {
                println!("{name} │ {line}");
            }
            results.failures.push(Failure { test: None, lines });
            Verdict::Failed
        }
    };
    let time = started.elapsed();
    println!("{name} │ {verdict} after {:.0} s", time.as_secs_f32());
    let Results { count, failures, .. } = results;
    Group { count, failures, ..Group::without_tests(&name, verdict, time, job.rerun.clone()) }
}

/// The script of a machine: the lab's environment, and the test binary.
fn script(job: &Job<'_>, built: &Built, effort: &Effort<'_>, accelerator: Accelerator) -> String {
    let mut script = environment(&built.product, accelerator.patience() * slowness(job.kernel));
    if effort.soak {
        let _ = writeln!(script, "export {SOAK}=1");
    }
    if let Ok(pool) = std::env::var(POOL) {
        let _ = writeln!(script, "export {POOL}={}", quoted(&pool));
    }
    script.push_str(&invocation(job.binary, &job.arguments));
    script
}

/// The lab's environment in a machine.
pub(super) fn environment(product: &Path, patience: u32) -> String {
    let mut exports = String::new();
    for (name, value) in setup::environment(OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin")) {
        let _ = writeln!(exports, "export {name}={}", quoted(&value.to_string_lossy()));
    }
    format!(
        "{exports}export HOME=/root LC_ALL=C.UTF-8 RUST_BACKTRACE=0\n\
         export RUST_TEST_THREADS={}\nexport WSL_MIRROR_BIN={} WSL_MIRROR_LAB_PATIENCE={patience}\ncd {} || exit 1\n",
        quoted(&std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| THREADS.to_owned())),
        quoted(&product.to_string_lossy()),
        quoted(&cargo::workspace().join(TESTS).to_string_lossy()),
    )
}

fn invocation(binary: &Path, arguments: &[String]) -> String {
    let mut script = format!("exec {}", quoted(&binary.to_string_lossy()));
    for argument in arguments {
        let _ = write!(script, " {}", quoted(argument));
    }
    script.push('\n');
    script
}

/// As many machines as there are cores, and as there is memory for.
fn at_once() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    // Half of the memory: the host's cache of the files that all machines read is worth more than a machine.
    let fit = available.map_or(1, |kib| kib / 1024 / 2 / machine::MEMORY);
    cores.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str, expectation: Expectation) -> Kernel {
        let (name, argument) = (name.to_owned(), name.to_owned());
        Kernel { name, argument, image: PathBuf::from("/k"), expectation, debug: false }
    }

    fn built() -> Built {
        let group = |name: &str| (name.to_owned(), PathBuf::from(format!("/t/{name}")));
        let groups = ["leftovers", "loader", "packets"].map(group).to_vec();
        Built { product: PathBuf::from("/t/wsl-mirror"), groups }
    }

    fn jobs(kernel: &Kernel, choice: Choice) -> Vec<(String, Vec<String>, Rerun)> {
        let effort = Effort { soak: false, choice, arguments: &[] };
        let built = built();
        let jobs = jobs_on(kernel, &built, &effort).unwrap_or_else(|error| panic!("{error:#}"));
        jobs.into_iter().map(|job| (job.group, job.arguments, job.rerun)).collect()
    }

    #[test]
    fn a_kernel_runs_every_group_or_those_that_differ() {
        let kernel = kernel("6.1", Expectation::Works);
        let names =
            |choice| -> Vec<String> { jobs(&kernel, choice).into_iter().map(|(name, ..)| name).collect() };
        assert_eq!(names(Choice::All), ["leftovers", "loader", "packets"]);
        assert_eq!(names(Choice::FaceTheKernel), ["loader", "packets"]);
        assert_eq!(names(Choice::DifferByKernel), ["loader", "packets"]);
        let (_, arguments, rerun) = &jobs(&kernel, Choice::DifferByKernel)[0];
        assert_eq!(arguments.as_slice(), ["cls_bpf::"]);
        assert_eq!(rerun.group(), "cargo xtask vm --kernel 6.1 --test loader -- cls_bpf::");
        assert_eq!(
            rerun.one("loading::a"),
            "cargo xtask vm --kernel 6.1 --test loader -- --exact loading::a"
        );
    }

    #[test]
    fn the_user_chooses_test_binaries() {
        let mut chosen = built();
        chosen.choose(&["packets".to_owned()]).unwrap();
        assert_eq!(chosen.groups.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["packets"]);
        let error = built().choose(&["packet".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "--test packet: the lab's test binaries are leftovers, loader, packets");
    }

    #[test]
    fn a_kernel_that_has_to_be_refused_runs_only_that_test() {
        let jobs = jobs(&kernel("5.10", Expectation::Refused), Choice::All);
        let [(group, arguments, rerun)] = jobs.as_slice() else { panic!("{jobs:?}") };
        assert_eq!((group.as_str(), arguments.len()), ("refusal", 3));
        assert_eq!(rerun.one(REFUSAL.1), "cargo xtask vm --kernel 5.10");
    }

    #[test]
    fn the_test_of_the_refusal_is_there() {
        let (binary, test) = REFUSAL;
        let (module, name) = test.split_once("::").unwrap_or_else(|| panic!("{test}"));
        let file = cargo::workspace().join(format!("tests/scenarios/{binary}/{module}.rs"));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(text.contains(&format!("fn {name}(")), "{test}");
    }

    #[test]
    fn a_job_runs_its_binary_with_the_arguments_as_they_are() {
        let script = invocation(Path::new("/t/it's"), &["--exact".to_owned(), "a b".to_owned()]);
        assert_eq!(script, "exec '/t/it'\\''s' '--exact' 'a b'\n");
        let script = environment(Path::new("/t/wsl-mirror"), 4);
        assert!(script.contains("WSL_MIRROR_BIN='/t/wsl-mirror' WSL_MIRROR_LAB_PATIENCE=4\n"), "{script}");
    }
}
