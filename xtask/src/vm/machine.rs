//! One virtual machine, from its start to its end: qemu, its output, and the verdict on it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::console;
use crate::setup;

/// Whether machines run on hosts like this one.
pub(crate) fn possible() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("virtual machines are made for x86_64 hosts only, and this is {}", std::env::consts::ARCH);
    }
    Ok(())
}

/// How a machine's CPUs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    /// In software. In one thread, however many CPUs the machine has: with a thread each (`thread=multi`), qemu
    /// 7.2 lets one CPU run into an int3 that another has taken away already, and kernels that patch themselves
    /// (jump labels) die of that within a minute. Several machines at a time keep the host's cores busy instead.
    Software,
}

impl Accelerator {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Software => ["-accel", "tcg,thread=single", "-cpu", "max"],
        }
    }

    /// The factor by which a test may take longer than on the host.
    pub(super) fn patience(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Software => 3,
        }
    }
}

/// The kernel's command line. `loglevel=5` shows warnings, and no chatter of engines about bridge ports. `no5lvl`: while
/// `identify_cpu()` has the CPU's features zeroed, an interrupt makes KASAN take five-level addresses for wild ones.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off nokaslr no5lvl";

const QEMU: &str = "qemu-system-x86_64";
/// CPUs of each machine: two, so that what runs at once on the host does so in there.
const CPUS: u32 = 2;
/// The memory of a machine in MiB, which also holds the files that tests write.
pub(super) const MEMORY: u64 = 3072;
/// A machine without output for so long hangs. No test takes half as long.
const SILENCE: Duration = Duration::from_mins(10);
/// The longest time for a group; the longest group takes a quarter of an hour on a busy machine.
const LIMIT: Duration = Duration::from_mins(40);
/// How long KVM may take to boot a machine that does nothing. It takes one second where it works.
const TRIAL: Duration = Duration::from_secs(6);

/// A machine before its start.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) accelerator: Accelerator,
    /// The files of console and control port have this name, with an ending each.
    pub(super) files: PathBuf,
    /// How many times slower than others this kernel is.
    pub(super) slow: u32,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The job's exit code.
    Exit(i32),
    /// The job did not end, or the kernel complained; with the console's lines about it.
    Broken(String),
}

impl Machine {
    fn file(&self, ending: &str) -> PathBuf {
        let mut name = self.files.as_os_str().to_owned();
        name.push(ending);
        name.into()
    }

    fn command(&self) -> Command {
        for ending in [".console", ".control"] {
            // An earlier machine may have left them.
            let _ = fs::remove_file(self.file(ending));
        }
        // qemu goes when we do, however that is; setpriv(1) is util-linux'.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(setup::program(QEMU).unwrap_or_else(|| QEMU.into()));
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(self.accelerator.arguments());
        command.args(["-smp", &CPUS.to_string(), "-m", &MEMORY.to_string()]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", COMMAND_LINE]);
        command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        let chardev = |id: &str, path: &Path| format!("file,id={id},path={}", escaped(path));
        command.args(["-chardev", &chardev("console", &self.file(".console"))]);
        command.args(["-serial", "chardev:console"]);
        command.args(["-chardev", &chardev("control", &self.file(".control"))]);
        command.args(["-device", "virtserialport,chardev=control,name=control"]);
        command
            .args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
        command
    }

    /// Runs the job, hands every line of its output to `on_line`, and waits for the end.
    pub(super) fn run(&self, on_line: impl FnMut(&str)) -> Result<End> {
        let mut command = self.command();
        command.args(["-chardev", "stdio,id=output,signal=off"]);
        command.args(["-device", "virtserialport,chardev=output,name=output"]);
        let limits = Limits { silence: SILENCE * self.slow, all: LIMIT * self.slow };
        let (timed_out, said) = run_until(command, limits, on_line)?;
        let hung = timed_out.then(|| {
            let Limits { silence, all } = limits;
            format!("it hung: no output for {} s, or no end after {} s", silence.as_secs(), all.as_secs())
        });
        Ok(self.end(hung, &said))
    }

    /// Runs the job with our terminal as its own.
    pub(super) fn run_on_this_terminal(&self) -> Result<End> {
        let mut command = self.command();
        // With `mux=on` there is a way out of a machine that hangs: Ctrl-A x.
        command.args(["-chardev", "stdio,id=terminal,signal=off,mux=on"]);
        command.args(["-device", "virtconsole,chardev=terminal"]);
        command.status().context("starting qemu-system-x86_64")?;
        Ok(self.end(None, ""))
    }

    /// Whether this machine comes up at all: a trial of its accelerator.
    fn comes_up(&self) -> bool {
        let mut command = self.command();
        command.args(["-chardev", "stdio,id=output,signal=off"]);
        command.args(["-device", "virtserialport,chardev=output,name=output"]);
        let started = run_until(command, Limits { silence: TRIAL, all: TRIAL }, |_| {});
        started.is_ok_and(|(timed_out, _)| !timed_out) && self.control().contains("up ")
    }

    fn control(&self) -> String {
        fs::read_to_string(self.file(".control")).unwrap_or_default()
    }

    fn end(&self, hung: Option<String>, qemu: &str) -> End {
        let console = fs::read(self.file(".console")).unwrap_or_default();
        judge(&String::from_utf8_lossy(&console), &self.control(), hung, qemu)
    }
}

/// The verdict, from console and control port.
fn judge(console: &str, control: &str, hung: Option<String>, qemu: &str) -> End {
    if let Some((kind, text)) = console::complaint(console) {
        return End::Broken(format!("the kernel complained ({kind}):\n{text}"));
    }
    let said = |word: &str| {
        control.lines().rev().find_map(|line| line.strip_prefix(word)?.trim().parse::<i32>().ok())
    };
    if let Some(reason) = hung {
        return End::Broken(format!("{reason}; its console ends with:\n{}", console::tail(console)));
    }
    // TAINT_WARN: a warning that the console did not show.
    if said("tainted").is_some_and(|bits| bits & (1 << 9) != 0) {
        return End::Broken("the kernel warned of something, and did not print it (taint W)".to_owned());
    }
    if let Some(code) = said("exit") {
        return End::Exit(code);
    }
    let words = if qemu.trim().is_empty() { console::tail(console) } else { qemu.trim().to_owned() };
    End::Broken(format!("the machine ended before its job did:\n{words}"))
}

/// The longest times for a machine.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Between two lines.
    silence: Duration,
    /// From start to end.
    all: Duration,
}

