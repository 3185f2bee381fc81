//! Which bits of the mark a statement looks at, sets, clears, or takes from conntrack's.

use serde_json::Value;

use super::elements::{DEEPEST, Elements};
use crate::host::marks::claimed;

pub(super) fn is_meta_mark(value: &Value) -> bool {
    value.get("meta").is_some_and(|meta| meta["key"] == "mark")
}

fn is_mark(value: &Value) -> bool {
    is_meta_mark(value) || is_ct_mark(value)
}

fn is_ct_mark(value: &Value) -> bool {
    value.get("ct").is_some_and(|ct| ct["key"] == "mark")
}

fn mentions(value: &Value, is_it: fn(&Value) -> bool, depth: usize) -> bool {
    let inside = |value: &Value| mentions(value, is_it, depth + 1);
    is_it(value)
        || depth < DEEPEST
            && match value {
                Value::Array(values) => values.iter().any(inside),
                Value::Object(fields) => fields.values().any(inside),
                _ => false,
            }
}

/// A number as a mark.
fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// Every bit that changes, or is set, on the way from one number to another.
fn bits_between(first: u32, last: u32) -> u32 {
    // All that are below the highest one that changes.
    let changing = (first ^ last).checked_ilog2().map_or(0, |bit| u32::MAX >> (u32::BITS - 1 - bit));
    first | last | changing
}

/// The bits of every number in a value.
fn bits_of(value: &Value, depth: usize) -> u32 {
    if depth >= DEEPEST {
        return 0;
    }
    if let Some(range) = value.get("range") {
        let (Some(first), Some(last)) = (range.get(0).and_then(number), range.get(1).and_then(number)) else {
            return 0;
        };
        return bits_between(first, last);
    }
    if let Some(prefix) = value.get("prefix") {
        // How nft 1.0.6 says some ranges.
        let length =
            prefix["len"].as_u64().and_then(|length| u32::try_from(length).ok()).unwrap_or(u32::BITS);
        return number(&prefix["addr"])
            .map_or(0, |first| bits_between(first, first | u32::MAX.checked_shr(length).unwrap_or(0)));
    }
    match value {
        Value::Array(values) => values.iter().fold(0, |bits, value| bits | bits_of(value, depth + 1)),
        Value::Object(fields) => fields.values().fold(0, |bits, value| bits | bits_of(value, depth + 1)),
        value => number(value).unwrap_or(0),
    }
}

/// The bits that an element of a map gives, which is of these kinds: `mark`, `mark . inet_service` (nft 1.0.6), or a
/// list of them (1.1.3).
pub(super) fn bits_given(kinds: &Value, value: &Value) -> u32 {
    let kinds: Vec<&str> = match kinds {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kinds => kinds.as_str().map_or_else(Vec::new, |kinds| kinds.split(" . ").collect()),
    };
    let parts = value.get("concat");
    kinds.iter().enumerate().filter(|(_, kind)| **kind == "mark").fold(0, |bits, (index, _)| {
        bits | parts.map_or(Some(value), |parts| parts.get(index)).map_or(0, |value| bits_of(value, 0))
    })
}

/// The bits of conntrack's mark that a statement copies to the packet's.
pub(super) fn restored_bits(statement: &Value, table: &str, elements: &Elements<'_>) -> u32 {
    match statement.get("mangle") {
        Some(change) if is_meta_mark(&change["key"]) => {
            Change::of(&change["value"], is_meta_mark, table, elements).restored
        }
        _ => 0,
    }
}

/// The bits of the mark that a statement looks at or changes.
pub(super) fn bits_of_statement(statement: &Value, table: &str, elements: &Elements<'_>) -> u32 {
    let Some(change) = statement.get("mangle") else {
        return bits_looked_at(statement, table, elements, 0);
    };
    let value = &change["value"];
    // What a mask leaves of the mark that is changed is kept; of the other one, it is what is set.
    let is_changed = match &change["key"] {
        key if is_meta_mark(key) => is_meta_mark,
        key if is_ct_mark(key) => is_ct_mark,
        _ => return bits_looked_at(statement, table, elements, 0),
    };
    Change::of(value, is_changed, table, elements).bits() | bits_asked_for(value, table, elements, 0)
}

/// The bits that a new mark depends on: those that maps and hashes in it look at. Masks outside of these say what is
/// changed, which is another question.
fn bits_asked_for(value: &Value, table: &str, elements: &Elements<'_>, depth: usize) -> u32 {
    match operation(value) {
        Some((_, operands)) if depth < DEEPEST => operands
            .iter()
            .fold(0, |bits, operand| bits | bits_asked_for(operand, table, elements, depth + 1)),
        Some(_) => 0,
        None => bits_looked_at(value, table, elements, 0),
    }
}

/// The bits that comparisons, keys of maps and masks, wherever they are, look at.
fn bits_looked_at(value: &Value, table: &str, elements: &Elements<'_>, depth: usize) -> u32 {
    if depth >= DEEPEST {
        return 0;
    }
    let mut bits = 0;
    if let Some(found) = value.get("match") {
        bits |= bits_compared(&found["left"], &elements.all(table, &found["right"]), table, elements);
    }
    for map in ["map", "vmap"].iter().filter_map(|name| value.get(name)) {
        bits |= bits_compared(&map["key"], &elements.keys(table, &map["data"]), table, elements);
    }
    if value.get("&").is_some() {
        bits |= claimed(Change::of(value, is_mark, table, elements).kept);
    }
    let inside = |value: &Value| bits_looked_at(value, table, elements, depth + 1);
    match value {
        Value::Array(values) => values.iter().fold(bits, |bits, value| bits | inside(value)),
        Value::Object(fields) => fields.values().fold(bits, |bits, value| bits | inside(value)),
        _ => bits,
    }
}

