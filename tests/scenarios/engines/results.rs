//! What was found, as lines that `cargo xtask test` makes its table of (`xtask/src/engines/results.rs`).

use std::{env, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{
    cells::{Cell, Columns, Outcome},
    configuration::Configuration,
};
use wsl_mirror_lab::checks::OrPanic as _;

/// Names the folder that gets a file from each test.
const FOLDER: &str = "WSL_MIRROR_ENGINES_RESULTS";

/// What a configuration came to, or why it was not run.
#[track_caller]
pub fn write(
    test: &str,
    configuration: &Configuration,
    found: &Result<(String, &Columns, Vec<String>), String>,
) {
    let Some(folder) = env::var_os(FOLDER).filter(|value| !value.is_empty()).map(PathBuf::from) else {
        return;
    };
    let [how, wslinfo, loopback0] = configuration.details();
    let mut text = format!("configuration\t{configuration}\t{how}\t{wslinfo}\t{loopback0}\n");
    match found {
        Err(reason) => writeln!(text, "skipped\t{}", line(reason)).or_panic(),
        Ok((version, columns, notes)) => {
            let release = configuration.release;
            writeln!(text, "installed\t{}\t{} {version}", release.suite, release.package).or_panic();
            cells(&mut text, columns);
            for note in notes {
                writeln!(text, "note\t{}", line(note)).or_panic();
            }
        }
    }
    let path = folder.join(test);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display())).or_panic();
}

#[track_caller]
fn cells(text: &mut String, columns: &Columns) {
    for (phase, column) in columns.phases() {
        for (cell, outcome) in column {
            let Cell { client, protocol, server } = cell;
            let (answer, median) = match outcome {
                Outcome::Answers(median) => ("always", median.as_micros().to_string()),
                Outcome::Sometimes(_) => ("sometimes", "-".to_owned()),
                Outcome::Never(_) => ("never", "-".to_owned()),
            };
            let failure = outcome.failure().map_or_else(|| "-".to_owned(), line);
            writeln!(text, "cell\t{client}\t{protocol}\t{server}\t{phase}\t{answer}\t{median}\t{failure}")
                .or_panic();
        }
    }
}

/// What must not tear a line apart.
fn line(text: impl AsRef<str>) -> String {
    text.as_ref().replace(['\t', '\n'], " ")
}
