//! The matrix in `docs/engines.md`: xtask writes the part between two markers, people write the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Row,
    results::{LEGEND, heading},
};
use crate::build::cargo;

const BEGIN: &str = "<!-- from here on: cargo xtask test engines --all --write -->";
const END: &str = "<!-- up to here -->";

/// Writes the matrix into the document, and returns its path.
pub(crate) fn write(rows: &[Row]) -> Result<PathBuf> {
    let path = cargo::workspace().join("docs/engines.md");
    let old = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let new = replaced(&old, &generated(rows, &kernel()))
        .with_context(|| format!("writing the matrix into {}", path.display()))?;
    fs::write(&path, new).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The major and minor number: the rest says where it was measured and nothing about what.
fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

fn replaced(document: &str, generated: &str) -> Result<String> {
    let Some((before, rest)) = document.split_once(BEGIN) else { bail!("there is no line {BEGIN}") };
    let Some((_, after)) = rest.split_once(END) else { bail!("there is no line {END}") };
    Ok(format!("{before}{BEGIN}\n{generated}{END}{after}"))
}

fn generated(rows: &[Row], kernel: &str) -> String {
    let mut text = format!("Measured on Linux {kernel} with what Debian had:\n\n");
    let mut installed: Vec<&(String, String)> =
        rows.iter().filter_map(|row| row.installed.as_ref()).collect();
    installed.dedup();
    let mut seen = BTreeSet::new();
    for (suite, what) in installed.into_iter().filter(|one| seen.insert(*one)) {
        let _ = writeln!(text, "- {suite}: {what}");
    }
    text.push('\n');
    markdown(&mut text, rows);
    text.push('\n');
    text.push_str(LEGEND);
    broken(&mut text, rows);
    not_kept(&mut text, rows);
    text
}

fn markdown(text: &mut String, rows: &[Row]) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(&heading().map(str::to_owned)));
    text.push_str(&line(&heading().map(|_| "---".to_owned())));
    for row in rows {
        text.push_str(&line(&row.line()));
    }
}

/// The cells that do not answer with us, and the rows that have them.
fn broken(text: &mut String, rows: &[Row]) {
    let mut cells: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        for cell in row.silent_with_us() {
            cells.entry(cell).or_default().push(row);
        }
    }
    text.push_str("\n## What stays broken\n");
    if cells.is_empty() {
        text.push_str("Nothing: with us every cell answers.\n");
    }
    for (cell, affected) in cells {
        let _ = writeln!(text, "- {cell}: {}", names(&affected, rows).join("; "));
    }
}

/// What rows are called, those together that differ only in what does not matter here.
fn names(affected: &[&Row], all: &[Row]) -> Vec<String> {
    let mut names = Vec::new();
    for row in affected {
        let [engine, how, wslinfo, loopback0] = &row.configuration;
        let alike = |other: &Row| other.configuration[..2] == row.configuration[..2] && other.was_run();
        let here = affected.iter().filter(|other| alike(other)).count();
        let name = if here == all.iter().filter(|other| alike(other)).count() {
            format!("{engine}, {how}")
        } else {
            format!("{engine}, {how}, {wslinfo}, loopback0 {loopback0}")
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Promises that this tree does not keep, if there are any.
fn not_kept(text: &mut String, rows: &[Row]) {
    let mut promises: BTreeMap<&str, usize> = BTreeMap::new();
    for note in rows.iter().flat_map(|row| &row.notes) {
        *promises.entry(note.split(": ").next().unwrap_or(note)).or_default() += 1;
    }
    if promises.is_empty() {
        return;
    }
    text.push_str("\n## What is promised, and was not so\n");
    for (promise, cells) in promises {
        let _ = writeln!(text, "- {promise}: not so in {cells} cells");
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::results::tests::{FILE, row},
        *,
    };

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let old = format!("# Engines\n{BEGIN}\nold\n{END}\nmore\n");
        let new = replaced(&old, "new\n").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(new, format!("# Engines\n{BEGIN}\nnew\n{END}\nmore\n"));
        assert!(replaced("# Engines\n", "new\n").is_err());
    }

    #[test]
    fn the_matrix_names_versions_and_what_stays_broken() {
        let text = generated(&[row(FILE), row(FILE)], "6.18");
        assert_eq!(text.matches("- sid: docker.io 28.5.2+dfsg4-5\n").count(), 1, "{text}");
        assert!(
            text.contains("- Linux to container on 127.0.0.1, UDP, run: Docker 28.5, proxy off\n"),
            "{text}"
        );
        assert!(!text.contains("without: Docker"), "only what is broken with us: {text}");
        assert!(text.contains("- a promise: not so in 2 cells"), "{text}");
    }

    #[test]
    fn a_matrix_whose_cells_answer_with_us_says_so() {
        let whole = FILE.replace("sometimes", "always").replace("note\ta promise\n", "");
        let text = generated(&[row(&whole)], "6.18");
        assert!(text.ends_with("## What stays broken\nNothing: with us every cell answers.\n"), "{text}");
    }

    #[test]
    fn a_row_is_named_in_full_where_another_of_its_engine_is_not_broken() {
        let other = row("configuration\tDocker 28.5\tproxy off\twslinfo\tbefore dockerd\n");
        let text = generated(&[row(FILE), other], "6.18");
        assert!(
            text.contains(", UDP, run: Docker 28.5, proxy off, no wslinfo, loopback0 before dockerd\n"),
            "{text}"
        );
    }

    #[test]
    fn the_document_has_its_markers() {
        let path = cargo::workspace().join("docs/engines.md");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(replaced(&text, "").is_ok());
    }
}
