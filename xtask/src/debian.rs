//! Debian's archive, as this machine's apt is configured to reach it.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

/// What Debian signs its suites with.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror that this machine's apt uses for Debian itself. `hint`: what else one can do where there is none.
pub(crate) fn mirror(hint: &str) -> Result<String> {
    if !Path::new(KEYRING).exists() {
        bail!("there is no {KEYRING}: {hint}");
    }
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["Created-By: Packages", "Origin: Debian", "Label: Debian"])
        .output()
        .with_context(|| format!("asking apt-get for its mirror ({hint})"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("apt has no Debian mirror in its sources: {hint}"),
    }
}

/// How this machine's apt gets to its mirror; mmdebstrap's apt reads none of its files.
pub(crate) fn transport() -> Result<Vec<String>> {
    let output = Command::new("apt-config")
        .args(["dump", "--format", "%F \"%v\";%n", "Acquire::http", "Acquire::https"])
        .output()
        .context("asking apt-config how the mirror is reached")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A line for each group of settings has no value.
    Ok(text.lines().filter(|line| !line.ends_with(" \"\";")).map(str::to_owned).collect())
}
