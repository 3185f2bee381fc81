//! WSL's grammar (`src/shared/configfile/configfile.cpp`): what of a text it reads, and how.

use std::ops::Range;

/// What of the file matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WslConf {
    /// `[boot] systemd`.
    pub init: Option<Init>,
    /// `[boot] command`.
    pub command: Option<Command>,
    /// What follows the line of the first `[boot]`, if there is one.
    pub after_boot: Option<usize>,
    /// Where each line of a key begins: what a header in front of it decides about.
    pub keys: Vec<usize>,
}

/// The first process of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd.
    Systemd,
    /// WSL's own.
    Wsl,
}

/// `[boot] command`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// From 1.
    pub line: usize,
    /// As it stands there, escapes, quotes and all; empty where nothing follows the `=`.
    pub raw: Range<usize>,
    /// As WSL gives it to `sh -c`.
    pub value: String,
}

/// Why a file is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood {
    /// From 1.
    pub line: usize,
    /// Completes "line N …".
    pub what: String,
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
                ("boot", "systemd") if found.init.is_none() => {
                    found.init = match value.text.to_ascii_lowercase().as_str() {
                        "1" | "true" => Some(Init::Systemd),
                        "0" | "false" => Some(Init::Wsl),
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

/// The end of a line.
pub struct End {
    /// Without its line break.
    pub content: usize,
    /// Where the next line begins.
    pub next: usize,
}

/// Where the line ends that this place is in.
pub fn end_of_line(text: &str, at: usize) -> End {
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
