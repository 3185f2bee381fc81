//! `/etc/wsl.conf`: what WSL reads in it, and our part of its `[boot] command`, put in and taken out again.
//!
//! The grammar is WSL's own (`src/shared/configfile/configfile.cpp`): quotes may begin anywhere in a value, a backslash
//! escapes, or continues the line; names know no case; of a key that is there twice the first counts. WSL stops reading
//! at the first line that it does not understand, so a file with such a line is refused: what we wrote behind it would
//! never run.

use std::ops::Range;

/// Where the agent's messages go where there is no journal.
pub const LOG: &str = "/run/wsl-mirror.log";

/// Stands above what was put into a file that was there.
const MARKER: &str = "# Written by `wsl-mirror install`; `wsl-mirror uninstall` takes it out again.";
/// Stands above what was put into a file that was not there.
const NEW_FILE: &str = "# Made by `wsl-mirror install`; `wsl-mirror uninstall` removes it.";

/// What of the file matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WslConf {
    /// `[boot] systemd`.
    pub systemd: Option<bool>,
    /// `[boot] command`.
    command: Option<Command>,
    /// What follows the line of the first `[boot]`, if there is one.
    after_boot: Option<usize>,
    /// Where each line of a key begins: what a header in front of it decides about.
    keys: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Command {
    line: usize,
    /// As it stands there, escapes, quotes and all; empty where nothing follows the `=`.
    raw: Range<usize>,
    /// As WSL gives it to `sh -c`.
    value: String,
}

/// Why a file is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood {
    /// From 1.
    pub line: usize,
    /// Completes "line N …".
    pub what: String,
}

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

/// Reads a text. Where the file is no UTF-8, the replacement character stands in it (`String::from_utf8_lossy`).
pub fn parse(text: &str) -> Result<WslConf, NotUnderstood> {
    let mut found = WslConf::default();
    let mut section = String::new();
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let refuse = |what: &str| Err(NotUnderstood { line, what: what.to_owned() });
        let end = end_of_line(text, at);
        let content = text[at..end.content].trim_start_matches([' ', '\t']);
        let start = end.content - content.len();
        if content.contains('\r') {
            return refuse("has a carriage return in its middle");
        }
        if content.contains(char::REPLACEMENT_CHARACTER) {
            return refuse("has bytes that are no text in UTF-8");
        }
        if content.is_empty() || content.starts_with('#') {
            at = end.next;
        } else if let Some(rest) = content.strip_prefix('[') {
            let name_end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let (name, rest) = rest.split_at(name_end);
            let after = rest.strip_prefix(']').map(|rest| rest.trim_start_matches([' ', '\t']));
            if !name.starts_with(|c: char| c.is_ascii_alphabetic())
                || !after.is_some_and(|after| after.is_empty() || after.starts_with('#'))
            {
                return refuse("is no [section]");
            }
            section = name.to_ascii_lowercase();
            if section == "boot" && found.after_boot.is_none() {
                found.after_boot = Some(end.next);
            }
            at = end.next;
        } else {
            let name_end = content.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(content.len());
            let (name, rest) = content.split_at(name_end);
            let rest = rest.trim_start_matches([' ', '\t']);
            if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !rest.starts_with('=') {
                return refuse("is neither a comment, a [section] nor a `key = value`");
            }
            let from = end.content - rest.len() + 1;
            let value = Value::read(text, from).map_err(|what| NotUnderstood { line, what })?;
            found.keys.push(at);
            match (section.as_str(), name.to_ascii_lowercase().as_str()) {
                ("boot", "command") => {
                    if let Some(first) = &found.command {
                        return refuse(&format!(
                            "has a second `command`; the first is in line {}",
                            first.line
                        ));
                    }
                    found.command = Some(Command { line, raw: value.raw.clone(), value: value.text });
                }
                // The first counts.
                ("boot", "systemd") if found.systemd.is_none() => {
                    found.systemd = match value.text.to_ascii_lowercase().as_str() {
                        "1" | "true" => Some(true),
                        "0" | "false" => Some(false),
                        _ => return refuse("says of systemd neither true nor false"),
                    };
                }
                _ => {}
            }
            at = value.next;
        }
        line += text[start..at].matches('\n').count();
    }
    Ok(found)
}

struct End {
    /// Without its line break.
    content: usize,
    next: usize,
}

fn end_of_line(text: &str, at: usize) -> End {
    let Some(newline) = text[at..].find('\n').map(|length| at + length) else {
        return End { content: text.len(), next: text.len() };
    };
    let content = newline - usize::from(text[at..newline].ends_with('\r'));
    End { content, next: newline + 1 }
}

