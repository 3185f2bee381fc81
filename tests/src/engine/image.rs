//! The image: busybox, `lab-helper`, and a page to serve. Made here: no registry is asked.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    Namespace,
    namespace::HELPER_PATH,
    process::{COMMAND_LIMIT, run},
};

/// What containers are run from.
pub(crate) const IMAGE: &str = "wsl-mirror-lab";
/// What `http` serves as `/index.html`.
pub(crate) const PAGE: &str = "a page from the container\n";

/// The static one of Debian's `busybox-static`; others keep it in /usr.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox.static"];

/// Makes the image below `directory` of the guest, has it imported, and removes what was imported.
pub(crate) fn with_tar(
    guest: &Namespace,
    directory: &str,
    import: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let root = format!("{directory}/image");
    let tar = format!("{root}.tar");
    let build = || -> Result<()> {
        for directory in ["bin", "www", "tmp", "etc"] {
            fs::create_dir_all(format!("{root}/{directory}"))?;
        }
        let busybox = BUSYBOX.iter().find(|path| fs::exists(path).is_ok_and(|there| there));
        let busybox = busybox.context("no busybox: install busybox-static")?;
        fs::copy(busybox, format!("{root}/bin/busybox"))?;
        fs::copy(HELPER_PATH, format!("{root}/bin/lab-helper"))?;
        // Links with names; busybox itself finds out from the name what it shall be.
        for applet in ["sh", "ls", "cat", "ip", "ping", "nc", "wget", "netstat", "sleep", "true", "kill"] {
            std::os::unix::fs::symlink("busybox", format!("{root}/bin/{applet}"))?;
        }
        fs::write(format!("{root}/www/index.html"), PAGE)?;
        Ok(())
    };
    guest.enter(build).context("making the image")?;
    run(guest.command("tar").args(["-C", &root, "-cf", &tar, "."]), COMMAND_LIMIT)?.success()?;
    import(&tar).context("importing the image")?;
    guest.enter(|| fs::remove_dir_all(&root).and_then(|()| fs::remove_file(&tar)))?;
    Ok(())
}
