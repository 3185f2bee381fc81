//! Runs the lab's tests in virtual machines, on kernels other than this one.
//!
//! A machine runs one group of tests (one test binary) on one kernel, and as many machines run at once as the host
//! has cores: emulated ones use a core each. They see the host's files, read-only, so that what was built here runs
//! there, and engines and tools are those of the host.

mod console;
mod initramfs;
mod kernels;
mod machine;

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use initramfs::quoted;
use machine::{Accelerator, End, Machine};

pub(crate) use kernels::{Kernel, Selection, get as kernels, list};

use crate::{
    cargo, engines,
    libtest::{Count, Failure, Told},
    report::{Group, Verdict},
    setup, table,
};
use kernels::Expectation;

/// How many tests run at once in a machine: while one waits for what shall not come, another works.
const THREADS: &str = "2";
/// The folder that the lab's tests run in, as `cargo test` does it.
const TESTS: &str = "tests";
/// The test that a kernel has to pass that cannot run the program.
const REFUSAL: (&str, &str) = ("loader", "refusals::a_kernel_that_is_too_old_is_refused_by_what_it_lacks");
/// Groups that take longest, which start first; others in any order after them.
const LONGEST_FIRST: [&str; 3] = ["dataplane", "loader", "lab"];

/// What there is to run: built on the host, run in machines.
pub(crate) struct Built {
    /// `wsl-mirror`.
    pub(crate) product: PathBuf,
    /// Test binaries by the names of their targets.
    pub(crate) groups: Vec<(String, PathBuf)>,
}

/// One group of tests on one kernel.
struct Job<'a> {
    kernel: &'a Kernel,
    group: String,
    script: String,
}

/// Set for the long version of the lab's tests (`wsl_mirror_lab::pace`).
pub(crate) const SOAK: &str = "WSL_MIRROR_LAB_SOAK";

/// Whether tests share labs, and say so (`wsl_mirror_lab::SharedLab`); as it is here.
const POOL: &str = "WSL_MIRROR_LAB_POOL";

/// How the tests are run.
pub(crate) struct Effort<'a> {
    pub(crate) soak: bool,
    /// For the test binaries.
    pub(crate) arguments: &'a [String],
}

/// Whether machines are made on hosts like this one.
pub(crate) fn possible() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("virtual machines are made for x86_64 hosts only, and this is {}", std::env::consts::ARCH);
    }
    Ok(())
}

/// Builds the lab's test binaries.
pub(crate) fn build(product: &Path) -> Result<Built> {
    let mut groups = cargo::build_tests(cargo::LAB_PACKAGE)?;
    groups.retain(|(name, _)| name != engines::BINARY);
    Ok(Built { product: product.to_owned(), groups })
}

/// Runs every group on every kernel, with every line as it comes, and returns what each came to.
///
/// # Errors
/// qemu cannot be started, or files cannot be written. What happens in a machine is in the groups.
pub(crate) fn run(kernels: &[Kernel], built: &Built, effort: &Effort<'_>) -> Result<Vec<Group>> {
    let room = Room::new(&built.product)?;
    let accelerator = room.accelerator(kernels)?;
    room.expect_complaints_to_be_heard(kernels, accelerator)?;
    let mut jobs = VecDeque::new();
    for kernel in kernels {
        jobs.extend(groups_on(kernel, built)?.into_iter().map(|(group, binary, more)| {
            // The one test of a kernel that is refused is not for the user to choose.
            let chosen = effort.arguments.iter().map(String::as_str).filter(|_| more.is_empty());
            let arguments: Vec<&str> = more.iter().copied().chain(chosen).collect();
            let mut script = environment(&built.product, accelerator.patience() * slowness(kernel));
            if effort.soak {
                let _ = writeln!(script, "export {SOAK}=1");
            }
            if let Ok(pool) = std::env::var(POOL) {
                let _ = writeln!(script, "export {POOL}={}", quoted(&pool));
            }
            script.push_str(&invocation(&binary, &arguments));
            Job { kernel, group, script }
        }));
    }
    jobs.make_contiguous().sort_by_key(|job| {
        LONGEST_FIRST.iter().position(|name| *name == job.group).unwrap_or(LONGEST_FIRST.len())
    });
    let machines = at_once().min(jobs.len());
    println!(
        "{} on {}, {machines} machine{} at a time, {}",
        count(jobs.len(), "group"),
        kernels.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
        if machines == 1 { "" } else { "s" },
        match accelerator {
            Accelerator::Kvm => "by KVM",
            Accelerator::Software => "in software (KVM does not boot anything here)",
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
                    let group = room.run(&job, accelerator);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(group);
                }
            });
        }
    });
    let mut groups = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    groups.sort_by_key(|group| {
        kernels.iter().position(|kernel| group.name.starts_with(&format!("{} ", kernel.name)))
    });
    room.leave(groups.iter().all(|group| group.verdict == Verdict::Ok));
    Ok(groups)
}

