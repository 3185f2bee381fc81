//! Makes the folder of a package: download, unpack, wrap, and only then give it its name.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    super::host::Host,
    Package,
    wrapper::{self, Folders},
};
use crate::progress;

/// Run with a folder and a package. apt is told that nothing is installed (an empty status file), so the list has all
/// that the package depends on, in the versions of the machine's sources. The machine's own state is only read.
/// A merged /usr keeps each library in one folder, and setuid has no business in a cache.
pub(super) const UNPACK: &str = r#"set -eu
work=$1 package=$2
cd "$work"
mkdir -p cache/archives/partial debs root
: >status
for folder in bin sbin lib lib64; do
    mkdir -p "root/usr/$folder"
    ln -s "usr/$folder" "root/$folder"
done
apt() {
    apt-get -o Dir::Cache="$work/cache" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
        -o Debug::NoLocking=true -o APT::Sandbox::User=root "$@"
}
apt -o Dir::State::status="$work/status" --simulate --no-install-recommends install "$package" >plan
cat plan
(cd debs && apt download $(sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p' ../plan))
for deb in debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" >data.tar
    tar -x --no-same-owner --keep-directory-symlink -f data.tar -C root
done
chmod -R u+rwX,ug-s root
rm -rf cache debs plan status data.tar
rm -rf root/usr/share/doc root/usr/share/man root/usr/share/locale root/usr/share/info
"#;

/// Makes the folder of the package; `step` is what the terminal calls that.
///
/// # Errors
/// There is no cache, the mirror does not have a package (any more), or a program is not where it should be.
pub(in super::super) fn make(host: &Host, package: &Package, step: &str) -> Result<()> {
    let folder = host.unpacked.as_deref();
    let folder = folder.context("no folder to unpack into: HOME is not set, nor XDG_CACHE_HOME")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // A second set-up waits here, and finds the folder.
    let lock = folder.join(format!("{}.lock", package.name));
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.with_context(|| format!("locking {} in {}", package.name, folder.display()))?;
    if package.is_current(folder) {
        return Ok(());
    }
    let partial = folder.join(format!(".{}.partial", package.name));
    remove(&partial)?;
    let bin = partial.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
    let mut unpack = host.command("sh");
    unpack.args(["-c", UNPACK, "sh"]).arg(&partial).arg(package.name);
    progress::command("setup", step, &mut unpack, &host.log())?;
    let whole = folder.join(package.name);
    let folders =
        Folders { files: &partial.join("root"), root: &whole.join("root"), bin: &whole.join("bin") };
    for program in package.programs {
        wrapper::write(&folders, program, &bin)
            .with_context(|| format!("making {} of {} run", program.name, package.name))?;
    }
    fs::write(partial.join("recipe"), package.recipe(folder)).context("writing the recipe")?;
    remove(&whole)?;
    fs::rename(&partial, &whole).with_context(|| format!("renaming {}", partial.display()))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
