//! `install`, `uninstall` and `mode`, on folders that look like distributions.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use wsl_mirror_lab::{Lab, Namespace, SCRATCH, checks::OrPanic as _, checks::ok, process::Finished};

/// Where the program will be in the distribution.
const BINARY: &str = "/usr/local/sbin/wsl-mirror";

/// A distribution's folder in the guest.
struct Distribution<'a> {
    lab: &'a Lab,
    root: String,
}

impl<'a> Distribution<'a> {
    /// On WSL, in this networking mode.
    #[track_caller]
    fn new(lab: &'a Lab, name: &str, mode: &str) -> Self {
        let distribution = Self { lab, root: format!("{SCRATCH}/{name}") };
        distribution.write("proc/sys/kernel/osrelease", "6.6.87.2-microsoft-standard-WSL2\n");
        distribution.script("bin/wslinfo", mode);
        distribution.make("etc");
        distribution
    }

    fn guest(&self) -> &Namespace {
        self.lab.guest()
    }

    #[track_caller]
    fn make(&self, path: &str) {
        self.guest().enter(|| fs::create_dir_all(Path::new(&self.root).join(path))).or_panic();
    }

    #[track_caller]
    fn write(&self, path: &str, text: &str) {
        let path = Path::new(&self.root).join(path);
        self.guest().enter(|| {
            fs::create_dir_all(path.parent().context("no folder").or_panic()).or_panic();
            fs::write(&path, text).with_context(|| format!("writing {}", path.display())).or_panic();
        });
    }

    /// What WSL's program does when it is asked by this name.
    #[track_caller]
    fn script(&self, path: &str, mode: &str) {
        self.write(path, &format!("#!/bin/sh\n[ \"$1\" = --networking-mode ] && echo {mode}\n"));
        let path = Path::new(&self.root).join(path);
        self.guest().enter(|| fs::set_permissions(path, fs::Permissions::from_mode(0o755))).or_panic();
    }

    #[track_caller]
    fn run(&self, command: &str, more: &[&str]) -> Finished {
        let mut arguments = vec![command, "--root", &self.root];
        if command == "install" {
            arguments.extend(["--binary", BINARY]);
        }
        arguments.extend(more);
        self.lab.wsl_mirror(&arguments).or_panic()
    }

    /// Every file below etc and link, with what is in it.
    #[track_caller]
    fn files(&self) -> String {
        let script = format!(
            "cd {}/etc; find . -type l -printf '%p -> %l\\n' -o -type f -printf '%p %m\\n' -exec cat {{}} \\; | sort",
            self.root
        );
        self.guest().run("sh", ["-ec", &script]).or_panic().stdout
    }
}

#[test]
fn without_systemd_the_boot_command_is_edited_and_uninstall_leaves_the_file_as_it_was() {
    let lab = Lab::builder().build().unwrap();
    let distribution = Distribution::new(&lab, "old", "mirrored");
    distribution.write("etc/wsl.conf", "# mine\r\n[boot]\r\ncommand = \"service docker start\" # first\r\n");
    let before = distribution.files();
    let dry = distribution.run("install", &["--dry-run"]).success().unwrap();
    assert_eq!(distribution.files(), before, "only printed");
    let done = distribution.run("install", &[]).success().unwrap();
    assert_eq!(done.stdout, dry.stdout);
    assert!(done.stdout.contains("-command = \"service docker start\" # first"), "{done}");
    assert!(done.stderr.contains("wsl --shutdown"), "{done}");
    let installed = distribution.files();
    let again = distribution.run("install", &[]).success().unwrap();
    assert!(again.stdout.is_empty() && again.stderr.contains("installed already"), "{again}");
    assert_eq!(distribution.files(), installed);
    distribution.run("uninstall", &[]).success().unwrap();
    assert_eq!(distribution.files(), before);
    let again = distribution.run("uninstall", &[]).success().unwrap();
    assert!(again.stdout.is_empty() && again.stderr.contains("not installed"), "{again}");
}

