//! Orders in which engines, containers, `loopback0`, firewalls and wsl-mirror come and go. A port is steered because
//! of who serves it now, so that none of them has to wait for another.

use std::{fs, time::Duration};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Docker, DockerOptions, Lab, SCRATCH,
    checks::{HELLO, OrPanic as _, load, unload, wait_until},
    nat,
    process::{Background, COMMAND_LIMIT, run_with_input, wait_for},
    tcp,
};

use super::world::{
    ANY, LOOPBACK, assert_answers, assert_answers_udp, assert_hangs, assert_refused, caught, docker_28_5,
    lab, published, steered, windows, with_each,
};

/// How long a firewall has no rules while it reloads.
const RELOAD: Duration = Duration::from_millis(300);
/// Between two requests of a connection that goes on.
const PAUSE: Duration = Duration::from_millis(5);

/// That Windows is answered with its first SYN, which no rule of the engine has met.
#[track_caller]
fn assert_steered_at_once(lab: &Lab, port: u16, when: &str) {
    let before = (steered(lab, port), caught(lab, port));
    assert_answers(lab, port, when);
    assert_eq!((steered(lab, port), caught(lab, port)), (before.0 + 1, before.1), "port {port} {when}");
}

#[track_caller]
fn assert_both_hang(lab: &Lab, when: &str) {
    for port in [ANY, LOOPBACK] {
        assert_hangs(lab, port, when);
    }
}

#[track_caller]
fn assert_both_are_steered_at_once(lab: &Lab, when: &str) {
    assert_steered_at_once(lab, ANY, when);
    assert_steered_at_once(lab, LOOPBACK, when);
}

