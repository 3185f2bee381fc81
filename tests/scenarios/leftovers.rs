//! Nothing is left of a lab, whatever ends the process that it belongs to.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    os::{fd::AsRawFd as _, unix::process::ExitStatusExt as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Namespace, Service, SharedLab,
    checks::OrPanic as _,
    process::{Background, run, wait_for},
};

/// A path to a network namespace that gets one end of two links, whose other ends the lab holds.
const CANARY: &str = "WSL_MIRROR_LAB_CANARY";
/// How long the kernel may take; it takes far less, but others use the machine too.
const LIMIT: Duration = Duration::from_secs(10);

/// What the others kill: a lab with dockerd, a container, a program in the guest and a pinned map.
#[test]
#[ignore = "the other tests run it, in a process of its own"]
fn a_lab_to_be_killed() {
    let Ok(canary) = env::var(CANARY) else { return };
    let lab = Lab::builder().build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    docker.run(Container::new("echo").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
    let _background = Background::spawn(lab.guest().command("sleep").arg("1000")).unwrap();
    leave_traces(lab.guest(), lab.windows(), &canary);
    println!("\nREADY");
    std::thread::sleep(Duration::from_mins(1));
    panic!("nobody killed it")
}

/// The same with a lab that waits for another test to use it, when there is no other test.
#[test]
#[ignore = "another test runs it, in a process of its own"]
fn a_lab_to_be_left_in_the_pool() {
    let Ok(canary) = env::var(CANARY) else { return };
    let container = Container::new("echo").serve(Service::TcpEcho { port: 7 }).publish("8080:7");
    let lab = SharedLab::take(Lab::builder(), &DockerOptions::default(), container).unwrap();
    let (guest, windows) = (lab.guest().clone(), lab.windows().clone());
    drop(lab);
    leave_traces(&guest, &windows, &canary);
    println!("\nREADY");
    // Until the other one has seen enough.
    std::io::stdin().read_to_string(&mut String::new()).unwrap();
}

/// Ends of links in the canary's namespace, and a pinned map.
#[track_caller]
fn leave_traces(guest: &Namespace, windows: &Namespace, canary: &str) {
    for (namespace, name) in [(guest, "guest"), (windows, "windows")] {
        let link = ["link", "add", "canary", "type", "veth", "peer", "name", name, "netns", canary];
        namespace.run("ip", link).or_panic();
    }
    let map = map_name(std::process::id());
    let create =
        ["map", "create", "/sys/fs/bpf/map", "type", "array", "key", "4", "value", "4", "entries", "1"];
    guest.run("bpftool", create.into_iter().chain(["name", map.as_str()])).or_panic();
}

fn map_name(pid: u32) -> String {
    format!("lab_{pid}")
}

#[test]
fn nothing_is_left_after_a_kill() {
    nothing_is_left_after("a_lab_to_be_killed", |victim| end_by(Signal::KILL, victim));
}

#[test]
fn nothing_is_left_after_ctrl_c() {
    nothing_is_left_after("a_lab_to_be_killed", |victim| end_by(Signal::INT, victim));
}

#[test]
fn nothing_is_left_of_a_shared_lab_after_the_last_test() {
    nothing_is_left_after("a_lab_to_be_left_in_the_pool", |victim| {
        drop(victim.stdin.take());
        assert!(victim.wait().unwrap().success(), "its test has failed");
    });
}

#[track_caller]
fn end_by(signal: Signal, victim: &mut Child) {
    kill_process(Pid::from_child(victim), signal).or_panic();
    assert!(victim.wait().or_panic().signal() == Some(signal.as_raw()), "it died of {signal:?}");
}

#[track_caller]
fn nothing_is_left_after(test: &str, end: impl FnOnce(&mut Child)) {
    // A lab of our own, for its guest's network namespace to keep the canaries in.
    let ours = Lab::builder().build().or_panic();
    let canary = format!("/proc/{}/fd/{}", std::process::id(), ours.guest().netns_fd().as_raw_fd());
    let mut victim = Command::new(env::current_exe().or_panic())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(CANARY, canary)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the victim")
        .or_panic();
    let mut output = BufReader::new(victim.stdout.take().context("no pipe").or_panic());
    let ready = output.by_ref().lines().map_while(Result::ok).any(|line| line == "READY");
    assert!(ready, "the victim ended before it was ready: {}", victim.wait().or_panic());

    let pid = victim.id();
    let family = descendants(pid);
    let names: BTreeSet<&str> = family.values().map(|process| process.name.as_str()).collect();
    for name in ["lab-helper", "dockerd", "containerd", "containerd-shim", "docker-proxy"] {
        assert!(names.contains(name), "no {name} among what the lab runs: {names:?}");
    }
    assert!(canaries(&ours) == ["guest", "windows"], "both canaries are there");
    assert!(bpf_maps().contains(&map_name(pid)), "the pinned map is there");
    assert!(!cgroups(pid).is_empty(), "there is a cgroup");

    let started = Instant::now();
    end(&mut victim);
    let mut gone = Vec::new();
    let mut expect_gone = |what: &str, left: &dyn Fn() -> Vec<String>| {
        let mut seen = Vec::new();
        wait_for(&format!("the end of its {what}"), LIMIT, || {
            seen = left();
            Ok(seen.is_empty().then_some(()))
        })
        .with_context(|| format!("left: {seen:?}"))
        .or_panic();
        gone.push(format!("{what} {:?}", started.elapsed()));
    };
    expect_gone("processes", &|| {
        let alive = family.iter().filter(|(pid, process)| start_time(**pid) == Some(process.start_time));
        alive.map(|(pid, process)| format!("{pid} {}", process.name)).collect()
    });
    expect_gone("network namespaces", &|| canaries(&ours));
    expect_gone("mount namespace and bpffs", &|| {
        bpf_maps().into_iter().filter(|name| *name == map_name(pid)).collect()
    });
    expect_gone("cgroups", &|| cgroups(pid));
    println!("gone after the end of {test}: {}", gone.join(", "));

    let mounts = fs::read_to_string("/proc/self/mountinfo").or_panic();
    assert!(!mounts.contains(wsl_mirror_lab::SCRATCH), "a mount of a lab is visible outside: {mounts}");
    assert!(
        !fs::exists(wsl_mirror_lab::SCRATCH).or_panic(),
        "there is a {} outside",
        wsl_mirror_lab::SCRATCH
    );
}

/// If even the process that cleans up is killed, the next lab does it.
#[test]
fn the_next_lab_removes_the_cgroups_of_dead_ones() {
    let root =
        ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/pids/tasks"]
            .into_iter()
            .find(|path| fs::exists(path).is_ok_and(|there| there))
            .context("no cgroup hierarchy")
            .unwrap();
    let root = root.rsplit_once('/').context("a path").unwrap().0;
    // No process can have that id.
    let dead = format!("{root}/wsl-mirror-lab-4194305-1-0");
    let alive = format!("{root}/wsl-mirror-lab-{}-{}-99", std::process::id(), own_start_time());
    fs::create_dir_all(format!("{dead}/container")).unwrap();
    fs::create_dir(&alive).unwrap();
    let _lab = Lab::builder().build().unwrap();
    let (dead_left, alive_left) = (fs::exists(&dead).unwrap(), fs::exists(&alive).unwrap());
    fs::remove_dir(&alive).unwrap();
    assert!(!dead_left, "{dead} is still there");
    assert!(alive_left, "{alive} belongs to a lab that lives");
}

struct Process {
    name: String,
    parent: u32,
    start_time: u64,
}

#[track_caller]
fn processes() -> BTreeMap<u32, Process> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").or_panic() {
        let name = entry.or_panic().file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(process) = process(pid) {
            processes.insert(pid, process);
        }
    }
    processes
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    // Dead, and nobody's concern but its new parent's, which may take a second to notice.
    if fields.first() == Some(&"Z") {
        return None;
    }
    Some(Process {
        name: name.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

fn start_time(pid: u32) -> Option<u64> {
    process(pid).map(|process| process.start_time)
}

#[track_caller]
fn own_start_time() -> u64 {
    start_time(std::process::id()).context("reading our own start time").or_panic()
}

/// All that `pid` has started, and what those have started.
#[track_caller]
fn descendants(pid: u32) -> BTreeMap<u32, Process> {
    let mut all = processes();
    let mut family = BTreeSet::from([pid]);
    loop {
        let before = family.len();
        family.extend(
            all.iter()
                .filter(|(_, process)| family.contains(&process.parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    all.retain(|candidate, _| *candidate != pid && family.contains(candidate));
    all
}

/// The ends of the victim's links that are in our namespace: they go when its namespaces do.
#[track_caller]
fn canaries(ours: &Lab) -> Vec<String> {
    let links = ours.guest().enter(|| fs::read_dir("/sys/class/net")).or_panic();
    let names = links.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut canaries: Vec<_> = names.filter(|name| ["guest", "windows"].contains(&name.as_str())).collect();
    canaries.sort();
    canaries
}

/// The names of all maps of the machine.
#[track_caller]
fn bpf_maps() -> Vec<String> {
    let listed = run(Command::new("bpftool").args(["map", "list"]), LIMIT).or_panic().success().or_panic();
    let words = listed.stdout.split_whitespace().collect::<Vec<_>>();
    words.windows(2).filter(|pair| pair[0] == "name").map(|pair| pair[1].to_owned()).collect()
}

/// The cgroups of that process' labs.
fn cgroups(pid: u32) -> Vec<String> {
    let prefix = format!("wsl-mirror-lab-{pid}-");
    let children = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().to_string_lossy().into_owned()).collect()
    };
    let top = children("/sys/fs/cgroup");
    let below = top.iter().flat_map(|path| children(path)).collect::<Vec<_>>();
    top.into_iter().chain(below).filter(|path| path.contains(&prefix)).collect()
}
