//! A table for people, with columns as wide as they need to be.

use std::fmt::Write as _;

/// Lays out rows below a heading. Columns from `right` on are numbers, and aligned as such.
pub(crate) fn render<const N: usize>(heading: [&str; N], rows: &[[String; N]], right: usize) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.to_vec()).collect();
    render_any(&heading.map(str::to_owned), &rows, right)
}

/// The same with a number of columns that is known only when it runs.
pub(crate) fn render_any(heading: &[String], rows: &[Vec<String>], right: usize) -> String {
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        let mut row = String::new();
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing to a String does not fail.
            let _ = if column < right {
                write!(row, "{gap}{cell:<width$}")
            } else {
                write!(row, "{gap}{cell:>width$}")
            };
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(heading);
    line(&widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn numbers_are_aligned_to_the_right() {
        let rows = [["unit tests".to_owned(), "7".to_owned()], ["lab".to_owned(), "12".to_owned()]];
        assert_eq!(
            render(["group", "n"], &rows, 1),
            "group        n\n──────────  ──\nunit tests   7\nlab         12\n"
        );
    }
}
