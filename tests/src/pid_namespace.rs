//! A PID namespace below the initial one, as each distribution of WSL has.

use std::{
    ffi::OsStr,
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{Namespace, process::wait_for};

/// The namespace, with a /proc of its own, in a network namespace of the lab. Dropping it kills what runs in it.
#[derive(Debug)]
pub struct PidNamespace {
    namespace: Namespace,
    /// `unshare`, whose child is the first process inside.
    parent: Child,
    first: String,
}

impl PidNamespace {
    /// Makes one in the guest, or in another namespace.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let parent = namespace
            .command("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child=KILL", "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let mut this = Self { namespace: namespace.clone(), parent, first: String::new() };
        this.first = wait_for("the first process of a PID namespace", Duration::from_secs(10), || {
            let first = fs::read_to_string(&children)?.trim().to_owned();
            // Before that, it is the program that has made the namespace, and sees the old /proc.
            let name = fs::read_to_string(format!("/proc/{first}/comm")).unwrap_or_default();
            Ok((!first.is_empty() && name.trim() == "cat").then_some(first))
        })?;
        Ok(this)
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.namespace.command("nsenter");
        command.args(["--target", &self.first, "--pid", "--mount", "--"]).arg(program);
        command
    }

    /// The command, run inside.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = self.command(command.get_program());
        wrapped.args(command.get_args());
        wrapped
    }
}

impl Drop for PidNamespace {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}
