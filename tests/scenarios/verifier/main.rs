//! What the verifier makes of each program: how long it is, and how many instructions were looked at until it was
//! accepted. Held against `table.txt`, so that nobody makes a program ten times as hard to verify without noticing:
//! where the limit is a million, an older kernel may need twice what this one does.

use std::{collections::BTreeSet, fs, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{
    ProgramInfo,
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use wsl_mirror_lab::Lab;

const PINS: &str = "/sys/fs/bpf/wsl-mirror/v1";
const TABLE: &str = include_str!("table.txt");
/// How far a number may be off, in percent: compilers differ, and so do the kernel's small changes.
const TOLERANCE: u32 = 10;

/// A line of the table, or what a kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// Major and minor number.
    kernel: String,
    program: String,
    /// As the kernel runs it, its own helpers inlined.
    instructions: u32,
    /// `verified_insns`: on every way through the program.
    processed: u32,
}

impl Line {
    fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let mut next = || words.next().with_context(|| format!("a line with too few columns: {text}"));
        Ok(Self {
            kernel: next()?.to_owned(),
            program: next()?.to_owned(),
            instructions: next()?.parse()?,
            processed: next()?.parse()?,
        })
    }
}

fn table() -> Result<Vec<Line>> {
    TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Line::parse).collect()
}

/// Whether two numbers are nearly the same.
fn close(is: u32, was: u32) -> bool {
    u64::from(is.abs_diff(was)) * 100 <= u64::from(was) * u64::from(TOLERANCE)
}

/// All programs that are pinned in our folder, or held by a link that is.
fn programs(lab: &Lab) -> Result<Vec<ProgramInfo>> {
    lab.guest().enter(|| {
        let mut ids = BTreeSet::from([ProgramInfo::from_pin(format!("{PINS}/program"))?.id()]);
        for pin in fs::read_dir(PINS)? {
            let pin = pin?;
            if pin.file_name().to_string_lossy().starts_with("link") {
                ids.insert(FdLink::from(PinnedLink::from_pin(pin.path())?).info()?.program_id());
            }
        }
        Ok(loaded_programs().flatten().filter(|program| ids.contains(&program.id())).collect())
    })
}

#[test]
fn programs_are_as_long_and_hard_to_verify_as_the_table_says() -> Result<()> {
    let lab = Lab::builder().build()?;
    lab.wsl_mirror(&["load"])?.success()?;
    let (major, minor) = lab.kernel()?;
    let kernel = format!("{major}.{minor}");
    let expected: Vec<Line> = table()?.into_iter().filter(|line| line.kernel == kernel).collect();
    let mut seen = Vec::new();
    for info in programs(&lab)? {
        let program = info.name_as_str().context("a program without a name")?.to_owned();
        let processed =
            info.verified_instruction_count().context("the kernel does not tell (before 5.16)")?;
        let size =
            info.size_translated().context("the kernel does not show its instructions (kptr_restrict?)")?;
        seen.push(Line { kernel: kernel.clone(), program, instructions: size / 8, processed });
    }
    ensure!(!seen.is_empty(), "no program is pinned in {PINS}");
    seen.sort_by(|a, b| a.program.cmp(&b.program));
    for line in &seen {
        let Line { kernel, program, instructions, processed } = line;
        // Not by `println!`, which shows nothing of tests that pass.
        writeln!(std::io::stdout(), "verifier: {kernel:6} {program:14} {instructions:6} {processed:8}")?;
    }
    if expected.is_empty() {
        writeln!(std::io::stdout(), "verifier: no line for {kernel} in tests/scenarios/verifier/table.txt")?;
        return Ok(());
    }
    for line in &seen {
        let known = expected.iter().find(|known| known.program == line.program);
        let known = known.with_context(|| format!("{} is not in the table for {kernel}", line.program))?;
        ensure!(
            close(line.instructions, known.instructions) && close(line.processed, known.processed),
            "more than {TOLERANCE} % off:\n  {line:?}, the table has\n  {known:?}\n\
             If that is as it should be, change tests/scenarios/verifier/table.txt in the same commit"
        );
    }
    for known in &expected {
        ensure!(
            seen.iter().any(|line| line.program == known.program),
            "{} is in the table, and not in the kernel",
            known.program
        );
    }
    Ok(())
}

#[test]
fn the_table_parses_and_a_tenth_is_the_limit() -> Result<()> {
    assert!(table()?.iter().any(|line| line.kernel == "6.12"));
    assert!(Line::parse("6.12 wsl_mirror 700").is_err());
    assert!(close(110, 100) && close(90, 100) && close(100, 100));
    assert!(!close(111, 100) && !close(89, 100) && !close(1, 0));
    Ok(())
}
