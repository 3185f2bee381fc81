//! What people and programs read.

use std::io::{self, Write};

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

/// Standard output, as `main` hands it to a command. Once its reader has gone away (`| head`), it drops what is
/// written: the command does its work, and ends with the exit code that it would have had.
pub struct Output {
    writer: Box<dyn Write + Send>,
    reader: Reader,
}

/// The reader of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// It may read more.
    Present,
    /// It has closed the pipe.
    Gone,
}

impl Output {
    /// The process's standard output. Styles are left out unless it is a terminal.
    pub fn stdout() -> Self {
        Self::to(anstream::stdout())
    }

    fn to(writer: impl Write + Send + 'static) -> Self {
        Self { writer: Box::new(writer), reader: Reader::Present }
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        if self.reader == Reader::Gone {
            return Ok(());
        }
        match writeln!(self.writer, "{text}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.reader = Reader::Gone;
                Ok(())
            }
            done => Ok(done?),
        }
    }

    /// Writes JSON.
    pub fn json<T: Serialize>(&mut self, value: &T) -> Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    /// Whether somebody may read what is written next.
    pub const fn reader(&self) -> Reader {
        self.reader
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose reader closes it after so many writes.
    struct Pipe(usize);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        let mut output = Output::to(Pipe(1));
        output.line("").unwrap();
        assert_eq!(output.reader(), Reader::Present);
        output.line("").unwrap();
        output.line("").unwrap();
        assert_eq!(output.reader(), Reader::Gone);
    }
}
