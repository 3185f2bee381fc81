//! A prompt in the guest, with an engine and a published port: for trying things by hand.

use std::{env, fmt::Write as _, fs, os::fd::AsRawFd as _, os::unix::fs::PermissionsExt as _, process};

use anyhow::{Context as _, Result};
use clap::Args;
use wsl_mirror_lab::{Container, Docker, DockerOptions, Lab, SCRATCH, Service};

use xtask::{ExitCode, progress::step};

use crate::output::print;

/// Open a shell in the guest, with Docker and a published port
#[derive(Args)]
pub(crate) struct Shell {}

const GREETING: &str = "
This is the guest: loopback0, WSL's rules, and a Docker whose container `web` is published on port 8080.
  wsl-mirror load                            steer
  windows busybox wget -qO- 127.0.0.1:8080   ask from Windows; hangs while nothing is loaded
  windows COMMAND                            anything else from there
Nothing of it is left after `exit`.
";

impl Shell {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self {} = self;
        let (lab, docker) = step("build the lab, and start Docker in it", |_| {
            let lab = Lab::builder().wslinfo(false).build()?;
            let docker = Docker::start(&lab, &DockerOptions::default())?;
            docker.run(Container::new("web").serve(Service::Http { port: 80 }).publish("8080:80"))?;
            Ok((lab, docker))
        })?;
        let commands = format!("{SCRATCH}/bin");
        let windows = format!(
            "#!/bin/sh\nexec nsenter --net=/proc/{}/fd/{} -- \"$@\"\n",
            process::id(),
            lab.windows().netns_fd().as_raw_fd()
        );
        lab.guest()
            .enter(|| {
                let path = format!("{commands}/windows");
                fs::create_dir_all(&commands)?;
                fs::write(&path, windows)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            })
            .context("writing the commands of the shell")?;

        print(GREETING)?;
        let mut path = commands;
        for more in [product_folder(), env::var("PATH").ok()].into_iter().flatten() {
            let _ = write!(path, ":{more}");
        }
        let program = if fs::exists("/bin/bash").unwrap_or(false) { "/bin/bash" } else { "/bin/sh" };
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
        // The exit code of the user's last command is no failure of ours.
        shell.status().with_context(|| format!("starting {program}"))?;
        Ok(ExitCode::Success)
    }
}

/// Where the `wsl-mirror` is that was built.
fn product_folder() -> Option<String> {
    let product = env::var("WSL_MIRROR_BIN").ok()?;
    Some(product.rsplit_once('/')?.0.to_owned())
}
