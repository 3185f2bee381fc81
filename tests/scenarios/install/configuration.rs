//! `config check`

use serde_json::Value;
use wsl_mirror_lab::{Lab, SCRATCH, checks::ok};

#[test]
fn config_check_needs_no_root_and_says_where_what_is_wrong() {
    let lab = Lab::builder().build().unwrap();
    let path = format!("{SCRATCH}/checked.toml");
    let write = |text: &str| lab.guest().enter(|| std::fs::write(&path, text)).unwrap();
    write("exempt = [22]\n");
    let good = ok(&lab, &["config", "check", "--config", &path]);
    assert_eq!(good.stdout, format!("{path} is valid\n"));

    write("exempt = [22]\nhok = \"tcx\"\n\nalais = 1\n");
    let bad = lab.wsl_mirror(&["config", "check", "--config", &path]).unwrap();
    assert!(bad.status.code() == Some(6), "{bad}");
    let expected = format!(
        "wsl-mirror: {path}: line 2, column 1: there is no key \"hok\"; the nearest is `hook`\n\
         wsl-mirror: {path}: line 4, column 1: there is no key \"alais\"; the nearest is `alias`\n"
    );
    assert_eq!((bad.stdout.as_str(), bad.stderr), ("", expected));
    // `load` says the same, and changes nothing.
    let load = lab.wsl_mirror(&["load", "--config", &path]).unwrap();
    assert!(load.status.code() == Some(6) && load.stderr.contains("the nearest is `hook`"), "{load}");
    assert_eq!(lab.wsl_mirror(&["status"]).unwrap().status.code(), Some(3));

    let json = lab.wsl_mirror(&["config", "check", "--json", "--config", &path]).unwrap();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["valid"], &json["problems"][1]["line"]), (&false.into(), &4.into()));

    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut command = lab.wsl_mirror_wrapped(&nobody, &["config", "check"]).unwrap();
    wsl_mirror_lab::process::run(&mut command, wsl_mirror_lab::process::COMMAND_LIMIT)
        .unwrap()
        .success()
        .unwrap();
}
