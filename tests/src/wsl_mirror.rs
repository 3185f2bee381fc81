//! The product under test.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Lab, Namespace,
    process::{COMMAND_LIMIT, Finished, run},
};

/// The `wsl-mirror` to test: `WSL_MIRROR_BIN`, or the workspace's release build.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("WSL_MIRROR_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("WSL_MIRROR_BIN names {}, which is not a file", path.display());
        }
        return Ok(path.canonicalize()?);
    }
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new("target").to_owned(), PathBuf::from);
    // Relative to the workspace, whatever directory the tests were started in.
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let path = workspace.join(target).join("release/wsl-mirror");
    if !path.is_file() {
        bail!(
            "no wsl-mirror at {}: build it (`cargo build --release`), or name one in WSL_MIRROR_BIN",
            path.display()
        );
    }
    Ok(path.canonicalize()?)
}

impl Lab {
    /// `wsl-mirror` with these arguments, to be run in the guest. A `load` or `run` watches the lab's own cgroup: what runs
    /// elsewhere on this machine is none of its business.
    pub fn wsl_mirror_command(&self, arguments: &[&str]) -> Result<Command> {
        self.wsl_mirror_command_in(self.guest(), arguments)
    }

    /// The same in another distribution.
    pub fn wsl_mirror_command_in(&self, distribution: &Namespace, arguments: &[&str]) -> Result<Command> {
        let mut command = distribution.command(binary()?);
        command.args(arguments);
        let loads = arguments.first().is_some_and(|first| ["load", "run"].contains(first));
        if loads && !arguments.contains(&"--cgroup") {
            command.arg("--cgroup").arg(self.cgroup().directory("")?);
        }
        Ok(command)
    }

    /// The same by another program: `strace …`, `setpriv …`.
    pub fn wsl_mirror_wrapped(&self, wrapper: &[impl AsRef<OsStr>], arguments: &[&str]) -> Result<Command> {
        let inner = self.wsl_mirror_command(arguments)?;
        let (program, rest) = wrapper.split_first().context("no wrapper")?;
        let mut command = self.guest().command(program);
        command.args(rest).arg(inner.get_program()).args(inner.get_args());
        Ok(command)
    }

    /// Runs it in another distribution to its end.
    pub fn wsl_mirror_in(&self, distribution: &Namespace, arguments: &[&str]) -> Result<Finished> {
        run(&mut self.wsl_mirror_command_in(distribution, arguments)?, COMMAND_LIMIT)
    }

    /// What `status` says there, and its exit code.
    pub fn status_in(&self, distribution: &Namespace) -> Result<(serde_json::Value, i32)> {
        let finished = self.wsl_mirror_in(distribution, &["status", "--json"])?;
        let value = serde_json::from_str(&finished.stdout).with_context(|| format!("no JSON: {finished}"))?;
        Ok((value, finished.status.code().context("killed")?))
    }

    /// How many filters of ours are on `loopback0`. Programs that hang there by tcx are none.
    pub fn filters(&self) -> Result<usize> {
        let filters = self.guest().run("tc", ["filter", "show", "dev", "loopback0", "ingress"])?.stdout;
        Ok(filters.matches("handle 0x77736d wsl_mirror ").count())
    }

    /// What `wsl-mirror status` says.
    pub fn status(&self) -> Result<serde_json::Value> {
        let status = self.wsl_mirror(&["status", "--json"])?.success()?;
        serde_json::from_str(&status.stdout).with_context(|| format!("not JSON: {status}"))
    }

    /// How many packets got their verdict for this reason, by the name of the counter.
    pub fn packets(&self, reason: &str) -> Result<u64> {
        let status = self.status()?;
        let verdicts = status["verdicts"].as_array().context("status has no verdicts")?;
        let verdict = verdicts.iter().find(|verdict| verdict["reason"] == reason);
        verdict
            .and_then(|verdict| verdict["packets"].as_u64())
            .with_context(|| format!("no {reason} in {status}"))
    }

    /// Runs `wsl-mirror` in the guest to its end. That it fails is not an error here: see
    /// [`Finished::success`].
    pub fn wsl_mirror(&self, arguments: &[&str]) -> Result<Finished> {
        self.wsl_mirror_in(self.guest(), arguments)
    }
}