/// A prompt in a machine, in the lab: `program` is run there, with this terminal as its own.
pub(crate) fn shell(kernel: &Kernel, product: &Path, program: &Path) -> Result<bool> {
    let room = Room::new(product)?;
    let accelerator = room.accelerator(std::slice::from_ref(kernel))?;
    let mut script = environment(product, accelerator.patience());
    let _ = write!(
        script,
        "stty rows {} cols {} 2>/dev/null\nexport TERM={}\nexec {} shell\n",
        size("rows"),
        size("cols"),
        quoted(&std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned())),
        quoted(&program.to_string_lossy())
    );
    let machine = room.machine(kernel, "shell", &script, accelerator)?;
    eprintln!("Linux {} starts; it takes some seconds. `exit` ends it, Ctrl-A x cuts it off.", kernel.name);
    match machine.run_on_this_terminal()? {
        End::Exit(_) => {
            room.leave(true);
            Ok(true)
        }
        End::Broken(text) => {
            eprintln!("xtask: {text}");
            room.leave(false);
            Ok(false)
        }
    }
}

/// Rows or columns of this terminal: a virtual console does not learn them by itself.
fn size(which: &str) -> String {
    let output = std::process::Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut words = text.split_whitespace();
    let (rows, columns) = (words.next().unwrap_or("24"), words.next().unwrap_or("80"));
    if which == "rows" { rows.to_owned() } else { columns.to_owned() }
}

/// The results as one table: kernels side by side, a line for each group.
pub(crate) fn matrix(kernels: &[Kernel], groups: &[Group]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in groups.iter().filter_map(|group| group.name.split_once(' ')).map(|(_, name)| name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let heading: Vec<String> =
        ["group".to_owned()].into_iter().chain(kernels.iter().map(|kernel| kernel.name.clone())).collect();
    let mut rows: Vec<Vec<String>> = names
        .into_iter()
        .map(|name| {
            let cells = kernels.iter().map(|kernel| {
                let wanted = format!("{} {name}", kernel.name);
                groups.iter().find(|group| group.name == wanted).map_or_else(|| "·".to_owned(), cell)
            });
            [name.to_owned()].into_iter().chain(cells).collect()
        })
        .collect();
    let sums = kernels.iter().map(|kernel| {
        let of_kernel = |group: &&Group| group.name.starts_with(&format!("{} ", kernel.name));
        let seconds: u64 = groups.iter().filter(of_kernel).map(|group| group.time.as_secs()).sum();
        format!("{seconds} s")
    });
    rows.push(["together".to_owned()].into_iter().chain(sums).collect());
    table::render_any(&heading, &rows, 1)
}

fn cell(group: &Group) -> String {
    let Count { passed, failed, .. } = group.count;
    let seconds = group.time.as_secs();
    match group.verdict {
        Verdict::Ok => format!("{passed} ok, {seconds} s"),
        _ if failed != 0 => format!("{failed} of {} FAILED, {seconds} s", passed + failed),
        _ => format!("BROKEN after {seconds} s"),
    }
}

fn groups_on<'a>(kernel: &Kernel, built: &'a Built) -> Result<Vec<(String, PathBuf, Vec<&'a str>)>> {
    if kernel.expectation == Expectation::Works {
        return Ok(built
            .groups
            .iter()
            .map(|(name, path)| (name.clone(), path.clone(), Vec::new()))
            .collect());
    }
    let (group, test) = REFUSAL;
    let binary = built.groups.iter().find(|(name, _)| name == group);
    let (_, path) = binary.with_context(|| format!("there is no test binary {group}"))?;
    Ok(vec![("refusal".to_owned(), path.clone(), vec!["--ignored", "--exact", test])])
}

