//! `/etc/wsl.conf`: what WSL reads in it, and our part of its `[boot] command`, put in and taken out again.
//!
//! The grammar is WSL's own (`src/shared/configfile/configfile.cpp`): quotes may begin anywhere in a value, a backslash
//! escapes, or continues the line; names know no case; of a key that is there twice the first counts. WSL stops reading
//! at the first line that it does not understand, so a file with such a line is refused: what we wrote behind it would
//! never run.

mod grammar;

use std::ops::Range;

use self::grammar::{WslConf, end_of_line};

pub use self::grammar::{Init, NotUnderstood, parse};

/// Where the agent's messages go where there is no journal.
pub const LOG: &str = "/run/wsl-mirror.log";

/// Stands above what was put into a file that was there.
const MARKER: &str = "# Written by `wsl-mirror install`; `wsl-mirror uninstall` takes it out again.";
/// Stands above what was put into a file that was not there.
const NEW_FILE: &str = "# Made by `wsl-mirror install`; `wsl-mirror uninstall` removes it.";

/// What shall be in the place of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edited {
    /// This text.
    Text(String),
    /// Nothing: there was no file before we made it.
    NoFile,
}

/// The command that starts the agent, with a space behind it: in front of whatever else is to be run, and in the
/// background. `/bin/sh -c` gets it.
fn our_command(binary: &str) -> String {
    format!("({binary} mode && exec {binary} run) >{LOG} 2>&1 & ")
}

/// Whether a path can stand in that command, and in a unit, as it is.
pub fn can_be_written(binary: &str) -> bool {
    binary.starts_with('/')
        && binary.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte))
}

/// Where our command stands in a text, whatever the path in it.
fn find_ours(text: &str) -> Option<Range<usize>> {
    text.match_indices('(').find_map(|(start, _)| {
        let (binary, _) = text[start + 1..].split_once(" mode && exec ")?;
        let ours = our_command(binary);
        // An editor may have taken the space at the end of a line away.
        let found =
            [ours.as_str(), ours.trim_end()].into_iter().find(|ours| text[start..].starts_with(ours))?;
        can_be_written(binary).then(|| start..start + found.len())
    })
}

/// Whether our command stands anywhere in a text, understood or not.
pub fn has_ours(text: &str) -> bool {
    find_ours(text).is_some()
}

/// The file with our command in it; `None` of a file is one that is not there. What an earlier install put there, with
/// whatever path, is replaced.
pub fn with_ours(before: Option<&str>, binary: &str) -> Result<String, NotUnderstood> {
    let clean = match without_ours(before.unwrap_or_default())? {
        Edited::Text(clean) if before.is_some() => Some(clean),
        _ => None,
    };
    let text = clean.as_deref().unwrap_or_default();
    let found = parse(text)?;
    let ours = our_command(binary);
    let newline = line_break(text);
    let key = format!("command = {}", ours.trim_end());
    let (at, block) = match (&found.command, found.after_boot) {
        (Some(command), _) if command.value.contains("wsl-mirror") => {
            return Err(NotUnderstood {
                line: command.line,
                what: "runs wsl-mirror already, but not as `install` writes it: take that out first"
                    .to_owned(),
            });
        }
        // Quotes and escapes of what follows go on to mean what they meant.
        (Some(command), _) => return Ok(inserted(text, command.raw.start, &ours)),
        (None, Some(after)) => (after, [MARKER, &key].join(newline)),
        (None, None) => {
            let marker = if clean.is_some() { MARKER } else { NEW_FILE };
            (text.len(), [marker, "[boot]", &key].join(newline))
        }
    };
    // Where the line before has no end, ours gets none either: so one sees later what has to go.
    let block = if text[..at].is_empty() || text[..at].ends_with('\n') {
        format!("{block}{newline}")
    } else {
        format!("{newline}{block}")
    };
    Ok(inserted(text, at, &block))
}

/// The file without our command: byte for byte what it was, if nobody has changed what we wrote.
pub fn without_ours(text: &str) -> Result<Edited, NotUnderstood> {
    let found = parse(text)?;
    let mut left = text.to_owned();
    let Some(command) = &found.command else { return Ok(Edited::Text(left)) };
    let Some(ours) = find_ours(&text[command.raw.clone()]) else { return Ok(Edited::Text(left)) };
    let ours = command.raw.start + ours.start..command.raw.start + ours.end;
    let Some(block) = block_around(text, &ours, &found) else {
        // An editor has taken the blank at its end, or nothing stood there; either is as it was now.
        let blank = usize::from(!text[ours.clone()].ends_with(' ') && text[ours.end..].starts_with(' '));
        left.replace_range(ours.start..ours.end + blank, "");
        return Ok(Edited::Text(left));
    };
    let made_by_us = text[block.clone()].starts_with(NEW_FILE);
    let one_break =
        |text: &str| if text.starts_with("\r\n") { 2 } else { usize::from(text.starts_with('\n')) };
    let behind = one_break(&text[block.end..]);
    let before = &text[..block.start];
    let range = match before.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
        Some(line) if behind == 0 => line.len()..block.end,
        _ => block.start..block.end + behind,
    };
    left.replace_range(range, "");
    Ok(if made_by_us && left.is_empty() { Edited::NoFile } else { Edited::Text(left) })
}

/// The lines that [`with_ours`] added, without the last line break; `None` where it has added to a line, or where
/// somebody has added to ours.
fn block_around(text: &str, ours: &Range<usize>, found: &WslConf) -> Option<Range<usize>> {
    let line = text[..ours.start].rfind('\n')? + 1;
    let end = end_of_line(text, ours.end);
    if &text[line..ours.start] != "command = " || !text[ours.end..end.content].trim().is_empty() {
        return None;
    }
    // Without carriage returns, which one of them may have and the other not.
    let above = |at: usize| -> Option<(Range<usize>, &str)> {
        let newline = at.checked_sub(1)?;
        let start = text[..newline].rfind('\n').map_or(0, |newline| newline + 1);
        Some((start..at, text[start..newline].trim_end_matches('\r')))
    };
    let is_marker = |line: &str| line == MARKER || line == NEW_FILE;
    let (first, content) = above(line)?;
    if is_marker(content) {
        return Some(first.start..end.content);
    }
    let (second, marker) = above(first.start)?;
    if content != "[boot]" || !is_marker(marker) {
        return None;
    }
    // Keys that somebody has written below ours belong to this section: it has to stay.
    let mut until = end.next;
    for line in text[end.next..].split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            break;
        }
        until += line.len();
    }
    let keys_below = found.keys.iter().any(|key| (end.next..until).contains(key));
    (!keys_below).then_some(second.start..end.content)
}

fn line_break(text: &str) -> &'static str {
    match text.find('\n') {
        Some(newline) if text[..newline].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

fn inserted(text: &str, at: usize, what: &str) -> String {
    let mut text = text.to_owned();
    text.insert_str(at, what);
    text
}

#[cfg(test)]
mod tests;
