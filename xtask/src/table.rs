//! A table for people: columns as wide as they need to be, and colours that do not count as width.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};

/// What works.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What does not.
pub const BAD: Style = AnsiColor::Red.on_default();
/// What breaks a promise.
pub const WRONG: Style = AnsiColor::Red.on_default().bold().invert();
/// Headings.
pub const HEADING: Style = Style::new().bold();

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A text in this style.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Style::new())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Style::new())
    }
}

/// Lays out rows below a bold heading.
pub fn styled<const N: usize>(heading: [&str; N], rows: &[[Cell; N]]) -> String {
    let mut lines = vec![heading.map(|text| Cell::new(text, HEADING)).to_vec()];
    lines.extend(rows.iter().map(|row| row.to_vec()));
    lay_out(&lines, N)
}

/// Lays out rows below a ruled heading, without colours. Columns from `right` on are numbers, and aligned as such.
pub(crate) fn plain<const N: usize>(heading: [&str; N], rows: &[[String; N]], right: usize) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.to_vec()).collect();
    plain_rows(&heading.map(str::to_owned), &rows, right)
}

/// [`plain`] with a number of columns that only the run knows.
pub(crate) fn plain_rows(heading: &[String], rows: &[Vec<String>], right: usize) -> String {
    let cells = |row: &[String]| -> Vec<Cell> { row.iter().map(|text| text.as_str().into()).collect() };
    let mut lines = vec![cells(heading)];
    lines.extend(rows.iter().map(|row| cells(row)));
    let widths = table(&lines, right).column_max_content_widths();
    lines.insert(1, widths.into_iter().map(|width| "─".repeat(width.into()).into()).collect());
    lay_out(&lines, right)
}

fn table(lines: &[Vec<Cell>], right: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for line in lines {
        table.add_row(line.iter().map(|cell| cell.text.as_str()));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= right {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Colours the cells after the layout, which would count their escapes as width.
fn lay_out(lines: &[Vec<Cell>], right: usize) -> String {
    let mut text = String::new();
    for (cells, line) in lines.iter().zip(table(lines, right).lines()) {
        let mut row = String::new();
        let mut rest = line.as_str();
        for Cell { text, style } in cells.iter().filter(|cell| !cell.text.is_empty()) {
            // Only blanks stand before the cell.
            let Some((blanks, behind)) = rest.split_once(text.as_str()) else { break };
            // Writing to a String does not fail.
            let _ = write!(row, "{blanks}{style}{text}{style:#}");
            rest = behind;
        }
        row.push_str(rest.trim_end());
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right() {
        let rows = [["unit tests".to_owned(), "7".to_owned()], ["lab".to_owned(), "12".to_owned()]];
        assert_eq!(
            plain(["group", "n"], &rows, 1),
            "group        n\n──────────  ──\nunit tests   7\nlab         12\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let rows = [
            ["a".into(), Cell::new("✓ 1 ms", GOOD), "end".into()],
            ["long".into(), Cell::new("hangs", BAD), "end".into()],
        ];
        let text = styled(["", "one", "two"], &rows);
        let mut bare = String::new();
        for part in text.split('\x1b') {
            bare.push_str(
                part.strip_prefix('[')
                    .map_or(part, |rest| rest.split_once('m').map_or(rest, |(_, text)| text)),
            );
        }
        assert_eq!(bare, "      one     two\na     ✓ 1 ms  end\nlong  hangs   end\n");
    }
}