/// What the lab finds in its environment in there.
fn environment(product: &Path, patience: u32) -> String {
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

fn invocation(binary: &Path, arguments: &[&str]) -> String {
    let mut script = format!("exec {}", quoted(&binary.to_string_lossy()));
    for argument in arguments {
        let _ = write!(script, " {}", quoted(argument));
    }
    script.push('\n');
    script
}

fn slowness(kernel: &Kernel) -> u32 {
    if kernel.debug { 4 } else { 1 }
}

/// As many machines as there are cores, and as there is memory for.
fn at_once() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    // Half of what is there: the host's cache of the files that all of them read is worth more than a machine.
    let fit = available.map_or(1, |kib| kib / 1024 / 2 / machine::MEMORY);
    cores.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The file by which a folder says that it was left to be looked at.
const LEFT_ON_PURPOSE: &str = "left-to-be-looked-at";

/// Removes the folders of runs that were interrupted. What a run has left to be looked at stays for a day.
fn sweep(rooms: &Path) {
    const A_DAY: Duration = Duration::from_hours(24);
    for entry in fs::read_dir(rooms).into_iter().flatten().flatten() {
        let is_alive = Path::new("/proc").join(entry.file_name()).exists();
        let age = fs::metadata(entry.path().join(LEFT_ON_PURPOSE))
            .and_then(|found| found.modified())
            .ok()
            .map(|time| time.elapsed().unwrap_or_default());
        if !is_alive && age.is_none_or(|age| age > A_DAY) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A folder for what machines are started with and what they write.
struct Room {
    folder: PathBuf,
    busybox: PathBuf,
}

impl Room {
    /// Beside the product, so wherever cargo builds.
    fn new(product: &Path) -> Result<Self> {
        possible()?;
        let parent = product.parent().context("the product lies in no folder")?;
        let folder = parent.join("vm").join(std::process::id().to_string());
        // What another process of this number has left would be taken for ours.
        let _ = fs::remove_dir_all(&folder);
        sweep(&parent.join("vm"));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let busybox = setup::busybox().context("there is no busybox (package busybox-static)")?;
        Ok(Self { folder, busybox })
    }

    /// Removes everything, or says where to look.
    fn leave(&self, all_is_well: bool) {
        if all_is_well {
            let _ = fs::remove_dir_all(&self.folder);
        } else {
            // Without the mark the next run takes it away, and that is all.
            let _ = fs::write(self.folder.join(LEFT_ON_PURPOSE), "");
            eprintln!("xtask: what the kernels said is in {}", self.folder.display());
        }
    }

    fn accelerator(&self, kernels: &[Kernel]) -> Result<Accelerator> {
        let kernel = kernels.first().context("no kernel to run")?;
        let initramfs = self.folder.join("probe.initramfs");
        initramfs::write(&initramfs, &self.busybox, None)?;
        Ok(machine::accelerator(&kernel.image, &initramfs, &self.folder.join("probe")))
    }

    /// A machine whose kernel says a line as it does in trouble, no louder than its warnings are, and whose job ends well: if that passes for well, a
    /// panic would too, and nothing that these runs say is worth anything.
    fn expect_complaints_to_be_heard(&self, kernels: &[Kernel], accelerator: Accelerator) -> Result<()> {
        const COMPLAINT: &str = "WARNING: made up by the tests of the tests";
        let kernel = kernels.first().context("no kernel to run")?;
        let script = format!("echo '<4>{COMPLAINT}' >/dev/kmsg\n");
        let machine = self.machine(kernel, "canary", &script, accelerator)?;
        match machine.run(|_| {})? {
            End::Broken(text) if text.contains(COMPLAINT) => Ok(()),
            End::Broken(text) => bail!("Linux {} does not run a job in here: {text}", kernel.name),
            End::Exit(code) => {
                bail!(
                    "the console of Linux {} is not heard: it complained, and that ended with {code}",
                    kernel.name
                )
            }
        }
    }

    fn machine(&self, kernel: &Kernel, name: &str, job: &str, accelerator: Accelerator) -> Result<Machine> {
        let files = self.folder.join(format!("{}-{name}", kernel.name));
        let initramfs = files.with_file_name(format!("{}-{name}.initramfs", kernel.name));
        initramfs::write(&initramfs, &self.busybox, Some(job))?;
        Ok(Machine { kernel: kernel.image.clone(), initramfs, accelerator, files, slow: slowness(kernel) })
    }

    /// That a machine could not be made takes nothing from what the others found.
    fn run(&self, job: &Job<'_>, accelerator: Accelerator) -> Group {
        let started = Instant::now();
        let name = format!("{} {}", job.kernel.name, job.group);
        let mut told = Told::default();
        let end = self.machine(job.kernel, &job.group, &job.script, accelerator).and_then(|machine| {
            machine.run(|line| {
                told.line(line);
                println!("{name} │ {line}");
            })
        });
        let verdict = match end.unwrap_or_else(|error| End::Broken(format!("{error:#}"))) {
            End::Exit(0) if job.kernel.expectation == Expectation::Refused && told.count.passed == 0 => {
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
                told.failures.push(Failure { test: "the machine".to_owned(), lines });
                Verdict::Failed
            }
        };
        let time = started.elapsed();
        println!("{name} │ {verdict} after {:.0} s", time.as_secs_f32());
        Group { name, verdict, count: told.count, failures: told.failures, time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str, expectation: Expectation) -> Kernel {
        Kernel { name: name.to_owned(), image: PathBuf::from("/k"), expectation, debug: false }
    }

    fn built() -> Built {
        let group = |name: &str| (name.to_owned(), PathBuf::from(format!("/t/{name}")));
        Built { product: PathBuf::from("/t/wsl-mirror"), groups: vec![group("loader"), group("packets")] }
    }

    #[test]
    fn a_kernel_that_has_to_be_refused_runs_only_the_test_of_that() {
        let built = built();
        let works = groups_on(&kernel("6.1", Expectation::Works), &built).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(works.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["loader", "packets"]);
        let refused =
            groups_on(&kernel("5.10", Expectation::Refused), &built).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].0.as_str(), refused[0].2.len()), ("refusal", 3));
    }

    #[test]
    fn folders_of_the_dead_go_unless_they_were_left_on_purpose() -> Result<()> {
        let rooms = std::env::temp_dir().join(format!("wsl-mirror-rooms-{}", std::process::id()));
        // No process can have a number above 4194304.
        let alive = std::process::id().to_string();
        let (interrupted, failed) = ("4194305", "4194306");
        for name in [alive.as_str(), interrupted, failed] {
            fs::create_dir_all(rooms.join(name))?;
        }
        fs::write(rooms.join(failed).join(LEFT_ON_PURPOSE), "")?;
        sweep(&rooms);
        let left = [alive.as_str(), interrupted, failed].map(|name| rooms.join(name).exists());
        fs::remove_dir_all(&rooms)?;
        assert_eq!(left, [true, false, true]);
        Ok(())
    }

    #[test]
    fn a_job_runs_its_binary_with_the_arguments_as_they_are() {
        let script = invocation(Path::new("/t/it's"), &["--exact", "a b"]);
        assert_eq!(script, "exec '/t/it'\\''s' '--exact' 'a b'\n");
        let script = environment(Path::new("/t/wsl-mirror"), 4);
        assert!(script.contains("WSL_MIRROR_BIN='/t/wsl-mirror' WSL_MIRROR_LAB_PATIENCE=4\n"), "{script}");
    }

    #[test]
    fn the_table_has_a_column_for_each_kernel_and_a_line_for_each_group() {
        let group = |name: &str, verdict, passed, failed| Group {
            name: name.to_owned(),
            verdict,
            count: Count { passed, failed, ignored: 0 },
            failures: Vec::new(),
            time: Duration::from_secs(7),
        };
        let groups = [
            group("6.1 packets", Verdict::Ok, 5, 0),
            group("6.1 loader", Verdict::Failed, 4, 1),
            group("5.10 refusal", Verdict::Failed, 0, 0),
        ];
        let kernels = [kernel("6.1", Expectation::Works), kernel("5.10", Expectation::Refused)];
        let text = matrix(&kernels, &groups);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[0], ["group", "6.1", "5.10"]);
        assert_eq!(lines[2], ["packets", "5 ok, 7 s", "·"]);
        assert_eq!(lines[3], ["loader", "1 of 5 FAILED, 7 s", "·"]);
        assert_eq!(lines[4], ["refusal", "·", "BROKEN after 7 s"]);
    }
}
