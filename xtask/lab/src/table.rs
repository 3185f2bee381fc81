//! A table for people, with columns as wide as they need to be and colours that do not count as width.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

/// What works.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What does not.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// What is not as promised.
pub(crate) const WRONG: Style = AnsiColor::Red.on_default().bold().invert();
/// Headings.
pub(crate) const HEADING: Style = Style::new().bold();

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>, style: Style) -> Self {
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

/// Lays out rows below a heading, with colours in it.
pub(crate) fn render<const N: usize>(heading: [&str; N], rows: &[[Cell; N]]) -> String {
    let heading = heading.map(|text| Cell::new(text, HEADING));
    let lines = || [&heading].into_iter().chain(rows);
    let width = |column: usize| lines().map(|line| line[column].text.chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines() {
        for (column, Cell { text: cell, style }) in line.iter().enumerate() {
            // Writing to a String does not fail.
            let _ = write!(text, "{style}{cell}{style:#}");
            if column + 1 < N {
                let gap = widths[column] - cell.chars().count() + 2;
                text.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_do_not_move_columns() {
        let rows = [
            ["a".into(), Cell::new("✓ 1 ms", GOOD), "end".into()],
            ["long".into(), Cell::new("hangs", BAD), "end".into()],
        ];
        let text = anstream::adapter::strip_str(&render(["", "one", "two"], &rows)).to_string();
        assert_eq!(text, "      one     two\na     ✓ 1 ms  end\nlong  hangs   end\n");
    }
}
