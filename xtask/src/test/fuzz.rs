//! The suite of fuzz targets, each for a minute.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    libtest::{Count, filters},
    report::{Group, Verdict, heading},
    rerun::Rerun,
};
use crate::build::cargo;

/// Where the targets are, from the root of the repository.
const FOLDER: &str = "tests/fuzz";
/// How long each target runs.
const EACH: Duration = Duration::from_mins(1);
/// The longest time for a single input; most take microseconds.
const INPUT_LIMIT: Duration = Duration::from_secs(10);
/// The longest input in bytes. libFuzzer would read only the beginning of a longer seed.
const LONGEST: u64 = 16 << 10;
/// The release of cargo-fuzz that xtask installs where there is none.
const RELEASE: &str = "0.13.2";

/// Fuzzes the targets that the arguments choose, each a group. An input that breaks one stays in the target's folder
/// below `tests/fuzz/artifacts`, and cargo-fuzz names it. A failure before the first target is a failure among others.
pub(super) fn run(arguments: &[String], rerun: &Rerun) -> Vec<Group> {
    let started = Instant::now();
    all(arguments, rerun).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        vec![Group::without_tests("fuzz", Verdict::Failed, started.elapsed(), rerun.clone())]
    })
}

fn all(arguments: &[String], rerun: &Rerun) -> Result<Vec<Group>> {
    let cargo_fuzz = cargo::tool("fuzz", "cargo-fuzz", RELEASE)?;
    let folder = cargo::workspace().join(FOLDER);
    let corpus = folder.join("target/corpus");
    unpack(&folder, &corpus)?;
    let targets = targets(&folder)?;
    let chosen = targets.iter().filter(|target| is_chosen(target, arguments));
    chosen.map(|target| fuzz(&cargo_fuzz, &folder, &corpus, target, rerun)).collect()
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

/// Whether a test binary with these arguments would run a test of this name.
fn is_chosen(target: &str, arguments: &[String]) -> bool {
    let exact = arguments.iter().any(|word| word == "--exact");
    let filters = filters(arguments);
    filters.is_empty()
        || filters.iter().any(|filter| if exact { target == *filter } else { target.contains(filter) })
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

fn fuzz(cargo_fuzz: &Path, folder: &Path, corpus: &Path, target: &str, rerun: &Rerun) -> Result<Group> {
    heading(&format!("fuzz {target}"));
    let started = Instant::now();
    // New inputs go to a folder of their own; `wsl-mirror-user/src/fuzzing.rs` says how they join the archive.
    let found = folder.join("target/found").join(target);
    // The archive has no inputs for some targets; libFuzzer refuses a folder that does not exist.
    let archived = corpus.join(target);
    for folder in [&found, &archived] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let status = command(cargo_fuzz)
        // Stable compilers have no sanitizers. The targets look for panics; unsafe code never sees their input.
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
    let rerun = Rerun::Command(rerun.one(target));
    Ok(Group { count, ..Group::without_tests(&format!("fuzz {target}"), verdict, started.elapsed(), rerun) })
}

/// cargo-fuzz as a cargo subcommand is called, with the cargo that runs us for its builds.
fn command(cargo_fuzz: &Path) -> Command {
    let mut command = cargo::with_our_toolchain(Command::new(cargo_fuzz));
    command.arg("fuzz").current_dir(cargo::workspace());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_chooses_targets_as_it_chooses_tests() {
        let arguments =
            |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
        assert!(is_chosen("nft", &arguments(&[])) && is_chosen("nft", &arguments(&["ft"])));
        assert!(!is_chosen("nft", &arguments(&["--exact", "ft"])));
        assert!(is_chosen("nft", &arguments(&["--exact", "btf", "nft"])));
    }

    #[test]
    fn every_seed_is_read_to_its_end() {
        let folder = cargo::workspace().join(FOLDER);
        let corpus = folder.join("target/corpus-in-test");
        unpack(&folder, &corpus).unwrap();
        let mut read = 0;
        for target in targets(&folder).unwrap() {
            for inputs in [folder.join("seeds").join(&target), corpus.join(&target)] {
                for input in fs::read_dir(&inputs).into_iter().flatten() {
                    let input = input.unwrap();
                    assert!(input.metadata().unwrap().len() <= LONGEST, "{}", input.path().display());
                    read += 1;
                }
            }
        }
        assert!(read > 0, "no inputs in {}", folder.display());
        fs::remove_dir_all(&corpus).unwrap();
    }
}
