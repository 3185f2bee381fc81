//! `wsl-mirror config`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use crate::config::{self, Config, Problem};
use crate::exit::{Exit, OrExit as _};
use crate::output::{self, Output};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is valid, and what is wrong with it; needs no root and changes nothing
    Check {
        /// The configuration [default: /etc/wsl-mirror.toml, if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What `--json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: &'a Path,
    /// Whether it is there; the defaults apply where it is not.
    exists: bool,
    valid: bool,
    problems: &'a [Problem],
}

impl ConfigCommand {
    /// Does it.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        let Self::Check { config, json } = self;
        let path = config.as_deref().unwrap_or(Path::new(config::PATH));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && config.is_none() => None,
            Err(error) => {
                return Err(error)
                    .or_exit(Exit::Config, || format!("cannot read the configuration {}", path.display()));
            }
        };
        let problems = match Config::parse(text.as_deref().unwrap_or_default()) {
            Ok(_) => Vec::new(),
            Err(invalid) => invalid.0,
        };
        if json {
            let (exists, valid) = (text.is_some(), problems.is_empty());
            output.json(&Report { file: path, exists, valid, problems: &problems })?;
        } else if text.is_none() {
            output.line(&format!("there is no {}: the defaults apply", path.display()))?;
        } else if problems.is_empty() {
            output.line(&format!("{} is valid", path.display()))?;
        }
        if problems.is_empty() {
            return Ok(Exit::Success);
        }
        if !json {
            for problem in &problems {
                output::note(&format!("{}: {problem}", path.display()));
            }
        }
        Ok(Exit::Config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_shape() {
        let problems = Config::parse("exemt = []\n").unwrap_err().0;
        let report =
            Report { file: Path::new("/etc/f.toml"), exists: true, valid: false, problems: &problems };
        let expected = serde_json::json!({
            "file": "/etc/f.toml",
            "exists": true,
            "valid": false,
            "problems": [{
                "line": 1,
                "column": 1,
                "message": "there is no key \"exemt\"; the nearest is `exempt`",
                "nearest": "exempt",
            }],
        });
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
    }
}