#[test]
fn the_boot_command_starts_the_agent_in_the_background_and_then_what_was_there() {
    let lab = Lab::builder().build().unwrap();
    let distribution = Distribution::new(&lab, "runs", "mirrored");
    let agent = format!("{}/agent/wsl-mirror", distribution.root);
    // An agent that is there for a minute, and one that finds out that there is nothing to do.
    for (mode, runs) in [("exit 0", true), ("exit 18", false)] {
        let _ = lab.guest().run("rm", ["-f", "/run/agent", "/run/theirs", "/run/wsl-mirror.log"]);
        let fake = format!(
            "#!/bin/sh\ncase $1 in mode) echo the mode; {mode};; run) echo $$ >/run/agent; exec sleep 60;; esac\n"
        );
        distribution.write("agent/wsl-mirror", &fake);
        lab.guest().run("chmod", ["755", &agent]).unwrap();
        distribution.write("etc/wsl.conf", "[boot]\ncommand = \"echo theirs >/run/theirs\"\n");
        ok(&lab, &["install", "--root", &distribution.root, "--binary", &agent]);
        let conf =
            lab.guest().enter(|| fs::read_to_string(format!("{}/etc/wsl.conf", distribution.root))).unwrap();
        let command = conf.lines().find_map(|line| line.strip_prefix("command = ")).expect("no command");
        // What WSL does with it: the quotes are gone.
        let started = lab.guest().run("sh", ["-c", &command.replace('"', "")]).unwrap();
        assert!(started.took.as_secs() < 20, "it holds the boot up: {started}");
        let wait = format!(
            "for i in $(seq 300); do [ -s /run/wsl-mirror.log ] && [ {runs} = false -o -s /run/agent ] \
                            && break; sleep 0.1; done; cat /run/theirs /run/wsl-mirror.log; test -s /run/agent && \
                            kill $(cat /run/agent) && echo ran; true"
        );
        let said = lab.guest().run("sh", ["-c", &wait]).unwrap().stdout;
        let expected = if runs { "theirs\nthe mode\nran\n" } else { "theirs\nthe mode\n" };
        assert_eq!(said, expected, "{command}");
    }
}

#[test]
fn with_systemd_the_unit_is_written_and_linked_and_both_go_again() {
    let lab = Lab::builder().build().unwrap();
    let distribution = Distribution::new(&lab, "new", "mirrored");
    distribution.write("etc/wsl.conf", "[boot]\nsystemd=true\n");
    let before = distribution.files();
    let done = distribution.run("install", &[]).success().unwrap();
    assert!(done.stdout.contains("+ExecStart=/usr/local/sbin/wsl-mirror run\n"), "{done}");
    let installed = distribution.files();
    for wanted in [
        "./systemd/system/multi-user.target.wants/wsl-mirror.service -> /etc/systemd/system/wsl-mirror.service",
        "ExecStart=/usr/local/sbin/wsl-mirror run",
        "./systemd/system/wsl-mirror.service 644",
    ] {
        assert!(installed.lines().any(|line| line == wanted), "no {wanted:?} in\n{installed}");
    }
    assert!(distribution.run("install", &[]).success().unwrap().stdout.is_empty());
    distribution.run("uninstall", &[]).success().unwrap();
    assert_eq!(distribution.files(), before);
}

#[test]
fn another_networking_mode_is_said() {
    let lab = Lab::builder().build().unwrap();
    let nat = Distribution::new(&lab, "nat", "nat");
    let said = nat.run("install", &["--dry-run"]).success().unwrap().stderr;
    assert!(said.contains("nat") && said.contains("networkingMode=mirrored"), "{said}");
    // Without the name `wslinfo`, what it is a name of answers if it can.
    lab.guest().run("rm", [format!("{}/bin/wslinfo", nat.root)]).unwrap();
    let said = nat.run("install", &["--dry-run"]).success().unwrap().stderr;
    assert!(said.contains("does not say its networking mode"), "{said}");
    nat.script("init", "$(basename \"$0\")");
    nat.write("run/WSL/1_interop", "");
    let said = nat.run("install", &["--dry-run"]).success().unwrap().stderr;
    assert!(said.contains("wslinfo says"), "{said}");
}

