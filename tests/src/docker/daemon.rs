//! The daemon: in a PID and a mount namespace of its own, with all its files in the guest's memory.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    Lab, Namespace, SCRATCH,
    cgroups::LabCgroup,
    engine::{
        SEARCH_PATH,
        image::{self, IMAGE},
        init,
        root::OtherRoot,
    },
    namespace::HELPER_PATH,
    pace,
    process::{COMMAND_LIMIT, Finished, run, wait_for},
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
    /// instead of this machine's. Nothing is written to it; it has a `/usr/bin/wslinfo` if the lab has.
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
    /// Whether `root` gets what WSL is detected by; without one, that is with the guest.
    wslinfo: bool,
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
            wslinfo: lab.has_wslinfo(),
            init: None,
        };
        let directory = &docker.directory;
        docker.guest.enter(|| fs::create_dir(directory)).with_context(|| format!("creating {directory}"))?;
        docker.start_daemon()?;
        image::with_tar(&docker.guest, &docker.directory, |tar| {
            docker.cli(&["import", tar, IMAGE]).map(drop)
        })?;
        Ok(docker)
    }

    /// Kills dockerd with its containers, as a power cut would, and starts it again on the same data: networks
    /// and containers are known to it, none of them runs.
    pub fn restart_daemon(&mut self) -> Result<()> {
        self.kill();
        self.start_daemon()
    }

    /// The same, with docker-proxy from now on.
    pub fn restart_daemon_with_proxy(&mut self) -> Result<()> {
        self.options.userland_proxy = true;
        self.restart_daemon()
    }

    /// The same, without docker-proxy from now on.
    pub fn restart_daemon_without_proxy(&mut self) -> Result<()> {
        self.options.userland_proxy = false;
        self.restart_daemon()
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
        let mut up = self.wait_until_up();
        // dockerd gives its containerd 15 seconds to come up, on whatever machine. Emulated CPUs may need more for the
        // first time, and less when everything was read once.
        if up.is_err() && pace::is_emulated() && self.log().contains("timeout waiting for containerd") {
            self.kill();
            self.init = Some(self.spawn_init()?);
            up = self.wait_until_up();
        }
        up.map_err(|error| self.with_log(&error))
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

        let root = self.options.root.as_deref().map(|root| OtherRoot::new(root, directory)).transpose()?;
        if let Some(root) = &root {
            self.guest.enter(|| root.create(self.wslinfo))?;
        }
        init::spawn(&mut init, &self.guest, root)
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
        init::kill(&mut init);
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

/// Whether the daemon says that it is there. It opens its socket long before it answers.
fn ping(socket: &str) -> std::io::Result<Option<()>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer)?;
    Ok(answer[..length].windows(3).any(|window| window == b"200").then_some(()))
}
