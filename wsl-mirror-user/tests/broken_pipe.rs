//! A reader that goes away (`| head`) changes no exit code.

use std::fs;
use std::process::{Command, Stdio};

/// Runs the program, with a standard output that nobody reads any more if it is `closed`; gives the exit code.
fn exit_code(arguments: &[&str], closed: bool) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsl-mirror"));
    command.args(arguments).stderr(Stdio::null());
    if closed {
        // The reading end is closed at the end of this block, before the program starts.
        let (_, writer) = std::io::pipe().unwrap();
        command.stdout(writer);
    } else {
        command.stdout(Stdio::null());
    }
    command.status().unwrap().code()
}

#[test]
fn a_reader_that_goes_away_changes_no_exit_code() {
    let config = std::env::temp_dir().join(format!("wsl-mirror-pipe-{}", std::process::id()));
    fs::write(&config, "exemt = []\n").unwrap();
    let config_path = config.to_str().unwrap();
    let check = ["config", "check", "--json", "--config", config_path];
    assert_eq!(exit_code(&check, true), Some(6), "the configuration is not valid");
    for arguments in [&check as &[&str], &["mode"], &["mode", "--json"]] {
        assert_eq!(exit_code(arguments, true), exit_code(arguments, false), "{arguments:?}");
    }
    fs::remove_file(config).unwrap();
}
