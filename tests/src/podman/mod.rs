//! A real Podman in the guest, of another Linux' files. It has no daemon: what it starts lives in a PID namespace
//! whose first process goes with ours.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{Mode, OFlags, open},
    process::{chdir, chroot, fchdir},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    Container, Lab, Namespace, Running, SCRATCH, Service,
    cgroups::LabCgroup,
    engine::{
        SEARCH_PATH,
        image::{self, IMAGE},
        init,
        root::OtherRoot,
    },
    namespace::HELPER_PATH,
    process::{COMMAND_LIMIT, Finished, run_started_by},
};

/// Who makes Podman's networks and publishes its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkBackend {
    /// netavark, the default from 4.0 on.
    Netavark,
    /// CNI's plugins `bridge` and `portmap`, up to 4.x.
    Cni,
}

/// How Podman is run.
#[derive(Debug, Clone)]
pub struct PodmanOptions {
    /// A folder with another Linux in it, whose Podman is run. Nothing is written to it.
    pub root: PathBuf,
    /// Who makes its networks.
    pub network: NetworkBackend,
}

/// A Podman with its containers. Dropping it kills them.
#[derive(Debug)]
pub struct Podman {
    guest: Namespace,
    /// Shared with the lab, and removed after both are gone, in whatever order.
    _cgroup: Arc<LabCgroup>,
    /// What takes a process into the part of it that is this engine's.
    processes: PathBuf,
    /// In the guest: images, containers, configuration.
    directory: String,
    /// `lab-helper init`; its standard input is what keeps it, and so all containers, alive.
    init: Child,
    /// Of `init`: what a podman has to enter.
    world: Arc<World>,
}

/// The namespaces in which containers live, and the root of their files.
#[derive(Debug)]
struct World {
    pid: OwnedFd,
    mount: OwnedFd,
    net: OwnedFd,
    root: OwnedFd,
}

impl World {
    fn of(process: u32) -> Result<Self> {
        let open = |name: &str| -> Result<OwnedFd> {
            let path = format!("/proc/{process}/{name}");
            Ok(File::open(&path).with_context(|| format!("opening {path}"))?.into())
        };
        Ok(Self { pid: open("ns/pid")?, mount: open("ns/mnt")?, net: open("ns/net")?, root: open("root")? })
    }

    /// Between fork and exec: system calls only.
    fn enter(&self) -> rustix::io::Result<()> {
        move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network))?;
        move_into_link_name_space(self.mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
        // setns(2) has moved us to the root of those mounts, which is not that of those processes.
        fchdir(&self.root)?;
        chroot(c".")?;
        chdir(c"/")
    }
}

impl Podman {
    /// Prepares it, and imports the image; back when it can run containers.
    pub fn start(lab: &Lab, options: &PodmanOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = format!("{SCRATCH}/podman-{count}");
        let (guest, cgroup) = (lab.guest().clone(), lab.cgroup());
        let root = OtherRoot::new(&options.root, &directory)?.with_cgroup2()?;
        let set_up = || -> Result<()> {
            fs::create_dir(&directory).with_context(|| format!("creating {directory}"))?;
            root.create(lab.has_wslinfo())?;
            let configuration = format!("{directory}/containers.conf");
            fs::write(&configuration, containers_conf(options.network))
                .with_context(|| format!("writing {configuration}"))
        };
        guest.enter(set_up)?;

        let mut holder = Command::new(HELPER_PATH);
        // Its one task is to be there. busybox is in the image only, and a folder of engines may have no shell.
        let group = format!("podman-{count}");
        holder.args(["init", &format!("{}/{group}", cgroup.name()), HELPER_PATH, "hold"]);
        holder.env("PATH", SEARCH_PATH).current_dir("/");
        holder.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut init = init::spawn(&mut holder, &guest, Some(root))?;
        let world = match World::of(init.id()) {
            Ok(world) => Arc::new(world),
            Err(error) => {
                init::kill(&mut init);
                return Err(error);
            }
        };
        let processes = cgroup.directory(&format!("{group}/containers"))?.join("cgroup.procs");
        let podman = Self { guest, _cgroup: cgroup, processes, directory, init, world };
        image::with_tar(&podman.guest, &podman.directory, |tar| {
            podman.cli(&["import", tar, IMAGE]).map(drop)
        })?;
        Ok(podman)
    }

