//! Writes completions for shells, and a man page for each subcommand, into the folder that is named.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap_complete::{Shell, generate_to};

/// For shells that packages have a folder for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn main() -> Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).context("usage: xtask-assets FOLDER")?);
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        // What an older release had is not to be packed.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let mut command = wsl_mirror::command();
    for shell in SHELLS {
        generate_to(shell, &mut command, "wsl-mirror", &completions)
            .with_context(|| format!("writing completions for {shell}"))?;
    }
    // `help` is no page of its own.
    let command = wsl_mirror::command().disable_help_subcommand(true);
    let command = command.mut_subcommands(|command| command.disable_help_subcommand(true));
    clap_mangen::generate_to(command, &man).context("writing man pages")
}
