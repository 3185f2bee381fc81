//! The daemon: in a PID and a mount namespace of its own, with all its files in the guest's memory.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    mount::{MountFlags, mount, mount_bind_recursive},
    process::{chdir, chroot, setsid},
    thread::UnshareFlags,
};

use crate::{
    Lab, Namespace, SCRATCH,
    cgroups::LabCgroup,
    namespace::{HELPER_PATH, unshare},
    process::{COMMAND_LIMIT, Finished, run, wait, wait_for},
};

/// How dockerd is started. The defaults are those of an installation that nobody has configured.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// Docker's `--userland-proxy`: docker-proxy serves published ports (Docker's default), or dockerd holds
    /// them without ever accepting.
    pub userland_proxy: bool,
    /// The bridge's address and prefix (`--bip`), where Docker's choice will not do.
    pub bip: Option<String>,
    /// More arguments for dockerd.
    pub extra_args: Vec<String>,
    /// More variables in dockerd's environment.
    pub environment: Vec<(String, String)>,
    /// A folder with another Linux in it, whose dockerd (with its containerd, runc and iptables) is to be run
    /// instead of this machine's. Nothing is written to it.
    pub root: Option<PathBuf>,
    /// The daemon; on Debian the packaged one, whatever else is in the search path.
    pub dockerd: PathBuf,
    /// The client, of this machine also when `root` is given.
    pub client: PathBuf,
}

impl Default for DockerOptions {
    fn default() -> Self {
        Self {
            userland_proxy: true,
            bip: None,
            extra_args: Vec::new(),
            environment: Vec::new(),
            root: None,
            dockerd: "/usr/sbin/dockerd".into(),
            client: "/usr/bin/docker".into(),
        }
    }
}

/// Not the caller's: there may be another containerd, runc or docker-proxy in it.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's own first start on a slow disk takes seconds; here it is a fraction of one.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running dockerd. Dropping it kills it with everything that it started, containers included.
#[derive(Debug)]
pub struct Docker {
    guest: Namespace,
    options: DockerOptions,
    /// Shared with the lab, and removed after both are gone, in whatever order.
    _cgroup: Arc<LabCgroup>,
    /// What is the engine's own below it.
    group: String,
    /// In the guest: data, sockets, log.
    directory: String,
    /// `lab-helper init`; its standard input is what keeps it, and so dockerd, alive.
    init: Option<Child>,
}

impl Docker {
    /// Starts dockerd in the guest and imports the image; back when it can run containers.
    pub fn start(lab: &Lab, options: &DockerOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut docker = Self {
            guest: lab.guest().clone(),
            options: options.clone(),
            group: format!("{}/docker-{count}", lab.cgroup().name()),
            _cgroup: lab.cgroup(),
            directory: format!("{SCRATCH}/docker-{count}"),
            init: None,
        };
        let directory = &docker.directory;
        docker.guest.enter(|| fs::create_dir(directory)).with_context(|| format!("creating {directory}"))?;
        docker.start_daemon()?;
        docker.import_image()?;
        Ok(docker)
    }

    /// Kills dockerd with its containers, as a power cut would, and starts it again on the same data: networks
    /// and containers are known to it, none of them runs.
    pub fn restart_daemon(&mut self) -> Result<()> {
        self.kill();
        self.start_daemon()
    }

    /// Runs the docker client to its end and wants it to succeed.
    pub fn cli(&self, arguments: &[&str]) -> Result<Finished> {
        run(self.client().args(arguments), COMMAND_LIMIT)?.success().map_err(|error| self.with_log(&error))
    }

    /// The docker client, speaking to this daemon.
    pub fn client(&self) -> Command {
        let mut client = self.guest.command(&self.options.client);
        client
            .env("DOCKER_HOST", format!("unix://{}", self.socket()))
            .env("DOCKER_CONFIG", &self.directory)
            .env_remove("DOCKER_CONTEXT");
        client
    }