    /// Runs podman to its end and wants it to succeed.
    pub fn cli(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.command();
        run_started_by(|podman| self.spawn(podman), command.args(arguments), "", COMMAND_LIMIT)?.success()
    }

    /// The PID namespace of its children belongs to a thread, which then cannot have threads of its own: hence one
    /// that does nothing else.
    fn spawn(&self, podman: &mut Command) -> Result<Child> {
        let spawned = thread::scope(|scope| {
            let spawn = || {
                move_into_link_name_space(self.world.pid.as_fd(), Some(LinkNameSpaceType::ProcessID))
                    .context("entering the PID namespace of the containers")?;
                Ok(podman.spawn()?)
            };
            scope.spawn(spawn).join()
        });
        spawned.unwrap_or_else(|_| bail!("the thread that starts podman panicked"))
    }

    /// Runs a container; back when all its services answer on its own address.
    pub fn run(&self, container: Container) -> Result<Running> {
        let line = container.command_line(&["--cgroups=disabled"]);
        self.cli(&line.iter().map(String::as_str).collect::<Vec<_>>())?;
        let (name, services) = container.into_parts();
        self.wait_for_services(&name, services)
    }

    /// `podman stop` (without its patience: there is nothing to be saved).
    pub fn stop(&self, container: &Running) -> Result<Finished> {
        self.cli(&["stop", "--time", "0", container.name()])
    }

    /// `podman start`, and waits for the services; the address may be another one.
    pub fn start_again(&self, container: &Running) -> Result<Running> {
        self.cli(&["start", container.name()])?;
        self.wait_for_services(container.name(), container.services().to_vec())
    }

    fn wait_for_services(&self, name: &str, services: Vec<Service>) -> Result<Running> {
        let template =
            "{{.NetworkSettings.IPAddress}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = self.cli(&["inspect", "--format", template, name])?.stdout;
        let address = addresses.split_whitespace().find_map(|word| word.parse::<Ipv4Addr>().ok());
        let said = || {
            let logs = self.cli(&["logs", name]);
            logs.map_or_else(|error| format!("{error:#}"), |logs| logs.to_string())
        };
        let address = address.with_context(|| {
            format!("container {name} has no address: '{}'; its output: {}", addresses.trim(), said())
        })?;
        let running = Running::wait(&self.guest, name.to_owned(), services, address);
        running.with_context(|| format!("its output: {}", said()))
    }

    fn command(&self) -> Command {
        let mut podman = Command::new("/usr/bin/podman");
        let directory = &self.directory;
        for (option, name) in [("--root", "data"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            podman.args([option, &format!("{directory}/{name}")]);
        }
        // vfs works on every file system; nobody is there to be asked for cgroups, and none are needed.
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "crun"]);
        podman.env_clear().env("PATH", SEARCH_PATH).env("HOME", directory);
        podman.env("CONTAINERS_CONF", format!("{directory}/containers.conf"));
        let world = Arc::clone(&self.world);
        let processes = self.processes.clone();
        // No more than a system call each: the path is put together here.
        let enter = move || {
            let group = open(&processes, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&group, b"0")?;
            Ok(world.enter()?)
        };
        // SAFETY: the closure only makes system calls, on descriptors that it owns; it allocates nothing and
        // takes no lock.
        unsafe { podman.pre_exec(enter) };
        podman
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        init::kill(&mut self.init);
    }
}

/// Without a journal, without cgroups, without a choice that depends on what is installed.
fn containers_conf(network: NetworkBackend) -> String {
    let backend = match network {
        NetworkBackend::Netavark => "netavark",
        NetworkBackend::Cni => "cni",
    };
    format!(
        "[containers]\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n\
         [engine]\nevents_logger = \"file\"\n\
         [network]\nnetwork_backend = \"{backend}\"\n"
    )
}