/// Runs qemu, and returns whether it hung and was killed, and its standard error.
fn run_until(mut command: Command, limits: Limits, mut on_line: impl FnMut(&str)) -> Result<(bool, String)> {
    let mut child = command
        // Open and silent: at the end of its input qemu takes the port for unplugged, and a writer in the machine
        // waits for ever.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting qemu-system-x86_64 (by setpriv)")?;
    let input = child.stdin.take();
    let (send, receive) = mpsc::channel();
    let stdout = child.stdout.take().context("qemu's output is piped")?;
    let lines = thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line).is_ok_and(|length| length != 0) {
            if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    let mut stderr = child.stderr.take().context("qemu's errors are piped")?;
    let errors = thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        text
    });
    let deadline = Instant::now() + limits.all;
    let timed_out = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receive.recv_timeout(limits.silence.min(left)) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if timed_out || !ends_soon(&mut child) {
        child.kill().context("killing qemu")?;
    }
    drop(input);
    child.wait().context("waiting for qemu")?;
    let _ = lines.join();
    Ok((timed_out, errors.join().unwrap_or_default()))
}

/// Whether qemu exits soon after the end of its output.
fn ends_soon(child: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// KVM where it boots this kernel. The device alone proves nothing.
pub(super) fn accelerator(kernel: &Path, initramfs: &Path, files: &Path) -> Accelerator {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Accelerator::Software;
    }
    let machine = Machine {
        kernel: kernel.to_owned(),
        initramfs: initramfs.to_owned(),
        accelerator: Accelerator::Kvm,
        files: files.to_owned(),
        slow: 1,
    };
    if machine.comes_up() { Accelerator::Kvm } else { Accelerator::Software }
}

/// In qemu's options a comma ends a value, and two commas are one.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: &str = "[    0.0] Linux version 6.12.117\n[    9.9] reboot: Power down\n";

    fn broken(end: End) -> String {
        match end {
            End::Broken(text) => text,
            End::Exit(code) => panic!("it ended with {code}"),
        }
    }

    #[test]
    fn a_calm_machine_has_the_code_of_its_job() {
        assert_eq!(judge(CALM, "up 6.12.117 1.8\ntainted 0\nexit 101\n", None, ""), End::Exit(101));
        // Taints of modules: proprietary, out of tree.
        assert_eq!(judge(CALM, "up 6.12.117 1.8\ntainted 4097\nexit 0\n", None, ""), End::Exit(0));
    }

    #[test]
    fn a_complaint_outweighs_tests_that_passed() {
        let console = format!("{CALM}BUG: KASAN: slab-use-after-free in nf_ct_put\n");
        assert!(broken(judge(&console, "up x 1\nexit 0\n", None, "")).contains("nf_ct_put"));
        assert!(broken(judge(CALM, "up x 1\ntainted 512\nexit 0\n", None, "")).contains("taint W"));
    }

    #[test]
    fn a_machine_without_an_end_is_broken() {
        let hung = broken(judge(CALM, "up x 1\n", Some("it hung".to_owned()), ""));
        assert!(hung.contains("hung") && hung.contains("Power down"), "{hung}");
        let dead = broken(judge("", "", None, "qemu-system-x86_64: no such option"));
        assert!(dead.contains("no such option"), "{dead}");
    }

    #[test]
    fn silence_ends_a_machine_and_keeps_its_errors() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo why >&2; exec sleep 30"]);
        let mut lines = Vec::new();
        let limits = Limits { silence: Duration::from_millis(300), all: Duration::from_mins(1) };
        let started = Instant::now();
        let (timed_out, said) = run_until(command, limits, |line| lines.push(line.to_owned()))
            .unwrap_or_else(|error| panic!("{error:#}"));
        assert!(timed_out && started.elapsed() < Duration::from_secs(10));
        assert_eq!((lines, said.trim()), (vec!["first".to_owned()], "why"));
    }

    #[test]
    fn output_does_not_keep_a_machine_alive_for_ever() {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do echo still here; sleep 0.05; done"]);
        let limits = Limits { silence: Duration::from_secs(20), all: Duration::from_millis(500) };
        let started = Instant::now();
        let (timed_out, _) = run_until(command, limits, |_| {}).unwrap_or_else(|error| panic!("{error:#}"));
        assert!(timed_out && started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_comma_in_a_path_is_no_end() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }
}
