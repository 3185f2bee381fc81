//! Another Linux' files as an engine's root.

use std::{
    ffi::{CStr, CString},
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, mount, mount_bind_recursive},
    process::{chdir, chroot},
};

use crate::namespace::install_helper;

/// Another Linux' files below an overlay that takes what is written.
pub(crate) struct OtherRoot {
    own: PathBuf,
    merged: CString,
    options: CString,
    /// From this machine to there: what must be the kernel's and the guest's.
    shared: [(&'static CStr, CString); 4],
    memory: CString,
    /// Where cgroups are seen, if it shall be as version 2 alone.
    cgroup2: Option<CString>,
}

impl OtherRoot {
    /// `root` as it will be seen; what is written is kept below `directory` of the guest.
    pub(crate) fn new(root: &Path, directory: &str) -> Result<Self> {
        let text = |path: String| CString::new(path).context("a path with a NUL byte");
        let own = Path::new(directory).join("root");
        let (lower, at) = (root.display(), own.display());
        let shared = |path: &'static CStr| -> Result<_> {
            Ok((path, text(format!("{at}/merged{}", path.to_string_lossy()))?))
        };
        Ok(Self {
            merged: text(format!("{at}/merged"))?,
            options: text(format!("lowerdir={lower},upperdir={at}/upper,workdir={at}/work"))?,
            cgroup2: None,
            memory: text(format!("{at}/merged/dev/shm"))?,
            shared: [shared(c"/proc")?, shared(c"/sys")?, shared(c"/dev")?, shared(c"/run")?],
            own,
        })
    }

    /// Shows cgroups as on a system that has version 2 alone, whatever this machine has: crun refuses to work
    /// where it sees both, even for containers that get none.
    pub(crate) fn with_cgroup2(mut self) -> Result<Self> {
        let path = self.own.join("merged/sys/fs/cgroup").into_os_string();
        self.cgroup2 = Some(CString::new(path.into_vec()).context("a path with a NUL byte")?);
        Ok(self)
    }

    /// What has to be there before [`Self::enter`]; with `wslinfo`, also what engines detect WSL by.
    pub(crate) fn create(&self, wslinfo: bool) -> Result<()> {
        for name in ["merged", "upper", "work"] {
            let path = self.own.join(name);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        if wslinfo {
            let folder = self.own.join("upper/usr/bin");
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            install_helper(&folder.join("wslinfo"))?;
        }
        Ok(())
    }

    /// Between fork and exec, in a mount namespace of its own: system calls only.
    pub(crate) fn enter(&self) -> rustix::io::Result<()> {
        let merged = self.merged.as_c_str();
        mount(c"overlay", merged, c"overlay", MountFlags::empty(), Some(self.options.as_c_str()))?;
        for (from, to) in &self.shared {
            mount_bind_recursive(*from, to.as_c_str())?;
        }
        if let Some(cgroup2) = &self.cgroup2 {
            let cgroup2 = cgroup2.as_c_str();
            mount(c"cgroup2", cgroup2, c"cgroup2", MountFlags::empty(), None::<&CStr>)?;
        }
        // Podman's locks are there, under a name that all of its versions share and not all of them understand.
        mount(c"tmpfs", self.memory.as_c_str(), c"tmpfs", MountFlags::empty(), Some(c"mode=1777"))?;
        chroot(merged)?;
        chdir(c"/")
    }
}
