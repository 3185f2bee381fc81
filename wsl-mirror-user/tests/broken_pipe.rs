//! A reader that goes away (`| head`) changes no exit code.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs;
use std::process::{Command, Stdio};

/// The reader of the program's output.
#[derive(Clone, Copy)]
enum Reader {
    Present,
    /// It has closed the pipe before the program starts.
    Gone,
}

fn exit_code(arguments: &[&str], reader: Reader) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsl-mirror"));
    command.args(arguments).stderr(Stdio::null());
    command.stdout(match reader {
        Reader::Present => Stdio::null(),
        Reader::Gone => std::io::pipe().unwrap().1.into(),
    });
    command.status().unwrap().code()
}

#[test]
fn a_reader_that_goes_away_changes_no_exit_code() {
    let config = std::env::temp_dir().join(format!("wsl-mirror-pipe-{}", std::process::id()));
    fs::write(&config, "exemt = []\n").unwrap();
    let config_path = config.to_str().unwrap();
    let check = ["config", "check", "--json", "--config", config_path];
    assert_eq!(exit_code(&check, Reader::Gone), Some(6), "the configuration is not valid");
    for arguments in [&check as &[&str], &["mode"], &["mode", "--json"]] {
        assert_eq!(
            exit_code(arguments, Reader::Gone),
            exit_code(arguments, Reader::Present),
            "{arguments:?}"
        );
    }
    fs::remove_file(config).unwrap();
}
