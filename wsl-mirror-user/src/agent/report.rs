//! What the agent tells `wsl-mirror status`: a file that belongs to the distribution, as the pins do.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

const REPORT: &str = "/run/wsl-mirror/agent.json";
const NEW: &str = "/run/wsl-mirror/agent.json.new";

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its process.
    pub pid: u32,
    /// The state of the agent.
    pub state: State,
    /// The same in words.
    pub says: String,
    /// Why the configuration, as it is now, is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
    /// What is not as it should be, although it goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The state of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Packets are steered.
    Steering,
    /// There is no interface yet.
    Waiting,
    /// Another distribution steers.
    Aside,
    /// The last round has failed.
    Failing,
    /// The agent has reported none yet, or one that this release does not know.
    #[default]
    #[serde(rename = "", other)]
    Unknown,
}

/// The last report that was written.
pub fn read() -> Option<Report> {
    serde_json::from_str(&fs::read_to_string(REPORT).ok()?).ok()
}

/// Replaces the report, in one stroke.
pub fn write(report: &Report) -> Result<()> {
    let mut file = File::create(NEW).with_context(|| format!("cannot write {NEW}"))?;
    file.write_all(serde_json::to_string(report)?.as_bytes())
        .with_context(|| format!("cannot write {NEW}"))?;
    fs::rename(NEW, REPORT).with_context(|| format!("cannot rename {NEW} to {REPORT}"))
}

/// Removes the report, if there is one.
pub fn remove() {
    for path in [REPORT, NEW] {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_keep_their_words() {
        for (state, word) in [
            (State::Steering, "\"steering\""),
            (State::Waiting, "\"waiting\""),
            (State::Aside, "\"aside\""),
            (State::Failing, "\"failing\""),
            (State::Unknown, "\"\""),
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), word);
            assert_eq!(serde_json::from_str::<State>(word).unwrap(), state);
        }
        assert_eq!(serde_json::from_str::<State>("\"later\"").unwrap(), State::Unknown);
    }
}
