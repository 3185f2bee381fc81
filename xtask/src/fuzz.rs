//! `cargo xtask test --fuzz`: every fuzz target for a minute.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cargo,
    libtest::Count,
    report::{Group, Verdict},
};

/// Where the targets are, from the root of the repository.
const FOLDER: &str = "tests/fuzz";
/// How long each runs.
const EACH: Duration = Duration::from_mins(1);
/// A single input may not take longer; most take microseconds.
const INPUT_LIMIT: Duration = Duration::from_secs(10);
/// No input is longer, in bytes: of a longer seed libFuzzer reads the beginning alone.
const LONGEST: u64 = 16 << 10;
/// The release of cargo-fuzz that is installed where there is none.
const RELEASE: &str = "0.13.2";

/// Fuzzes every target, and returns what each came to. An input that breaks one is kept in the target's folder below
/// `tests/fuzz/artifacts`, and named.
pub(crate) fn run() -> Result<Vec<Group>> {
    let cargo_fuzz = cargo::tool("fuzz", "cargo-fuzz", RELEASE)?;
    let folder = cargo::workspace().join(FOLDER);
    let corpus = folder.join("target/corpus");
    unpack(&folder, &corpus)?;
    targets(&folder)?.iter().map(|target| fuzz(&cargo_fuzz, &folder, &corpus, target)).collect()
}

/// Unpacks the inputs that fuzzers found before, a folder a target, and removes what an earlier run unpacked.
fn unpack(folder: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    let archive = folder.join("corpus.tar.gz");
    let status = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(to).status();
    if !status.context("starting tar")?.success() {
        bail!("tar could not unpack {}", archive.display());
    }
    Ok(())
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("fuzz_targets");
    let entries = fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("no fuzz targets in {}", path.display());
    }
    Ok(names)
}

fn fuzz(cargo_fuzz: &Path, folder: &Path, corpus: &Path, target: &str) -> Result<Group> {
    println!("\n=== fuzz {target} ===");
    let started = Instant::now();
    // New inputs go to a folder of their own; `wsl-mirror-user/src/fuzzing.rs` says how they join the archive.
    let found = folder.join("target/found").join(target);
    // The archive has no inputs for some targets; libFuzzer refuses a folder that does not exist.
    let archived = corpus.join(target);
    for folder in [&found, &archived] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let status = command(cargo_fuzz)
        // The stable compilers that this project builds with have no sanitizers; a panic is what is looked for, and
        // unsafe code stays away from what is read.
        .args(["run", "--fuzz-dir", FOLDER, "--sanitizer", "none", target])
        .arg(&found)
        .args([&archived, &folder.join("seeds").join(target)])
        .arg("--")
        .arg(format!("-max_total_time={}", EACH.as_secs()))
        .arg(format!("-timeout={}", INPUT_LIMIT.as_secs()))
        .arg(format!("-max_len={LONGEST}"))
        .args(["-print_final_stats=1", "-verbosity=0", "-print_funcs=0"])
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", cargo_fuzz.display()))?;
    let verdict = Verdict::of(status.success());
    let count =
        Count { passed: u32::from(status.success()), failed: u32::from(!status.success()), ignored: 0 };
    Ok(Group { count, ..Group::without_tests(&format!("fuzz {target}"), verdict, started.elapsed()) })
}

/// cargo-fuzz as a cargo subcommand is called, with the cargo that runs us for all it builds.
fn command(cargo_fuzz: &Path) -> Command {
    let mut command = cargo::with_our_toolchain(Command::new(cargo_fuzz));
    command.arg("fuzz").current_dir(cargo::workspace());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_read_to_its_end() -> Result<()> {
        let folder = cargo::workspace().join(FOLDER);
        let corpus = folder.join("target/corpus-in-test");
        unpack(&folder, &corpus)?;
        let mut read = 0;
        for target in targets(&folder)? {
            for inputs in [folder.join("seeds").join(&target), corpus.join(&target)] {
                for input in fs::read_dir(&inputs).into_iter().flatten() {
                    let input = input?;
                    assert!(input.metadata()?.len() <= LONGEST, "{}", input.path().display());
                    read += 1;
                }
            }
        }
        assert!(read > 0, "no inputs in {}", folder.display());
        Ok(fs::remove_dir_all(&corpus)?)
    }
}
