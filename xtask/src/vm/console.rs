//! The kernel's console, and the complaints on it.

/// Words that a kernel without trouble never prints, and their kind.
const COMPLAINTS: [(&str, &str); 13] = [
    ("Kernel panic", "panic"),
    ("Oops", "oops"),
    (" BUG:", "bug"),
    ("kernel BUG at", "bug"),
    ("general protection fault", "oops"),
    ("WARNING:", "warning"),
    ("UBSAN", "undefined behaviour"),
    ("KASAN", "bad memory access"),
    ("refcount_t", "reference count"),
    ("suspicious RCU", "RCU"),
    ("INFO: trying to register non-static key", "lockdep"),
    ("detected stall", "RCU stall"),
    ("unregister_netdevice: waiting for", "a reference that nothing releases"),
];
/// How many lines belong to a complaint.
const CONTEXT: usize = 60;
/// How many lines of a console are shown without a complaint.
const TAIL: usize = 30;

/// The first complaint on a console, with what follows.
pub(super) fn complaint(console: &str) -> Option<(&'static str, String)> {
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    lines.iter().enumerate().find_map(|(index, line)| {
        // Words at the start of a line stand behind a space then, too.
        let spaced = format!(" {line}");
        let (_, kind) = COMPLAINTS.iter().find(|(words, _)| spaced.contains(words))?;
        let end = lines.len().min(index + CONTEXT);
        Some((*kind, lines[index..end].join("\n")))
    })
}

/// The end of a console.
pub(super) fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_complaint_is_found_with_what_follows() {
        for line in [
            "[    3.1] WARNING: CPU: 1 PID: 77 at net/netfilter/nf_nat_core.c:640 nf_nat_setup_info+0x1/0x2",
            "[    3.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[    3.1] Oops: int3: 0000 [#1] SMP",
            "UBSAN: shift-out-of-bounds in net/core/filter.c:1:2",
            "BUG: KASAN: slab-use-after-free in nf_ct_put+0x10/0x20",
            "refcount_t: underflow; use-after-free.",
            "WARNING: suspicious RCU usage",
            "[   12.0] Kernel panic - not syncing: Fatal exception in interrupt",
        ] {
            let console = format!("[    0.0] Linux version 6.12\r\n{line}\r\nCall Trace:\r\n a\r\n");
            let (_, text) = complaint(&console).unwrap_or_else(|| panic!("not found: {line}"));
            assert!(text.starts_with(line) && text.ends_with("Call Trace:\n a"), "{text}");
        }
    }

    #[test]
    fn an_ordinary_console_has_none() {
        let console = "[    0.0] Linux version 6.12.117\n[    0.1] kasan: KernelAddressSanitizer initialized\n\
            [    0.2] DEBUG: nothing\n\
            [    2.5] docker0: port 1(veth0) entered blocking state\n[    9.9] reboot: Power down\n";
        assert_eq!(complaint(console), None);
        assert!(tail(console).ends_with("Power down"));
    }
}