#[test]
fn docker_may_start_before_the_program_or_after_it() {
    with_each(|engine| {
        let first = lab();
        let docker = Docker::start(&first, &engine.options).or_panic();
        docker.run(published("web")).or_panic();
        assert_both_hang(&first, "without the program");
        load(&first);
        assert_both_are_steered_at_once(&first, "with Docker first");
        assert_answers_udp(&first, ANY, "with Docker first");
        assert_answers_udp(&first, LOOPBACK, "with Docker first");
        drop(docker);

        let second = lab();
        load(&second);
        let docker = Docker::start(&second, &engine.options).or_panic();
        docker.run(published("web")).or_panic();
        assert_both_are_steered_at_once(&second, "with the program first");
        assert_answers_udp(&second, ANY, "with the program first");
        assert_answers_udp(&second, LOOPBACK, "with the program first");
        unload(&second);
        assert_both_hang(&second, "after the unload");
    });
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn loopback0_may_appear_before_docker_or_after_it_and_once_more_after_the_load() {
    with_each(|engine| {
        for late in [false, true] {
            let when = if late { "with Docker first" } else { "with loopback0 first" };
            let lab = Lab::builder().wslinfo(false).ghosts(false).loopback0(!late).build().or_panic();
            let docker = Docker::start(&lab, &engine.options).or_panic();
            let container = docker.run(published("web")).or_panic();
            if late {
                lab.add_loopback0().or_panic();
            }
            assert_both_hang(&lab, when);
            load(&lab);
            assert_both_are_steered_at_once(&lab, when);

            lab.recreate_loopback0().or_panic();
            assert_both_hang(&lab, "on another loopback0, which has no program yet");
            load(&lab);
            assert_both_are_steered_at_once(&lab, "after a second load");
            docker.restart(&container).or_panic();
            assert_both_are_steered_at_once(&lab, "after a restart on another loopback0");
        }
    });
}

#[test]
fn containers_that_start_stop_restart_and_follow_each_other_are_steered_at_once() {
    with_each(|engine| {
        let lab = lab();
        let docker = Docker::start(&lab, &engine.options).or_panic();
        load(&lab);
        let first = docker.run(published("first")).or_panic();
        assert_both_are_steered_at_once(&lab, "of the first container");
        docker.stop(&first).or_panic();
        for port in [ANY, LOOPBACK] {
            assert_refused(&lab, port, "of a stopped container");
        }
        docker.start_again(&first).or_panic();
        assert_both_are_steered_at_once(&lab, "of a container that was started again");
        docker.restart(&first).or_panic();
        assert_both_are_steered_at_once(&lab, "of a restarted container");
        docker.remove(&first).or_panic();
        for port in [ANY, LOOPBACK] {
            assert_refused(&lab, port, "of a removed container");
        }
        docker.run(published("second")).or_panic();
        assert_both_are_steered_at_once(&lab, "of the next container");
        unload(&lab);
        assert_both_hang(&lab, "after the unload");
    });
}

#[test]
fn ports_are_steered_again_after_dockerd_was_killed_with_its_containers_and_all_started_again() {
    with_each(|engine| {
        let lab = lab();
        let mut docker = Docker::start(&lab, &engine.options).or_panic();
        let container = docker.run(published("web")).or_panic();
        assert_both_hang(&lab, "without the program");
        load(&lab);
        assert_both_are_steered_at_once(&lab, "after the load");
        docker.restart_daemon().or_panic();
        for port in [ANY, LOOPBACK] {
            assert_refused(&lab, port, "while no container runs");
        }
        docker.start_again(&container).or_panic();
        assert_both_are_steered_at_once(&lab, "of a dockerd that was started again");
        unload(&lab);
        assert_both_hang(&lab, "after the unload");
    });
}

/// A dockerd that can be ended by itself: whoever starts it starts it again, as systemd does. A file asks for it.
///
/// An engine's folder has no shell; it shares /run, and what lies in there, with the guest.
#[track_caller]
fn restartable(lab: &Lab, options: &DockerOptions) -> (DockerOptions, String) {
    let (script, asked) = (format!("{SCRATCH}/dockerd"), format!("{SCRATCH}/dockerd-again"));
    let busybox = format!("{SCRATCH}/busybox");
    lab.guest().run("cp", ["/bin/busybox", &busybox]).or_panic();
    let text = format!(
        "#!{busybox} sh\n\
         while :; do\n\
         {dockerd} \"$@\" & dockerd=$!\n\
         until [ -e {asked} ]; do {busybox} sleep 0.05; done\n\
         kill $dockerd; wait $dockerd; {busybox} rm {asked}\n\
         done\n",
        dockerd = options.dockerd.display(),
    );
    lab.guest().enter(|| fs::write(&script, text)).with_context(|| format!("writing {script}")).or_panic();
    lab.guest().run("chmod", ["+x", &script]).or_panic();
    let options = DockerOptions {
        dockerd: script.into(),
        extra_args: vec!["--live-restore".to_owned()],
        ..options.clone()
    };
    (options, asked)
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn ports_are_steered_again_after_dockerd_alone_was_restarted_and_its_containers_lived_on() {
    with_each(|engine| {
        let lab = lab();
        let (options, asked) = restartable(&lab, &engine.options);
        let docker = Docker::start(&lab, &options).or_panic();
        docker.run(published("web")).or_panic();
        assert_both_hang(&lab, "without the program");
        load(&lab);
        assert_both_are_steered_at_once(&lab, "after the load");
        let process = || docker.cli(&["inspect", "--format", "{{.State.Pid}}", "web"]).or_panic().stdout;
        let before = process();
        for round in 0..2 {
            let when = format!("of a live container, dockerd restarted, round {round}");
            lab.guest().enter(|| fs::write(&asked, "")).or_panic();
            wait_until("dockerd to end", COMMAND_LIMIT, || {
                !lab.guest().enter(|| fs::exists(&asked)).or_panic()
            });
            wait_for("dockerd to answer again", COMMAND_LIMIT, || Ok(docker.cli(&["ps"]).ok().map(drop)))
                .or_panic();
            let now = process();
            assert!(now == before && now.trim() != "0", "it did not live on: process {before}, then {now}");
            assert_both_are_steered_at_once(&lab, &when);
        }
        unload(&lab);
        assert_both_hang(&lab, "after the unload");
    });
}

/// What `firewall-cmd --reload`, `ufw reload` and their like do to everybody's rules.
struct Rules {
    saved: String,
}

impl Rules {
    const TABLES: [&str; 3] = ["raw", "nat", "filter"];

    #[track_caller]
    fn save(lab: &Lab) -> Self {
        Self { saved: lab.guest().run("iptables-save", [""; 0]).or_panic().stdout }
    }

    #[track_caller]
    fn flush(lab: &Lab) {
        for table in Self::TABLES {
            for what in ["-F", "-X"] {
                lab.guest().run("iptables", ["-w", "5", "-t", table, what]).or_panic();
            }
        }
    }

    #[track_caller]
    fn restore(&self, lab: &Lab) {
        run_with_input(&mut lab.guest().command("iptables-restore"), &self.saved, COMMAND_LIMIT)
            .or_panic()
            .success()
            .or_panic();
        let now = Self::save(lab);
        assert!(now.rules() == self.rules(), "not as before: {}\ninstead of {}", now.saved, self.saved);
    }

    /// Without comments and counters.
    fn rules(&self) -> Vec<&str> {
        let lines = self.saved.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| if line.starts_with(':') { line.split('[').next().unwrap_or(line) } else { line })
            .collect()
    }
}

/// Without a rule that needs conntrack the kernel tracks and translates nothing: carried flows wait.
#[test]
fn connections_go_on_when_a_firewall_has_refilled_all_rules() {
    with_each(|engine| {
        let lab = lab();
        let docker = Docker::start(&lab, &engine.options).or_panic();
        docker.run(published("web")).or_panic();
        assert_both_hang(&lab, "without the program");
        load(&lab);
        let ports = [ANY, LOOPBACK];
        // A flow that lost its entry goes on by its own addresses, which Docker 28's raw rule drops on 127.0.0.1.
        let surviving = if engine.raw_drop { &ports[..1] } else { &ports[..] };
        let mut calm = Vec::new();
        let mut busy = Vec::new();
        for &port in surviving {
            calm.push((port, windows(&lab, port).connect().or_panic()));
            busy.push((port, windows(&lab, port).keep_alive(PAUSE).or_panic()));
        }
        let mut go_on = |when: &str| {
            for (port, connection) in &mut calm {
                assert_eq!(tcp::exchange(connection, HELLO), Ok(HELLO.to_vec()), "port {port} {when}");
            }
            for port in ports {
                assert_answers(&lab, port, when);
            }
        };
        let rules = Rules::save(&lab);
        assert!(rules.saved.contains("DNAT"), "there is nothing to be flushed: {}", rules.saved);
        go_on("before the reload");
        for forgets in [false, true, true] {
            Rules::flush(&lab);
            if forgets {
                nat::conntrack_flush(lab.guest()).or_panic();
            }
            std::thread::sleep(RELOAD);
            rules.restore(&lab);
            go_on("after the reload");
            nat::conntrack_flush(lab.guest()).or_panic();
            go_on("after the reload and a flush of conntrack");
        }
        for (port, busy) in busy {
            let report = busy.stop();
            assert_eq!(report.failure, None, "port {port}");
            assert!(report.exchanges > 10, "port {port}: {report:?}");
        }
        assert_both_are_steered_at_once(&lab, "after the reload");
    });
}

/// `run` notices that the kernel tracks nothing, and carries nothing then.
#[test]
fn new_connections_work_while_a_firewall_has_flushed_all_rules() {
    with_each(|engine| {
        let lab = lab();
        let docker = Docker::start(&lab, &engine.options).or_panic();
        docker.run(published("web")).or_panic();
        let agent = Background::spawn(&mut lab.wsl_mirror_command(&["run"]).or_panic()).or_panic();
        let carrying = |wanted: &str| {
            wait_until(&format!("carrying to be {wanted}"), COMMAND_LIMIT, || {
                lab.status().is_ok_and(|status| status["carrying"]["state"] == wanted)
            });
        };
        carrying("on");
        assert_both_are_steered_at_once(&lab, "with the agent");
        let rules = Rules::save(&lab);
        for round in 0..2 {
            Rules::flush(&lab);
            // No rule of Docker's is in the way, and the first SYN may come before the agent knows.
            for port in [ANY, LOOPBACK] {
                assert_answers(&lab, port, &format!("while there are no rules, round {round}"));
            }
            carrying("off");
            rules.restore(&lab);
            for port in [ANY, LOOPBACK] {
                assert_answers(&lab, port, &format!("after the reload, round {round}"));
            }
            carrying("on");
            assert_both_are_steered_at_once(&lab, "after the reload");
        }
        drop(agent);
    });
}

/// Of a SYN that an engine translates, `dataplane` tells; this one is dropped.
#[test]
fn a_syn_that_docker_28_5_dropped_before_the_load_gets_through_when_it_is_retransmitted() {
    let Some(engine) = docker_28_5() else { return };
    let lab = lab();
    let docker = Docker::start(&lab, &engine.options).or_panic();
    docker.run(published("web")).or_panic();
    let client = windows(&lab, LOOPBACK);
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| client.echo(HELLO));
        wait_until("the SYN to be dropped", Duration::from_secs(1), || caught(&lab, LOOPBACK) > 0);
        load(&lab);
        let answer = connecting.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        assert_eq!(answer, Ok(HELLO.to_vec()));
        assert_steered_at_once(&lab, LOOPBACK, "after the load");
    });
}

