use super::*;

const US: &str = "/usr/local/sbin/wsl-mirror";
const OURS: &str = "(/usr/local/sbin/wsl-mirror mode && exec /usr/local/sbin/wsl-mirror run) \
                    >/run/wsl-mirror.log 2>&1 &";

fn with(text: &str) -> String {
    with_ours(Some(text), US).unwrap_or_else(|error| panic!("{error:?} in {text:?}"))
}

fn refused(text: &str) -> usize {
    with_ours(Some(text), US).unwrap_err().line
}

/// Files that people have: each with what WSL runs after an install.
fn files() -> Vec<(&'static str, String)> {
    let alone = || OURS.to_owned();
    let before = |theirs: &str| format!("{OURS} {theirs}");
    vec![
        ("", alone()),
        ("\n", alone()),
        ("# nothing but a comment", alone()),
        ("[boot]", alone()),
        ("[boot]\n", alone()),
        ("[boot]\r\n", alone()),
        ("[network]\r\nhostname=a\r\n[boot] # here\r\nsystemd=false", alone()),
        ("[Boot]\nSystemd = False\n\n[user]\ndefault = me\n", alone()),
        ("[boot]\n[boot]\nsystemd=0\n", alone()),
        ("[user]\ndefault=me", alone()),
        ("command = outside of every section\n", alone()),
        ("[user]\ncommand = of another section\n", alone()),
        ("[boot]\ncommand = service docker start\n", before("service docker start")),
        ("[boot]\ncommand=service docker start # theirs", before("service docker start")),
        ("[boot]\r\nCOMMAND = \"service docker start\"  \r\n", before("service docker start")),
        ("[boot]\ncommand = \"echo \\\"a#b\\\" >/tmp/x\" # why\n", before("echo \"a#b\" >/tmp/x")),
        ("[boot]\ncommand = one && \\\n  two # three\nsystemd=false\n", before("one &&   two")),
        ("[boot]\ncommand =", alone()),
        ("[boot]\ncommand = \n[user]\n", alone()),
        ("[boot]\ncommand = # none\n", alone()),
    ]
}

#[test]
fn our_command_runs_first_and_what_was_there_as_before() {
    for (text, runs) in files() {
        let installed = with(text);
        let found = parse(&installed).unwrap();
        assert_eq!(found.command.unwrap().value, runs, "{text:?} became {installed:?}");
        assert_eq!(found.init, parse(text).unwrap().init, "{text:?} became {installed:?}");
        // Nothing was taken away, and all comments are there.
        let mut rest = installed.chars();
        assert!(text.chars().all(|c| rest.any(|other| other == c)), "{text:?} became {installed:?}");
    }
}

#[test]
fn uninstall_restores_every_file_byte_for_byte() {
    for (text, _) in files() {
        assert_eq!(without_ours(&with(text)), Ok(Edited::Text(text.to_owned())), "{text:?}");
    }
    assert_eq!(without_ours(&with_ours(None, US).unwrap()), Ok(Edited::NoFile));
}

#[test]
fn a_second_install_changes_at_most_the_path() {
    for (text, _) in files() {
        let once = with(text);
        assert_eq!(with(&once), once, "{text:?}");
        let moved = with_ours(Some(&once), "/usr/sbin/wsl-mirror").unwrap();
        assert_eq!(moved, with_ours(Some(text), "/usr/sbin/wsl-mirror").unwrap(), "{text:?}");
    }
    let new = with_ours(None, US).unwrap();
    assert_eq!(with(&new), new);
}

#[test]
fn every_combination_of_lines_is_restored_byte_for_byte() {
    const PIECES: [&str; 14] = [
        "[boot]",
        "[user]",
        "[BOOT] # x",
        "command = a",
        "command=\"b # c\" # d",
        "command =",
        "systemd=true",
        "default = me \\\n  and more",
        "# a comment",
        "",
        "  ",
        "\t# x",
        "x=\"\\\"\"",
        "command = e & ",
    ];
    // Every text of up to three of them, with each line break, with and without one at the end.
    let mut tried = 0;
    for index in 0..PIECES.len().pow(3) {
        let pick =
            |digit: usize| PIECES[index / PIECES.len().pow(u32::try_from(digit).unwrap()) % PIECES.len()];
        for (newline, end) in [("\n", ""), ("\n", "\n"), ("\r\n", ""), ("\r\n", "\r\n")] {
            let text = [pick(0), pick(1), pick(2)].join(newline) + end;
            let Ok(installed) = with_ours(Some(&text), US) else { continue };
            assert_eq!(without_ours(&installed), Ok(Edited::Text(text.clone())), "{text:?}: {installed:?}");
            assert_eq!(with_ours(Some(&installed), US), Ok(installed.clone()), "{text:?}");
            tried += 1;
        }
    }
    assert!(tried > 5000, "{tried}");
}

#[test]
fn later_edits_of_others_stay() {
    let undone = |text: &str| match without_ours(text).unwrap() {
        Edited::Text(text) => text,
        Edited::NoFile => panic!("{text:?}"),
    };
    // A key below our section, a command behind ours, a section behind our last line.
    let appended = with("") + "systemd = false\n";
    assert_eq!(parse(&undone(&appended)).unwrap().init, Some(Init::Wsl));
    assert_eq!(parse(&undone(&appended)).unwrap().command.unwrap().value, "");
    let behind = with("[boot]\n").replace("2>&1 &", "2>&1 & service docker start");
    assert_eq!(parse(&undone(&behind)).unwrap().command.unwrap().value, "service docker start");
    assert_eq!(undone(&(with("[boot]") + "\n[user]\n")), "[boot]\n[user]\n");
    assert_eq!(undone(&(with_ours(None, US).unwrap() + "[user]\n")), "[user]\n");
}

#[test]
fn a_file_without_ours_is_left_as_it_is() {
    for (text, _) in files() {
        assert_eq!(without_ours(text), Ok(Edited::Text(text.to_owned())));
    }
}

#[test]
fn text_that_wsl_does_not_understand_is_refused_with_its_line() {
    for (text, line) in [
        ("[boot\n", 1),
        ("[user]\n[my section]\n", 2),
        ("[user] x\n", 1),
        ("nonsense\n", 1),
        ("# a\n\n= b\n", 3),
        ("\u{feff}[boot]\n", 1),
        ("[boot]\ncommand = \"a\n", 2),
        ("[boot]\ncommand = a\\x\n", 2),
        ("[boot]\ncommand = a \\\r\n  b\r\n", 2),
        ("[boot]\na = b\\\nc = \"\n", 2),
        ("[boot]\nsystemd = perhaps\n", 2),
        ("[boot]\rcommand = a\n", 1),
        ("[boot]\n# caf\u{fffd}\n", 2),
        ("[boot]\ncommand = a\n[user]\n[boot]\ncommand = b\n", 5),
        ("[boot]\n\ncommand = /usr/local/sbin/wsl-mirror load\n", 3),
    ] {
        assert_eq!(refused(text), line, "{text:?}");
    }
}

#[test]
fn only_paths_that_mean_themselves_everywhere_are_written() {
    assert!(can_be_written(US));
    for path in
        ["wsl-mirror", "/opt/a b/wsl-mirror", "/opt/$x/wsl-mirror", "/opt/%n/wsl-mirror", "/a\"b", "/a;b"]
    {
        assert!(!can_be_written(path), "{path}");
    }
}