/// What makes a distribution one that is refused.
type Prepare = Box<dyn Fn(&Distribution<'_>)>;

#[test]
fn what_is_not_understood_is_refused_and_nothing_is_changed() {
    let lab = Lab::builder().build().unwrap();
    let conf = |text: &'static str| move |d: &Distribution<'_>| d.write("etc/wsl.conf", text);
    let cases: Vec<(&str, Prepare, i32, &str)> = vec![
        ("syntax", Box::new(conf("[boot]\ncommand \"x\"\n")), 19, "line 2"),
        ("twice", Box::new(conf("[boot]\ncommand = a\ncommand = b\n")), 19, "the first is in line 2"),
        ("load", Box::new(conf("[boot]\ncommand = wsl-mirror load\n")), 19, "runs wsl-mirror already"),
        (
            "link",
            Box::new(|d| {
                let conf = format!("{}/etc/wsl.conf", d.root);
                d.guest().run("ln", ["-s", "/nix/store/x", &conf]).or_panic();
            }),
            19,
            "is a link to /nix/store/x",
        ),
        (
            "bytes",
            Box::new(|d| {
                let script = format!("printf '[boot]\\n# \\377\\n' >{}/etc/wsl.conf", d.root);
                d.guest().run("sh", ["-c", &script]).or_panic();
            }),
            19,
            "no text",
        ),
        (
            "unit",
            Box::new(|d| {
                d.write("etc/wsl.conf", "[boot]\nsystemd=true\n");
                d.write("etc/systemd/system/wsl-mirror.service", "[Service]\nExecStart=/usr/bin/other\n");
            }),
            19,
            "systemctl edit",
        ),
        ("elsewhere", Box::new(|d| d.write("proc/sys/kernel/osrelease", "6.1.0-37-amd64\n")), 17, "not WSL"),
    ];
    for (name, prepare, code, word) in cases {
        let distribution = Distribution::new(&lab, name, "mirrored");
        prepare(&distribution);
        let before = distribution.files();
        let refused = distribution.run("install", &[]);
        assert!(refused.status.code() == Some(code) && refused.stderr.contains(word), "{name}: {refused}");
        assert!(refused.stdout.is_empty(), "{name}: {refused}");
        assert_eq!(distribution.files(), before, "{name}");
    }
}

#[test]
fn a_wsl_conf_that_is_a_link_is_read_and_in_the_way_only_if_it_had_to_change() {
    let lab = Lab::builder().build().unwrap();
    // A link's root is the folder's, as it will be the distribution's.
    let linked = |name: &str, text: &str| -> Distribution<'_> {
        let distribution = Distribution::new(&lab, name, "mirrored");
        distribution.write("store/wsl.conf", text);
        let conf = format!("{}/etc/wsl.conf", distribution.root);
        lab.guest().run("ln", ["-s", "/store/wsl.conf", &conf]).unwrap();
        distribution
    };
    let systemd = linked("linked-unit", "[boot]\nsystemd=true\n");
    let before = systemd.files();
    systemd.run("install", &[]).success().unwrap();
    assert!(systemd.files().contains("ExecStart=/usr/local/sbin/wsl-mirror run"), "{}", systemd.files());
    // What somebody writes there meanwhile is not ours.
    systemd.write("store/wsl.conf", "nonsense\n");
    let done = systemd.run("uninstall", &[]).success().unwrap();
    assert!(done.stderr.contains("line 1") && done.stderr.contains("nothing of ours"), "{done}");
    assert_eq!(systemd.files(), before);

    let command = linked("linked-command", "[boot]\nsystemd=false\n");
    let refused = command.run("install", &[]);
    assert!(refused.status.code() == Some(19) && refused.stdout.is_empty(), "{refused}");
    assert!(refused.stderr.contains("is a link to /store/wsl.conf"), "{refused}");
}

#[test]
fn a_masked_unit_keeps_neither_the_boot_command_from_being_written_nor_from_being_taken_out() {
    let lab = Lab::builder().build().unwrap();
    let masked = |name: &str, conf: &str| -> Distribution<'_> {
        let distribution = Distribution::new(&lab, name, "mirrored");
        distribution.write("etc/wsl.conf", conf);
        // As dpkg leaves it when the package is removed.
        let script = format!(
            "mkdir -p {0}/multi-user.target.wants; ln -s /dev/null {0}/wsl-mirror.service; \
             ln -s /lib/systemd/system/wsl-mirror.service {0}/multi-user.target.wants/",
            format_args!("{}/etc/systemd/system", distribution.root)
        );
        lab.guest().run("sh", ["-ec", &script]).unwrap();
        distribution
    };
    let command = masked("masked-command", "[boot]\nsystemd=false\n");
    let before = command.files();
    command.run("install", &[]).success().unwrap();
    assert!(command.files().contains("wsl-mirror run"), "{}", command.files());
    command.run("uninstall", &[]).success().unwrap();
    assert_eq!(command.files(), before);

    let unit = masked("masked-unit", "[boot]\nsystemd=true\n");
    let before = unit.files();
    let refused = unit.run("install", &[]);
    assert!(refused.status.code() == Some(19), "{refused}");
    assert!(refused.stderr.contains("systemctl unmask wsl-mirror.service"), "{refused}");
    let nothing = unit.run("uninstall", &[]).success().unwrap();
    assert!(nothing.stderr.contains("not installed"), "{nothing}");
    assert_eq!(unit.files(), before);
}
