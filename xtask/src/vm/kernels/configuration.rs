//! The configurations of the kernels.

use super::known::Known;

const WSL_LIKE: &str = include_str!("wsl-like.config");
const DEBUG: &str = include_str!("debug.config");

/// The configuration of a kernel beyond `tinyconfig`.
pub(super) fn configuration(known: &Known) -> String {
    if known.debug { format!("{WSL_LIKE}\n{DEBUG}") } else { WSL_LIKE.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_configurations_set_no_symbol_twice() {
        let text = format!("{WSL_LIKE}\n{DEBUG}");
        let mut seen = HashSet::new();
        for line in text.lines().filter(|line| line.starts_with("CONFIG_")) {
            let (name, _) = line.split_once('=').unwrap_or_else(|| panic!("no value: {line}"));
            assert!(seen.insert(name.to_owned()), "{name} twice");
        }
    }
}
