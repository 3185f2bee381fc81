//! The folder of a run: what its machines start with, and what they write.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    initramfs,
    kernels::Kernel,
    machine::{self, Accelerator, End, Machine, possible},
};
use crate::{setup, test::Verdict};

/// Marks the folder of a failed run, which stays for a look at it.
const KEPT: &str = "kept-for-a-look";

/// Removes the folders of interrupted runs. The folder of a failed run stays for a day.
fn sweep(rooms: &Path) {
    const DAY: Duration = Duration::from_hours(24);
    for entry in fs::read_dir(rooms).into_iter().flatten().flatten() {
        let is_alive = Path::new("/proc").join(entry.file_name()).exists();
        let age = fs::metadata(entry.path().join(KEPT))
            .and_then(|found| found.modified())
            .ok()
            .map(|time| time.elapsed().unwrap_or_default());
        if !is_alive && age.is_none_or(|age| age > DAY) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

pub(super) struct Room {
    folder: PathBuf,
    busybox: PathBuf,
}

impl Room {
    /// Beside the product, so wherever cargo builds.
    pub(super) fn new(product: &Path) -> Result<Self> {
        possible()?;
        let parent = product.parent().context("the product lies in no folder")?;
        let folder = parent.join("vm").join(std::process::id().to_string());
        // An earlier process of this number may have left its files.
        let _ = fs::remove_dir_all(&folder);
        sweep(&parent.join("vm"));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let busybox = setup::busybox().context("there is no busybox (package busybox-static)")?;
        Ok(Self { folder, busybox })
    }

    /// Removes the folder of a good run, and names that of a failed one.
    pub(super) fn leave(&self, verdict: Verdict) {
        if verdict == Verdict::Ok {
            let _ = fs::remove_dir_all(&self.folder);
        } else {
            // Without the mark, the next run only removes the folder earlier.
            let _ = fs::write(self.folder.join(KEPT), "");
            eprintln!("xtask: the kernels' consoles are in {}", self.folder.display());
        }
    }

    pub(super) fn accelerator(&self, kernels: &[Kernel]) -> Result<Accelerator> {
        let kernel = kernels.first().context("no kernel to run")?;
        let initramfs = self.folder.join("probe.initramfs");
        initramfs::write(&initramfs, &self.busybox, None)?;
        Ok(machine::accelerator(&kernel.image, &initramfs, &self.folder.join("probe")))
    }

    /// Runs a machine whose job ends well, and whose kernel prints a warning. If that passes, a panic would pass too,
    /// and no result of these runs is worth anything.
    pub(super) fn expect_complaints_to_be_heard(
        &self,
        kernels: &[Kernel],
        accelerator: Accelerator,
    ) -> Result<()> {
        const COMPLAINT: &str = "WARNING: made up by xtask, to see that it is heard";
        let kernel = kernels.first().context("no kernel to run")?;
        let script = format!("echo '<4>{COMPLAINT}' >/dev/kmsg\n");
        let machine = self.machine(kernel, "canary", &script, accelerator)?;
        match machine.run(|_| {})? {
            End::Broken(text) if text.contains(COMPLAINT) => Ok(()),
            End::Broken(text) => bail!("Linux {} does not run a job in a machine: {text}", kernel.name),
            End::Exit(code) => {
                bail!(
                    "the console of Linux {} is not heard: it printed a warning, and the machine ended with {code}",
                    kernel.name
                )
            }
        }
    }

    pub(super) fn machine(
        &self,
        kernel: &Kernel,
        name: &str,
        job: &str,
        accelerator: Accelerator,
    ) -> Result<Machine> {
        let files = self.folder.join(format!("{}-{name}", kernel.name));
        let initramfs = files.with_file_name(format!("{}-{name}.initramfs", kernel.name));
        initramfs::write(&initramfs, &self.busybox, Some(job))?;
        Ok(Machine { kernel: kernel.image.clone(), initramfs, accelerator, files, slow: slowness(kernel) })
    }
}

/// How many times slower than the others the kernel is.
pub(super) fn slowness(kernel: &Kernel) -> u32 {
    if kernel.debug { 4 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_dead_go_unless_their_run_failed() {
        let rooms = std::env::temp_dir().join(format!("wsl-mirror-rooms-{}", std::process::id()));
        // No process can have a number above 4194304.
        let alive = std::process::id().to_string();
        let (interrupted, failed) = ("4194305", "4194306");
        for name in [alive.as_str(), interrupted, failed] {
            fs::create_dir_all(rooms.join(name)).unwrap();
        }
        fs::write(rooms.join(failed).join(KEPT), "").unwrap();
        sweep(&rooms);
        let left = [alive.as_str(), interrupted, failed].map(|name| rooms.join(name).exists());
        fs::remove_dir_all(&rooms).unwrap();
        assert_eq!(left, [true, false, true]);
    }
}