/// The bits of a mark that are compared to one of these; of what is joined (`.`), part by part.
fn bits_compared(key: &Value, values: &[&Value], table: &str, elements: &Elements<'_>) -> u32 {
    if let Some(parts) = key["concat"].as_array() {
        return parts.iter().enumerate().fold(0, |bits, (index, part)| {
            let values: Vec<&Value> =
                values.iter().filter_map(|value| value.get("concat")?.get(index)).collect();
            bits | bits_compared(part, &values, table, elements)
        });
    }
    let looked_at = Change::of(key, is_mark, table, elements).kept;
    if looked_at == 0 {
        return 0;
    }
    values.iter().fold(claimed(looked_at), |bits, value| bits | bits_of(value, 0))
}

/// What an expression makes of a mark, bit by bit. Bits that are none of these are cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    /// Those that a number names: they are set or turned round.
    named: u32,
    /// Those that stay as they are.
    kept: u32,
    /// Those that come from elsewhere: another mark, a field of the packet, …
    foreign: u32,
    /// Those of them all that depend on conntrack's mark, where that is not the one that is changed.
    restored: u32,
}

impl Change {
    /// What comes from elsewhere, and nothing else.
    const fn from_elsewhere(bits: u32) -> Self {
        Self { foreign: bits, named: 0, kept: 0, restored: 0 }
    }

    /// `is_it` knows the mark that is changed.
    fn of(value: &Value, is_it: fn(&Value) -> bool, table: &str, elements: &Elements<'_>) -> Self {
        Self::read(value, is_it, table, elements, 0)
    }

    fn read(
        value: &Value,
        is_it: fn(&Value) -> bool,
        table: &str,
        elements: &Elements<'_>,
        depth: usize,
    ) -> Self {
        if depth >= DEEPEST {
            return Self { restored: u32::MAX, ..Self::from_elsewhere(u32::MAX) };
        }
        if is_it(value) {
            return Self { kept: u32::MAX, ..Self::default() };
        }
        if let Some((operator, operands)) = operation(value) {
            // Two of them or more: newer versions do not nest what has the same operator.
            let mut operands =
                operands.iter().map(|operand| Self::read(operand, is_it, table, elements, depth + 1));
            let first = operands.next().unwrap_or_default();
            return operands.fold(first, |left, right| match operator {
                "&" => left.and(right),
                "<<" => left.shifted(|bits| bits.checked_shl(right.named).unwrap_or(0)),
                ">>" => left.shifted(|bits| bits.checked_shr(right.named).unwrap_or(0)),
                _ => left.or(right),
            });
        }
        let restored = if mentions(value, is_ct_mark, 0) { u32::MAX } else { 0 };
        let named = if let Some(map) = value.get("map") {
            let pairs = elements.all(table, &map["data"]);
            pairs.into_iter().filter_map(|pair| pair.get(1)).fold(0, |bits, value| bits | bits_of(value, 0))
        } else if let Some(number) = ["numgen", "jhash", "symhash"].iter().find_map(|name| value.get(name)) {
            numbers_of(number)
        } else if value.is_object() {
            return Self { restored, ..Self::from_elsewhere(width(value)) };
        } else {
            bits_of(value, 0)
        };
        Self { named, restored: restored & named, ..Self::default() }
    }

    /// Those that are not cleared.
    const fn possible(self) -> u32 {
        self.named | self.kept | self.foreign
    }

    const fn and(self, other: Self) -> Self {
        let named = self.named & other.named;
        let kept = self.kept & (other.kept | other.named) | other.kept & self.named;
        Self {
            named,
            kept,
            foreign: self.possible() & other.possible() & !named & !kept,
            restored: self.restored & other.possible() | other.restored & self.possible(),
        }
    }

    /// Also for `^`: what is turned round is named, too.
    const fn or(self, other: Self) -> Self {
        let named = self.named | other.named;
        let foreign = (self.foreign | other.foreign) & !named;
        Self {
            named,
            kept: (self.kept | other.kept) & !named & !foreign,
            foreign,
            restored: self.restored | other.restored,
        }
    }

    /// What has moved is not what it was.
    fn shifted(self, shift: impl Fn(u32) -> u32) -> Self {
        Self {
            named: shift(self.named),
            kept: 0,
            foreign: shift(self.kept | self.foreign),
            restored: shift(self.restored),
        }
    }

    /// The bits in use.
    const fn bits(self) -> u32 {
        // Where nothing is kept, the whole mark is new.
        let field = if self.kept == 0 { 0 } else { !self.kept };
        self.named | claimed(self.foreign) | claimed(field)
    }
}

/// The operator of an expression, and all of its operands.
fn operation(value: &Value) -> Option<(&str, &[Value])> {
    let (operator, operands) = value.as_object()?.iter().next()?;
    match operator.as_str() {
        "&" | "|" | "^" | "<<" | ">>" => Some((operator, operands.as_array()?)),
        _ => None,
    }
}

/// The bits of the numbers that a generator of numbers (`numgen`, `jhash`, `symhash`) comes to.
fn numbers_of(generator: &Value) -> u32 {
    let offset = number(&generator["offset"]).unwrap_or(0);
    let count = number(&generator["mod"]).unwrap_or(0);
    bits_between(offset, offset.saturating_add(count.saturating_sub(1)))
}

/// The bits of what comes from elsewhere, as far as they are known.
fn width(value: &Value) -> u32 {
    match value.get("payload").and_then(|payload| payload["field"].as_str()) {
        Some("dscp") => 0x3f,
        Some("sport" | "dport") => 0xffff,
        _ => u32::MAX,
    }
}

#[cfg(test)]
mod tests;