/// A value, which may go on over several lines.
struct Value {
    raw: Range<usize>,
    text: String,
    next: usize,
}

impl Value {
    /// `from`: behind the `=`.
    fn read(text: &str, from: usize) -> Result<Self, String> {
        let from = from + text[from..].find(|c| c != ' ' && c != '\t').unwrap_or(text.len() - from);
        let mut value = String::new();
        // Of both, without blanks at the end.
        let (mut value_end, mut raw_end) = (0, from);
        let mut quoted = false;
        let mut rest = text[from..].char_indices().map(|(index, c)| (from + index, c));
        let mut end = text.len();
        while let Some((at, c)) = rest.next() {
            match c {
                '\n' | '\r' => {
                    end = at;
                    break;
                }
                '#' if !quoted => {
                    end = at;
                    break;
                }
                '"' => quoted = !quoted,
                '\\' => match rest.next().map(|(_, escaped)| escaped) {
                    Some(c @ ('\\' | '"')) => value.push(c),
                    Some('b') => value.push('\u{8}'),
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('\n') => {}
                    _ => return Err("has a backslash that means nothing to WSL".to_owned()),
                },
                c => value.push(c),
            }
            if c != ' ' && c != '\t' {
                value_end = value.len();
                raw_end = at + c.len_utf8() + usize::from(c == '\\');
            }
        }
        if quoted {
            return Err("has a quotation mark without its second".to_owned());
        }
        value.truncate(value_end);
        let next = end_of_line(text, end).next;
        Ok(Self { raw: from..raw_end, text: value, next })
    }
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
mod tests {
    use super::*;

    const US: &str = "/usr/local/sbin/wsl-mirror";
    const OURS: &str = "(/usr/local/sbin/wsl-mirror mode && exec /usr/local/sbin/wsl-mirror run) \
                        >/run/wsl-mirror.log 2>&1 &";

    fn with(text: &str) -> String {
        with_ours(Some(text), US).unwrap_or_else(|error| panic!("{error:?} in {text:?}"))
    }

    fn refused(text: &str) -> usize {
        with_ours(Some(text), US).unwrap_err().line
    }

    /// Files that people have: each with what WSL runs after an install.
    fn files() -> Vec<(&'static str, String)> {
        let alone = || OURS.to_owned();
        let before = |theirs: &str| format!("{OURS} {theirs}");
        vec![
            ("", alone()),
            ("\n", alone()),
            ("# nothing but a comment", alone()),
            ("[boot]", alone()),
            ("[boot]\n", alone()),
            ("[boot]\r\n", alone()),
            ("[network]\r\nhostname=a\r\n[boot] # here\r\nsystemd=false", alone()),
            ("[Boot]\nSystemd = False\n\n[user]\ndefault = me\n", alone()),
            ("[boot]\n[boot]\nsystemd=0\n", alone()),
            ("[user]\ndefault=me", alone()),
            ("command = outside of every section\n", alone()),
            ("[user]\ncommand = of another section\n", alone()),
            ("[boot]\ncommand = service docker start\n", before("service docker start")),
            ("[boot]\ncommand=service docker start # theirs", before("service docker start")),
            ("[boot]\r\nCOMMAND = \"service docker start\"  \r\n", before("service docker start")),
            ("[boot]\ncommand = \"echo \\\"a#b\\\" >/tmp/x\" # why\n", before("echo \"a#b\" >/tmp/x")),
            ("[boot]\ncommand = one && \\\n  two # three\nsystemd=false\n", before("one &&   two")),
            ("[boot]\ncommand =", alone()),
            ("[boot]\ncommand = \n[user]\n", alone()),
            ("[boot]\ncommand = # none\n", alone()),
        ]
    }

    #[test]
    fn our_command_runs_first_and_what_was_there_as_before() {
        for (text, runs) in files() {
            let installed = with(text);
            let found = parse(&installed).unwrap();
            assert_eq!(found.command.unwrap().value, runs, "{text:?} became {installed:?}");
            assert_eq!(found.systemd, parse(text).unwrap().systemd, "{text:?} became {installed:?}");
            // Nothing was taken away, and all comments are there.
            let mut rest = installed.chars();
            assert!(text.chars().all(|c| rest.any(|other| other == c)), "{text:?} became {installed:?}");
        }
    }

    #[test]
    fn what_was_installed_is_undone_byte_for_byte() {
        for (text, _) in files() {
            assert_eq!(without_ours(&with(text)), Ok(Edited::Text(text.to_owned())), "{text:?}");
        }
        assert_eq!(without_ours(&with_ours(None, US).unwrap()), Ok(Edited::NoFile));
    }

