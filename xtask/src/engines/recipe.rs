//! What the folder of a suite is made of.

use super::suite::Suite;

/// The packages of every folder; mmdebstrap adds their dependencies. `base-files` has the links of a merged /usr.
pub(super) const PACKAGES: [&str; 10] = [
    "base-files",
    "docker.io",
    "podman",
    "netavark",
    "aardvark-dns",
    "crun",
    "iptables",
    "nftables",
    "iproute2",
    "containernetworking-plugins",
];

/// Runs after unpacking, with the root and the manifest as arguments. It does the needed part of the packages' own
/// scripts, writes the manifest, and removes files that nobody reads.
pub(super) const FINISH: &str = r#"set -eu
[ -d "$1/etc" ]
for deb in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb --show --showformat='${Package} ${Version}\n' "$deb"
done | sort >"$2"
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    family=${name%%-*}
    [ -e "$1/usr/sbin/$name" ] || ln -s "$family-nft${name#"$family"}" "$1/usr/sbin/$name"
done
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$1/etc/passwd"
printf 'root:x:0:\n' >"$1/etc/group"
# Docker asks for "localhost" when it unpacks an image, and where that is no file's to answer it waits for DNS.
printf '127.0.0.1 localhost\n' >"$1/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files\n' >"$1/etc/nsswitch.conf"
rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
rm -rf "$1/var/cache/apt" "$1/var/lib/apt"
rm -rf "$1/usr/share/doc" "$1/usr/share/man" "$1/usr/share/locale" "$1/usr/share/info" "$1/usr/include"
"#;

/// The folder's content depends on this, and on the day.
pub(super) fn recipe(suite: &Suite) -> String {
    format!("{}\n{}\n{FINISH}", suite.name, PACKAGES.join(" "))
}
