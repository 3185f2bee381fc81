//! Whether root may run a program at every boot.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What the unit's `ProtectHome=` and `PrivateTmp=` keep from its program: it would not even find itself there.
const HIDDEN: [&str; 5] = ["/root", "/home", "/run/user", "/tmp", "/var/tmp"];
/// How many links lead to a file at most, as for the kernel.
const LINKS_MAX: usize = 40;

/// Why root must not run this program at every boot: somebody else could put another one in its place, or it would not
/// be seen.
pub fn objection(binary: &Path) -> Option<String> {
    let mut place = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = binary.iter().map(OsString::from).collect();
    let mut links = 0;
    // A user who can write to the folder of a link can turn the link. So each folder on the way counts, not only the last.
    loop {
        if let Some(hidden) = HIDDEN.iter().find(|hidden| place.starts_with(hidden)) {
            return Some(format!(
                "the unit hides {hidden} from what it runs, and {} is there",
                place.display()
            ));
        }
        let found = match fs::symlink_metadata(&place) {
            Err(error) => return Some(format!("{} cannot be looked at: {error}", place.display())),
            Ok(found) => found,
        };
        if found.is_symlink() {
            links += 1;
            let target = match fs::read_link(&place) {
                Ok(target) if links <= LINKS_MAX => target,
                Ok(_) => return Some(format!("{} is one link too many", place.display())),
                Err(error) => return Some(format!("{} cannot be read: {error}", place.display())),
            };
            place.pop();
            for part in target.iter().rev() {
                rest.push_front(part.to_owned());
            }
        } else if let Some(why) = objection_to(&place, found.uid(), found.mode()) {
            return Some(why);
        }
        // At the end of the way nobody has objected.
        let next = rest.pop_front()?;
        match next.to_str() {
            Some("..") => {
                place.pop();
            }
            Some("/") => place = "/".into(),
            _ => place.push(next),
        }
    }
}

fn objection_to(part: &Path, owner: u32, mode: u32) -> Option<String> {
    if owner != 0 {
        return Some(format!("{} belongs to user {owner}", part.display()));
    }
    (mode & 0o022 != 0)
        .then(|| format!("{} is writable for others than root (mode {:04o})", part.display(), mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::super::unit;
    use super::*;

    #[test]
    fn a_program_that_others_could_replace_is_objected_to() {
        let objects = |owner, mode| objection_to(Path::new("/x"), owner, mode).is_some();
        assert!(!objects(0, 0o100_755));
        assert!(objects(1000, 0o100_755));
        assert!(objects(0, 0o100_775), "the group's");
        assert!(objects(0, 0o041_777), "/tmp, sticky or not");
        assert_eq!(objection(Path::new("/")), None);
        assert!(objection(Path::new("/no/such/program")).is_some());
    }

    #[test]
    fn a_program_that_the_unit_hides_from_itself_is_objected_to() {
        for line in ["ProtectHome=yes", "PrivateTmp=yes"] {
            assert!(unit::TEXT.lines().any(|other| other == line), "{line} hides them");
        }
        for path in ["/root/x", "/home/me/bin", "/run/user/0", "/tmp", "/var/tmp/x"] {
            let path = Path::new(path).join("wsl-mirror");
            let why = objection(&path);
            assert!(why.as_ref().is_some_and(|why| why.contains("the unit hides")), "{path:?}: {why:?}");
        }
        // Not what is only called alike.
        let why = objection(Path::new("/rooted/wsl-mirror"));
        assert!(why.is_some_and(|why| why.contains("cannot be looked at")));
    }
}
