//! A prompt in the guest, with an engine and a published port: for trying things by hand.

mod lab;
mod order;
mod socket;

use std::{
    env,
    fmt::Write as _,
    fs,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::Path,
    process::{self, Command},
    thread,
};

use anyhow::{Context as _, Result};
use clap::Args;
use wsl_mirror_lab::{Container, Docker, DockerOptions, Lab, Namespace, SCRATCH, Service};
use xtask::{ExitCode, progress::step, shell::Switches};

use crate::output::print;
use order::Order;

/// Open a shell in the guest, with Docker and a published port
#[derive(Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    switches: Switches,
}

/// Tell the Windows of the shell that this runs in how to behave
#[derive(Args)]
#[command(hide = true, disable_help_flag = true)]
pub(crate) struct Windows {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Where the lab listens for orders, in the guest.
const SOCKET: &str = "windows.sock";

const GREETING: &str = "
This is the guest: loopback0, WSL's rules, and a Docker whose container `web` is published on port 8080.
  wsl-mirror load                            steer
  windows busybox wget -qO- 127.0.0.1:8080   ask from Windows; hangs while nothing is loaded
  windows COMMAND                            anything else from there
  windows refuse 9000, windows network anew  have Windows misbehave; `windows help` lists all of it
Nothing of it is left after `exit`.
";

impl Shell {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self { switches } = self;
        let (lab, docker) = step("build the lab, and start Docker in it", |_| {
            let lab = lab::build(&switches)?;
            let docker = Docker::start(&lab, &DockerOptions::default())?;
            docker.run(Container::new("web").serve(Service::Http { port: 80 }).publish("8080:80"))?;
            lab::half_make(&lab, &switches)?;
            Ok((lab, docker))
        })?;
        let commands = format!("{SCRATCH}/bin");
        let neighbour = if switches.neighbour { Some(lab.add_neighbour()?) } else { None };
        install(&lab, neighbour.as_ref(), &commands).context("writing the commands of the shell")?;
        let listener = lab
            .guest()
            .enter(|| UnixListener::bind(Path::new(SCRATCH).join(SOCKET)))
            .context("opening the shell's socket")?;

        print(GREETING)?;
        let program = if fs::exists("/bin/bash").unwrap_or(false) { "/bin/bash" } else { "/bin/sh" };
        let mut shell = prompt(&lab, &docker, program, &commands);
        // The exit code of the user's last command is no failure of ours.
        let status = thread::scope(|scope| {
            scope.spawn(|| socket::serve(&listener, |order| lab::carry_out(&lab, order)));
            let status = shell.status();
            socket::stop(&listener).map(|()| status)
        })?;
        status.with_context(|| format!("starting {program}"))?;
        Ok(ExitCode::Success)
    }
}

impl Windows {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self { words } = self;
        match Order::parse(words.iter().map(String::as_str)) {
            Ok(_) => print!("{}", socket::send(&Path::new(SCRATCH).join(SOCKET), &words)?),
            Err((help, false)) => print!("{help}"),
            Err((error, true)) => {
                eprint!("{error}");
                return Ok(ExitCode::Failed);
            }
        }
        Ok(ExitCode::Success)
    }
}

/// Writes the commands `windows` and `neighbour`, which run a program there. An order of `windows` goes to the lab.
fn install(lab: &Lab, neighbour: Option<&Namespace>, commands: &str) -> Result<()> {
    let own = env::current_exe()?;
    let orders = format!(
        "case \"${{1:-help}}\" in\n  {}) exec '{}' windows \"$@\" ;;\nesac\n",
        Order::words().join("|"),
        own.display(),
    );
    let mut scripts = vec![("windows", orders + &enter(lab.windows()))];
    scripts.extend(neighbour.map(|neighbour| ("neighbour", enter(neighbour))));
    lab.guest().enter(|| {
        fs::create_dir_all(commands)?;
        for (name, script) in scripts {
            let path = format!("{commands}/{name}");
            fs::write(&path, format!("#!/bin/sh\n{script}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    })
}

/// The line of a script that runs its arguments in another network.
fn enter(namespace: &Namespace) -> String {
    let net = namespace.netns_fd().as_raw_fd();
    format!("exec nsenter --net=/proc/{}/fd/{net} -- \"$@\"\n", process::id())
}

fn prompt(lab: &Lab, docker: &Docker, program: &str, commands: &str) -> Command {
    let mut path = commands.to_owned();
    for more in [product_folder(), env::var("PATH").ok()].into_iter().flatten() {
        let _ = write!(path, ":{more}");
    }
    let mut shell = lab.guest().command(program);
    if program.ends_with("bash") {
        // The user's own files may set another prompt and path.
        shell.args(["--norc", "--noprofile"]);
    }
    shell
        .arg("-i")
        .env("PATH", path)
        .env("PS1", "guest# ")
        .env("DOCKER_HOST", format!("unix://{}", docker.socket()));
    shell
}

/// Where the `wsl-mirror` is that was built.
fn product_folder() -> Option<String> {
    let product = env::var("WSL_MIRROR_BIN").ok()?;
    Some(product.rsplit_once('/')?.0.to_owned())
}
