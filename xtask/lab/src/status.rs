//! What `wsl-mirror status --json` says.

use anyhow::{Context as _, Result};
use serde_json::Value;
use wsl_mirror_lab::Lab;

/// The product's own account of what it does.
pub(crate) struct Status(Value);

impl Status {
    pub(crate) fn read(lab: &Lab) -> Result<Self> {
        let finished = lab.wsl_mirror(&["status", "--json"])?.success()?;
        let value = serde_json::from_str(&finished.stdout).context("reading `wsl-mirror status --json`")?;
        Ok(Self(value))
    }

    /// How many packets got their verdict for this reason; an error if there is no such reason.
    pub(crate) fn packets(&self, reason: &str) -> Result<u64> {
        let entry = self.list("verdicts").iter().find(|entry| entry["reason"] == reason);
        let packets = entry.and_then(|entry| entry["packets"].as_u64());
        packets.with_context(|| format!("`wsl-mirror status --json` has no reason {reason}"))
    }

    /// A counter of a port, 0 if the port was never heard of.
    pub(crate) fn port(&self, port: u16, protocol: &str, counter: &str) -> u64 {
        let same = |entry: &&Value| entry["port"] == port && entry["protocol"] == protocol;
        self.list("ports").iter().find(same).and_then(|entry| entry[counter].as_u64()).unwrap_or(0)
    }

    /// How many connects and unconnected datagrams of Linux' own clients had this outcome; an error if there is no such one.
    pub(crate) fn clients(&self, outcome: &str) -> Result<u64> {
        let outcomes = self.0["linux_clients"]["outcomes"].as_array().map_or(&[][..], Vec::as_slice);
        let entry = outcomes.iter().find(|entry| entry["outcome"] == outcome);
        let count = entry.and_then(|entry| entry["count"].as_u64());
        count.with_context(|| format!("`wsl-mirror status --json` has no outcome {outcome}"))
    }

    /// How and where it is attached: `loopback0 by tcx`.
    pub(crate) fn attachment(&self) -> String {
        let text = |name: &str| self.0[name].as_str().unwrap_or("?");
        format!("{} by {}", text("interface"), text("hook"))
    }

    fn list(&self, name: &str) -> &[Value] {
        self.0[name].as_array().map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let status = Status(serde_json::json!({
            "interface": "loopback0", "hook": "tcx",
            "verdicts": [{"reason": "steer_new", "packets": 3}],
            "linux_clients": {"outcomes": [{"outcome": "translated", "count": 7}]},
            "ports": [{"port": 8080, "protocol": "tcp", "steered_flows": 2}],
        }));
        assert_eq!(status.packets("steer_new").ok(), Some(3));
        assert!(status.packets("of_no_such_name").is_err());
        assert_eq!(status.clients("translated").ok(), Some(7));
        assert!(status.clients("of_no_such_name").is_err());
        assert_eq!(status.port(8080, "tcp", "steered_flows"), 2);
        assert_eq!(status.port(8080, "udp", "steered_flows"), 0);
        assert_eq!(status.attachment(), "loopback0 by tcx");
    }
}
