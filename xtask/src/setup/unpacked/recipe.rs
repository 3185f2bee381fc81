//! How the folder of a package is made.

use std::{fs, path::Path};

use super::{packages::Bundle, wrapper};

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

/// All that the folder's content depends on besides the day.
pub(super) fn recipe(package: &Bundle, folder: &Path) -> String {
    format!("{}\n{package:?}\n{UNPACK}\n{}", folder.display(), wrapper::FORMAT)
}

/// Whether the package's folder is there, and made by today's recipe.
pub(super) fn is_current(package: &Bundle, folder: &Path) -> bool {
    let made = fs::read_to_string(folder.join(package.name).join("recipe"));
    made.is_ok_and(|made| made == recipe(package, folder))
}