    /// Whether it has not ended by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        self.init.as_mut().is_some_and(|init| matches!(init.try_wait(), Ok(None)))
    }

    /// All that dockerd (and its containerd) has printed.
    pub fn log(&self) -> String {
        let path = format!("{}/log", self.directory);
        self.guest.enter(|| fs::read_to_string(&path)).unwrap_or_else(|error| format!("(no {path}: {error})"))
    }

    /// Where this daemon listens, inside the guest.
    pub fn socket(&self) -> String {
        format!("{}/sock", self.directory)
    }

    pub(super) fn directory(&self) -> &str {
        &self.directory
    }

    pub(super) fn guest(&self) -> &Namespace {
        &self.guest
    }

    /// `error`, with the end of dockerd's log below it.
    pub(super) fn with_log(&self, error: &anyhow::Error) -> anyhow::Error {
        let log = self.log();
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("level=info")).collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
        anyhow!("{error:#}\ndockerd's log ends with (info left out):\n  {tail}")
    }

    fn start_daemon(&mut self) -> Result<()> {
        self.init = Some(self.spawn_init()?);
        self.wait_until_up().map_err(|error| self.with_log(&error))
    }

    fn spawn_init(&self) -> Result<Child> {
        let directory = &self.directory;
        let log = self
            .guest
            .enter(|| File::options().create(true).append(true).open(format!("{directory}/log")))
            .context("creating dockerd's log")?;
        let mut init = Command::new(HELPER_PATH);
        init.args(["init", &self.group]).arg(&self.options.dockerd);
        init.args(["--host", &format!("unix://{}", self.socket())]);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            init.args([option, &format!("{directory}/{name}")]);
        }
        // vfs works on every file system, and these images are too small for overlays to be any faster.
        init.args(["--storage-driver", "vfs"]);
        // systemd, the default on cgroup v2, would have to be asked to make groups; this one makes directories.
        init.args([
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--cgroup-parent",
            &format!("/{}/containers", self.group),
        ]);
        init.arg(format!("--userland-proxy={}", self.options.userland_proxy));
        if let Some(bip) = &self.options.bip {
            init.args(["--bip", bip]);
        }
        init.args(&self.options.extra_args);
        init.env("PATH", SEARCH_PATH).env("HOME", directory).env_remove("DOCKER_HOST").env_remove("TMPDIR");
        init.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        init.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).current_dir("/");

        let join = self.guest.joiner();
        let root = self.options.root.as_deref().map(|root| OtherRoot::new(root, directory)).transpose()?;
        if let Some(root) = &root {
            self.guest.enter(|| root.create_directories())?;
        }
        let enter = move || {
            // A Ctrl-C at the terminal is for us alone; dockerd then goes with us, at once.
            setsid()?;
            join()?;
            unshare(UnshareFlags::NEWNS)?;
            // This is process 1 of a new PID namespace, and dockerd asks /proc about its own kind.
            mount(c"proc", c"/proc", c"proc", MountFlags::empty(), None::<&CStr>)?;
            if let Some(root) = &root {
                root.enter()?;
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls, on descriptors and strings that are there; it
        // allocates nothing and takes no lock.
        unsafe { init.pre_exec(enter) };
        // The PID namespace of its children belongs to a thread: hence one for this child alone.
        let spawned = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(UnshareFlags::NEWPID).context("making a PID namespace")?;
                    init.spawn().with_context(|| format!("starting {}", self.options.dockerd.display()))
                })
                .join()
        });
        spawned.unwrap_or_else(|_| bail!("the thread that starts dockerd panicked"))
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let socket = self.socket();
        let guest = self.guest.clone();
        let what = format!("{} to answer", self.options.dockerd.display());
        wait_for(&what, START_LIMIT, || {
            if let Some(init) = &mut self.init
                && let Some(status) = init.try_wait()?
            {
                bail!("it has ended, {status}");
            }
            Ok(guest.enter(|| ping(&socket)).ok().flatten())
        })
    }

    /// Kills dockerd's PID namespace and waits until the last process of it is gone.
    fn kill(&mut self) {
        let Some(mut init) = self.init.take() else { return };
        // As if we died: it then kills all others, and removes their cgroup before it goes.
        drop(init.stdin.take());
        if !wait(&mut init, Duration::from_secs(10)).unwrap_or(false) {
            // zap_pid_ns_processes(): process 1 is not reaped before all others are.
            let _ = init.kill();
        }
        let _ = init.wait();
        // As /run after a reboot: the process ids in there would be taken for those of processes that live.
        let directory = &self.directory;
        self.guest.enter(|| {
            for name in ["sock", "pid"] {
                let _ = fs::remove_file(format!("{directory}/{name}"));
            }
            let _ = fs::remove_dir_all(format!("{directory}/exec"));
        });
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Another Linux' files below an overlay that takes what is written.
struct OtherRoot {
    own: PathBuf,
    merged: CString,
    options: CString,
    /// From this machine to there: what must be the kernel's and the guest's.
    shared: [(&'static CStr, CString); 4],
}

impl OtherRoot {
    fn new(root: &Path, directory: &str) -> Result<Self> {
        let text = |path: String| CString::new(path).context("a path with a NUL byte");
        let own = Path::new(directory).join("root");
        let (lower, at) = (root.display(), own.display());
        let shared = |path: &'static CStr| -> Result<_> {
            Ok((path, text(format!("{at}/merged{}", path.to_string_lossy()))?))
        };
        Ok(Self {
            merged: text(format!("{at}/merged"))?,
            options: text(format!("lowerdir={lower},upperdir={at}/upper,workdir={at}/work"))?,
            shared: [shared(c"/proc")?, shared(c"/sys")?, shared(c"/dev")?, shared(c"/run")?],
            own,
        })
    }

    fn create_directories(&self) -> Result<()> {
        for name in ["merged", "upper", "work"] {
            let path = self.own.join(name);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(())
    }

    /// Between fork and exec: system calls only.
    fn enter(&self) -> rustix::io::Result<()> {
        let merged = self.merged.as_c_str();
        mount(c"overlay", merged, c"overlay", MountFlags::empty(), Some(self.options.as_c_str()))?;
        for (from, to) in &self.shared {
            mount_bind_recursive(*from, to.as_c_str())?;
        }
        chroot(merged)?;
        chdir(c"/")
    }
}

/// Whether the daemon says that it is there. It opens its socket long before it answers.
fn ping(socket: &str) -> std::io::Result<Option<()>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer)?;
    Ok(answer[..length].windows(3).any(|window| window == b"200").then_some(()))
}
