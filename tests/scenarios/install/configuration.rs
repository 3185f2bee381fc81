//! `config check`

use anyhow::{Result, ensure};
use serde_json::Value;
use wsl_mirror_lab::{Lab, SCRATCH};

#[test]
fn config_check_needs_no_root_and_says_where_what_is_wrong() -> Result<()> {
    let lab = Lab::builder().build()?;
    let path = format!("{SCRATCH}/checked.toml");
    let write = |text: &str| lab.guest().enter(|| std::fs::write(&path, text));
    write("exempt = [22]\n")?;
    let good = lab.wsl_mirror(&["config", "check", "--config", &path])?.success()?;
    assert_eq!(good.stdout, format!("{path} is valid\n"));

    write("exempt = [22]\nhok = \"tcx\"\n\ndelivry = 1\n")?;
    let bad = lab.wsl_mirror(&["config", "check", "--config", &path])?;
    ensure!(bad.status.code() == Some(6), "{bad}");
    let expected = format!(
        "wsl-mirror: {path}: line 2, column 1: there is no key \"hok\"; the nearest is `hook`\n\
         wsl-mirror: {path}: line 4, column 1: there is no key \"delivry\"; the nearest is `delivery`\n"
    );
    assert_eq!((bad.stdout.as_str(), bad.stderr), ("", expected));
    // `load` says the same, and changes nothing.
    let load = lab.wsl_mirror(&["load", "--config", &path])?;
    ensure!(load.status.code() == Some(6) && load.stderr.contains("the nearest is `hook`"), "{load}");
    assert_eq!(lab.wsl_mirror(&["status"])?.status.code(), Some(3));

    let json = lab.wsl_mirror(&["config", "check", "--json", "--config", &path])?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!((&json["valid"], &json["problems"][1]["line"]), (&false.into(), &4.into()));

    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut command = lab.wsl_mirror_wrapped(&nobody, &["config", "check"])?;
    wsl_mirror_lab::process::run(&mut command, wsl_mirror_lab::process::COMMAND_LIMIT)?.success()?;
    Ok(())
}
