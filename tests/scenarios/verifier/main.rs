//! The verifier's numbers for each program: its length, and how many instructions the verifier followed to accept it.
//!
//! `table.txt` holds them for each kernel. The verifier's limit is a million, and an older kernel may need twice as many
//! as this one: a program that becomes harder to verify has to fail here first.

use std::{collections::BTreeSet, fs, io::Write as _};

use anyhow::{Context as _, Result};
use aya::programs::{
    ProgramInfo,
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, load},
    pins,
};

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

fn table() -> Vec<Line> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| Line::parse(line).or_panic()).collect()
}

/// Whether two numbers are nearly the same.
fn close(is: u32, was: u32) -> bool {
    u64::from(is.abs_diff(was)) * 100 <= u64::from(was) * u64::from(TOLERANCE)
}

/// All programs that are pinned in our folder, or held by a link that is. Of the two forms of the program on egress the
/// kernel has one.
fn programs(lab: &Lab) -> Vec<ProgramInfo> {
    let found = lab.guest().enter(|| -> Result<_> {
        let mut ids = BTreeSet::new();
        for pin in fs::read_dir(pins::directory())? {
            let pin = pin?;
            // `program`, `program_egress`; `link` and others.
            let name = pin.file_name().to_string_lossy().into_owned();
            if name.starts_with("program") {
                ids.insert(ProgramInfo::from_pin(pin.path())?.id());
            } else if name.starts_with("link") {
                ids.insert(FdLink::from(PinnedLink::from_pin(pin.path())?).info()?.program_id());
            }
        }
        Ok(loaded_programs().flatten().filter(|program| ids.contains(&program.id())).collect())
    });
    found.or_panic()
}

#[test]
fn programs_are_as_long_and_hard_to_verify_as_the_table_says() {
    let lab = Lab::builder().build().unwrap();
    load(&lab);
    let (major, minor) = lab.kernel().unwrap();
    let kernel = format!("{major}.{minor}");
    let expected: Vec<Line> = table().into_iter().filter(|line| line.kernel == kernel).collect();
    let mut seen = Vec::new();
    for info in programs(&lab) {
        let program = info.name_as_str().expect("a program without a name").to_owned();
        let processed = info.verified_instruction_count().expect("the kernel counts them since 5.16");
        let size = info.size_translated().expect("the kernel hides its instructions (kptr_restrict?)");
        seen.push(Line { kernel: kernel.clone(), program, instructions: size / 8, processed });
    }
    assert!(!seen.is_empty(), "no program is pinned in {}", pins::directory());
    seen.sort_by(|a, b| a.program.cmp(&b.program));
    for line in &seen {
        let Line { kernel, program, instructions, processed } = line;
        // Not by `println!`, which shows nothing of tests that pass.
        writeln!(std::io::stdout(), "verifier: {kernel:6} {program:14} {instructions:6} {processed:8}")
            .unwrap();
    }
    if expected.is_empty() {
        writeln!(std::io::stdout(), "verifier: no line for {kernel} in tests/scenarios/verifier/table.txt")
            .unwrap();
        return;
    }
    for line in &seen {
        let known = expected.iter().find(|known| known.program == line.program);
        let known = known.unwrap_or_else(|| panic!("{} is not in the table for {kernel}", line.program));
        assert!(
            close(line.instructions, known.instructions) && close(line.processed, known.processed),
            "more than {TOLERANCE} % off:\n  {line:?}, the table has\n  {known:?}\n\
             If that is as it should be, change tests/scenarios/verifier/table.txt in the same commit"
        );
    }
    for known in &expected {
        assert!(
            seen.iter().any(|line| line.program == known.program),
            "{} is in the table, and not in the kernel",
            known.program
        );
    }
}

#[test]
fn the_table_parses_and_a_tenth_is_the_limit() {
    assert!(table().iter().any(|line| line.kernel == "6.12"));
    assert!(Line::parse("6.12 wsl_mirror 700").is_err());
    assert!(close(110, 100) && close(90, 100) && close(100, 100));
    assert!(!close(111, 100) && !close(89, 100) && !close(1, 0));
}
