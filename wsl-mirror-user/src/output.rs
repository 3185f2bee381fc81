//! What people and programs read.

use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::notes::Notes;

/// What works.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What does not.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Headings.
pub const HEADING: Style = Style::new().bold();

/// Writes a line to standard output; styles are left out unless that is a terminal. A reader that went away
/// (`| head`) ends the program quietly.
pub fn line(text: &str) -> Result<()> {
    match writeln!(anstream::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => Ok(done?),
    }
}

/// Tells people something beside the result, on standard error. Nobody may be there to read it, and that must
/// not end a load half-way, as `eprintln!` would.
pub fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "wsl-mirror: {text}");
}

/// Prints every note.
pub fn notes(notes: &Notes) {
    for text in notes {
        note(text);
    }
}

/// Writes JSON to standard output.
pub fn json<T: Serialize>(value: &T) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// An aligned table without lines: columns of numbers, named in `numbers`, to the right.
pub fn table<const N: usize>(
    headings: [&str; N],
    numbers: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
