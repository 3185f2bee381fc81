//! Programs as files.

use std::{fs, io::Read as _, path::Path};

/// A dynamic program names its loader right behind its headers.
pub(super) fn is_static(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.windows(4).any(|window| window == b"/ld-")
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let file = env::temp_dir().join(format!("wsl-mirror-static-{}", std::process::id()));
        let write = |bytes: &[u8]| fs::write(&file, bytes).unwrap_or_else(|error| panic!("writing: {error}"));
        write(b"\x7fELF....\0/lib64/ld-linux-x86-64.so.2\0");
        assert!(!is_static(&file));
        write(b"\x7fELF....\0/lib/ld-musl-aarch64.so.1\0");
        assert!(!is_static(&file));
        write(b"\x7fELF....");
        assert!(is_static(&file));
        fs::remove_file(&file).unwrap_or_else(|error| panic!("removing: {error}"));
        assert!(!is_static(&file), "what is not there is not static");
    }
}