    #[test]
    fn installing_twice_changes_nothing_and_another_path_takes_the_place_of_the_first() {
        for (text, _) in files() {
            let once = with(text);
            assert_eq!(with(&once), once, "{text:?}");
            let moved = with_ours(Some(&once), "/usr/sbin/wsl-mirror").unwrap();
            assert_eq!(moved, with_ours(Some(text), "/usr/sbin/wsl-mirror").unwrap(), "{text:?}");
        }
        let new = with_ours(None, US).unwrap();
        assert_eq!(with(&new), new);
    }

    #[test]
    fn whatever_is_put_together_is_undone_byte_for_byte() {
        const PIECES: [&str; 14] = [
            "[boot]",
            "[user]",
            "[BOOT] # x",
            "command = a",
            "command=\"b # c\" # d",
            "command =",
            "systemd=true",
            "default = me \\\n  and more",
            "# a comment",
            "",
            "  ",
            "\t# x",
            "x=\"\\\"\"",
            "command = e & ",
        ];
        // Every text of up to three of them, with each line break, with and without one at the end.
        let mut tried = 0;
        for index in 0..PIECES.len().pow(3) {
            let pick =
                |digit: usize| PIECES[index / PIECES.len().pow(u32::try_from(digit).unwrap()) % PIECES.len()];
            for (newline, end) in [("\n", ""), ("\n", "\n"), ("\r\n", ""), ("\r\n", "\r\n")] {
                let text = [pick(0), pick(1), pick(2)].join(newline) + end;
                let Ok(installed) = with_ours(Some(&text), US) else { continue };
                assert_eq!(
                    without_ours(&installed),
                    Ok(Edited::Text(text.clone())),
                    "{text:?}: {installed:?}"
                );
                assert_eq!(with_ours(Some(&installed), US), Ok(installed.clone()), "{text:?}");
                tried += 1;
            }
        }
        assert!(tried > 5000, "{tried}");
    }

    #[test]
    fn what_others_wrote_beside_ours_afterwards_stays() {
        let undone = |text: &str| match without_ours(text).unwrap() {
            Edited::Text(text) => text,
            Edited::NoFile => panic!("{text:?}"),
        };
        // A key below our section, a command behind ours, a section behind our last line.
        let appended = with("") + "systemd = false\n";
        assert_eq!(parse(&undone(&appended)).unwrap().systemd, Some(false));
        assert_eq!(parse(&undone(&appended)).unwrap().command.unwrap().value, "");
        let behind = with("[boot]\n").replace("2>&1 &", "2>&1 & service docker start");
        assert_eq!(parse(&undone(&behind)).unwrap().command.unwrap().value, "service docker start");
        assert_eq!(undone(&(with("[boot]") + "\n[user]\n")), "[boot]\n[user]\n");
        assert_eq!(undone(&(with_ours(None, US).unwrap() + "[user]\n")), "[user]\n");
    }

    #[test]
    fn a_file_without_ours_is_left_as_it_is() {
        for (text, _) in files() {
            assert_eq!(without_ours(text), Ok(Edited::Text(text.to_owned())));
        }
    }

    #[test]
    fn what_wsl_would_not_understand_is_refused_with_its_line() {
        for (text, line) in [
            ("[boot\n", 1),
            ("[user]\n[my section]\n", 2),
            ("[user] x\n", 1),
            ("nonsense\n", 1),
            ("# a\n\n= b\n", 3),
            ("\u{feff}[boot]\n", 1),
            ("[boot]\ncommand = \"a\n", 2),
            ("[boot]\ncommand = a\\x\n", 2),
            ("[boot]\ncommand = a \\\r\n  b\r\n", 2),
            ("[boot]\na = b\\\nc = \"\n", 2),
            ("[boot]\nsystemd = perhaps\n", 2),
            ("[boot]\rcommand = a\n", 1),
            ("[boot]\n# caf\u{fffd}\n", 2),
            ("[boot]\ncommand = a\n[user]\n[boot]\ncommand = b\n", 5),
            ("[boot]\n\ncommand = /usr/local/sbin/wsl-mirror load\n", 3),
        ] {
            assert_eq!(refused(text), line, "{text:?}");
        }
    }

    #[test]
    fn only_paths_that_mean_themselves_everywhere_are_written() {
        assert!(can_be_written(US));
        for path in
            ["wsl-mirror", "/opt/a b/wsl-mirror", "/opt/$x/wsl-mirror", "/opt/%n/wsl-mirror", "/a\"b", "/a;b"]
        {
            assert!(!can_be_written(path), "{path}");
        }
    }
}
