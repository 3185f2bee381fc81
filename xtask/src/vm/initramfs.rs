//! The initramfs of a machine: busybox, process 1, and the job.

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    path::Path,
};

use anyhow::{Context as _, Result};
use cpio::{NewcBuilder, newc};

const INIT: &str = include_str!("init.sh");
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Writes the archive to `path`. A machine without a job only says that it is up.
pub(super) fn write(path: &Path, busybox: &Path, job: Option<&str>) -> Result<()> {
    let program =
        fs::read(busybox).with_context(|| format!("reading {} (busybox-static)", busybox.display()))?;
    let write = || -> std::io::Result<()> {
        let mut archive = File::create(path)?;
        let mut files = vec![
            ("bin", DIRECTORY, &[][..]),
            ("bin/busybox", PROGRAM, &program),
            ("init", PROGRAM, INIT.as_bytes()),
        ];
        files.push(match job {
            Some(job) => ("job", FILE, job.as_bytes()),
            None => ("probe", FILE, &[]),
        });
        for (inode, (name, mode, content)) in (1..).zip(files) {
            add(&mut archive, inode, name, mode, content)?;
        }
        newc::trailer(&mut archive)?;
        archive.flush()
    };
    write().with_context(|| format!("writing the initramfs {}", path.display()))
}

fn add(archive: &mut File, inode: u32, name: &str, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let size = u32::try_from(content.len()).map_err(std::io::Error::other)?;
    let mut entry = NewcBuilder::new(name).ino(inode).mode(mode).nlink(1).write(archive, size);
    std::io::copy(&mut Cursor::new(content), &mut entry)?;
    entry.finish()?;
    Ok(())
}

/// A word as the shell reads it back.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_the_shell() {
        for word in ["", "plain", "two words", "it's", "$HOME `id` \\ \"x\" *", "a\nb"] {
            let script = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output();
            let output = output.unwrap_or_else(|error| panic!("sh: {error}"));
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn the_archive_is_one_that_cpio_reads() {
        let path = std::env::temp_dir().join(format!("wsl-mirror-initramfs-{}", std::process::id()));
        let itself = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
        write(&path, &itself, Some("echo hello\n")).unwrap_or_else(|error| panic!("{error:#}"));
        let mut archive = File::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(archive).unwrap_or_else(|error| panic!("{error}"));
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode(), reader.entry().file_size()));
            archive = reader.finish().unwrap_or_else(|error| panic!("{error}"));
        }
        fs::remove_file(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(names[0], ("bin".to_owned(), DIRECTORY, 0));
        assert_eq!((names[1].0.as_str(), names[1].1), ("bin/busybox", PROGRAM));
        assert_eq!((names[2].0.as_str(), names[2].1), ("init", PROGRAM));
        assert_eq!(names[3], ("job".to_owned(), FILE, 11));
    }
}
