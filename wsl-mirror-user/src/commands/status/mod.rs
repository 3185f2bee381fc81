//! `wsl-mirror status`

mod json;
mod keeping;
mod targets;
mod text;

use anyhow::Result;
use clap::Args;

use crate::exit::Exit;
use crate::host::require_root;
use crate::inspect::snapshot::Snapshot;
use crate::output::{self, Output};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Shows it; the exit code tells whether packets are steered.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        require_root("read eBPF maps")?;
        let snapshot = Snapshot::read(output::note)?;
        if self.json {
            output.json(&json::Status::from(&snapshot))?;
        } else {
            output.line(&text::render(&snapshot))?;
        }
        Ok(exit(&snapshot))
    }
}

fn exit(snapshot: &Snapshot) -> Exit {
    match (&snapshot.loaded, snapshot.is_steering()) {
        (_, true) => Exit::Success,
        (Some(_), false) => Exit::NotAttached,
        (None, false) => Exit::NotLoaded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::snapshot::Loaded;
    use crate::inspect::snapshot::tests::loaded;
    use crate::loader::state::Attachment;

    #[test]
    fn the_exit_code_tells_whether_packets_are_steered() {
        let exit = |loaded| exit(&Snapshot { loaded, ..Snapshot::default() });
        assert_eq!(exit(Some(loaded())), Exit::Success);
        assert_eq!(exit(Some(Loaded { attachment: Attachment::Detached, ..loaded() })), Exit::NotAttached);
        assert_eq!(exit(None), Exit::NotLoaded);
    }
}