#[test]
#[ignore = "runs with `cargo xtask test engines --all`"]
fn a_dockerd_without_its_proxy_keeps_its_ports_and_one_that_has_it_again_is_steered() {
    with_each(|engine| {
        let lab = lab();
        let mut docker = Docker::start(&lab, &engine.options).or_panic();
        let container = docker.run(published("web")).or_panic();
        assert_both_hang(&lab, "without the program");
        load(&lab);
        assert_both_are_steered_at_once(&lab, "with the proxy");
        for round in 0..2 {
            docker.restart_daemon_without_proxy().or_panic();
            docker.start_again(&container).or_panic();
            for port in [ANY, LOOPBACK] {
                let when = format!("without the proxy, round {round}");
                let before = (steered(&lab, port), caught(&lab, port));
                if engine.raw_drop && port == LOOPBACK {
                    // As without us: `load` has not seen this listener, so its container is unknown.
                    assert_hangs(&lab, port, &when);
                } else {
                    assert_answers(&lab, port, &when);
                    assert_answers_udp(&lab, port, &when);
                }
                assert!(steered(&lab, port) == before.0, "port {port} is steered {when}");
                assert!(caught(&lab, port) > before.1, "port {port} never met the engine's rules {when}");
            }
            load(&lab);
            let when = format!("without the proxy after another load, round {round}");
            assert_answers(&lab, LOOPBACK, &when);
            assert_answers_udp(&lab, LOOPBACK, &when);
            docker.restart_daemon_with_proxy().or_panic();
            docker.start_again(&container).or_panic();
            assert_both_are_steered_at_once(&lab, &format!("with the proxy again, round {round}"));
        }
    });
}

/// The alias is not the address that Docker's raw rule names: no rule has to be read, and no SYN is lost.
#[test]
fn docker_28_5s_raw_rule_drops_nothing_of_windows() {
    let Some(engine) = docker_28_5() else { return };
    let lab = lab();
    load(&lab);
    let docker = Docker::start(&lab, &engine.options).or_panic();
    let container = docker.run(published("web")).or_panic();
    let check = |when: &str| {
        for _ in 0..10 {
            assert_answers_udp(&lab, LOOPBACK, when);
            assert_answers(&lab, LOOPBACK, when);
            // The rules are new with the container, and so are their counters.
            assert_eq!(caught(&lab, LOOPBACK), 0, "SYNs lost {when}");
        }
    };
    check("after the start");
    nat::conntrack_flush(lab.guest()).or_panic();
    check("after a flush of conntrack");
    let container = docker.restart(&container).or_panic();
    check("after a restart");
    docker.remove(&container).or_panic();
    docker.run(published("next")).or_panic();
    check("of the next container");
    unload(&lab);
    assert_both_hang(&lab, "after the unload");
}
