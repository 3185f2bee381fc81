//! `lab-helper`: what the lab needs inside containers and around dockerd, as one static program.
//!
//! The services are not left to busybox: its `nc` loses data when one side closes first, and its `udpsvd`
//! starts a process per datagram. HTTP is busybox's `httpd`, so that at least one service was not written by
//! the same hands as its client.

#[path = "../src/cgroups/remove.rs"]
mod cgroups;
#[path = "../src/services.rs"]
mod services;

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use services::{Pattern, TcpService};

const USAGE: &str =
    "usage: lab-helper serve SERVICE:PORT[:BYTES|:NUMBER]… | lab-helper init CGROUP PROGRAM [ARGUMENT…] | lab-helper hold
       lab-helper ask tcp-echo|udp-echo ADDRESS:PORT MILLISECONDS
services: http tcp-echo tcp-name tcp-sink tcp-source udp-echo udp-name";

fn main() -> ExitCode {
    let mut arguments = env::args();
    // Under that name it is WSL's program, asked for the networking mode.
    if arguments.next().is_some_and(|name| name.rsplit('/').next() == Some("wslinfo")) {
        println!("mirrored");
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = arguments.collect();
    let result = match arguments.split_first() {
        Some((verb, rest)) if verb == "serve" => serve(rest),
        Some((verb, rest)) if verb == "init" => init(rest),
        Some((verb, [service, address, limit])) if verb == "ask" => ask(service, address, limit),
        Some((verb, [])) if verb == "hold" => loop {
            thread::park();
        },
        _ => Err(io::Error::other(USAGE)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab-helper: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the lab has said that it only wants its engine to end.
static LAB_LIVES: AtomicBool = AtomicBool::new(false);

/// Runs every service named, each on a thread; ends only when it is killed.
fn serve(services: &[String]) -> io::Result<ExitCode> {
    let mut threads = Vec::new();
    for service in services {
        let mut fields = service.split(':');
        let (name, port, bytes) = (fields.next(), fields.next(), fields.next());
        let bad = || io::Error::other(format!("bad service '{service}'\n{USAGE}"));
        let port: u16 = port.and_then(|port| port.parse().ok()).ok_or_else(bad)?;
        let bytes: Option<u64> = bytes.map(|bytes| bytes.parse().map_err(|_| bad())).transpose()?;
        let tcp = match name {
            Some("tcp-echo") => Some(TcpService::Echo),
            Some("tcp-sink") => Some(TcpService::Sink),
            Some("tcp-source") => Some(TcpService::Source { bytes: bytes.ok_or_else(bad)? }),
            Some("tcp-name") => Some(TcpService::Named { number: bytes.ok_or_else(bad)? }),
            _ => None,
        };
        if let Some(tcp) = tcp {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            threads.push(thread::spawn(move || services::serve_tcp(&listener, tcp, &AtomicBool::new(false))));
        } else if matches!(name, Some("udp-echo" | "udp-name")) {
            let number = if name == Some("udp-name") { Some(bytes.ok_or_else(bad)?) } else { None };
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            threads.push(thread::spawn(move || {
                services::serve_udp_echo(&socket, number, &AtomicBool::new(false));
            }));
        } else if name == Some("http") {
            threads.push(http(port, bytes)?);
        } else {
            return Err(bad());
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(ExitCode::FAILURE)
}

/// Asks an echo service and wants the answer within `limit` milliseconds; a datagram is sent once.
fn ask(service: &str, address: &str, limit: &str) -> io::Result<ExitCode> {
    const REQUEST: &[u8] = b"hello";
    let address: SocketAddrV4 = address.parse().map_err(|_| io::Error::other(USAGE))?;
    let limit = Duration::from_millis(limit.parse().map_err(|_| io::Error::other(USAGE))?);
    let mut answer = [0; REQUEST.len()];
    match service {
        "tcp-echo" => {
            let mut stream = TcpStream::connect_timeout(&address.into(), limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(REQUEST)?;
            stream.read_exact(&mut answer)?;
        }
        "udp-echo" => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(limit))?;
            // Connected: an answer from any other address is none.
            socket.connect(address)?;
            socket.send(REQUEST)?;
            socket.recv(&mut answer)?;
        }
        _ => return Err(io::Error::other(USAGE)),
    }
    Ok(if answer == REQUEST { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// busybox's httpd over `/www`; with `bytes` also `/www/pattern`, that many bytes of the lab's pattern.
fn http(port: u16, bytes: Option<u64>) -> io::Result<thread::JoinHandle<()>> {
    if let Some(bytes) = bytes {
        let mut file = File::create("/www/pattern")?;
        Pattern::default().write(&mut file, bytes)?;
        file.flush()?;
    }
    let mut httpd = Command::new("/bin/busybox")
        .args(["httpd", "-f", "-h", "/www", "-p", &port.to_string()])
        .process_group(0)
        .spawn()?;
    Ok(thread::spawn(move || {
        let _ = httpd.wait();
    }))
}

/// The first process of a PID namespace: starts `program`, reaps whatever is left to it, and ends, taking the
/// whole namespace with it, as soon as its standard input does: the other end is held by the lab's process
/// alone, so the kernel closes it however that process dies.
///
/// `program` and what it starts live below the cgroup; last of all that is removed, the one thing that would be left.
/// If this process is killed itself, the lab does that, or the next one.
fn init(arguments: &[String]) -> io::Result<ExitCode> {
    let [cgroup, program, arguments @ ..] = arguments else { return Err(io::Error::other(USAGE)) };
    // Not in the group itself: cgroup v2 wants processes only in those that have no others below them.
    let home = cgroups::v2()?;
    let group = home.join(cgroup).join("daemon");
    fs::create_dir_all(&group)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // A child is born where its parent is; this process itself would keep the group from being removed.
    let back = own_group(&home)?;
    fs::write(group.join("cgroup.procs"), "0")?;
    let child = command.spawn().map_err(|error| io::Error::other(format!("starting {program}: {error}")));
    fs::write(back.join("cgroup.procs"), "0")?;
    let child = child?;
    thread::spawn(|| {
        let mut buffer = [0; 16];
        while matches!(io::stdin().read(&mut buffer), Ok(1..)) {
            LAB_LIVES.store(true, Ordering::Relaxed);
        }
        kill_all_others();
    });
    let child = child.id().cast_signed();
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live i32 for the call to write to; there is no other precondition.
        let reaped = unsafe { waitpid(-1, &raw mut status, 0) };
        if reaped == child {
            eprintln!("lab-helper: {program} ended, wait status {status:#x}");
            kill_all_others();
        } else if reaped < 0 {
            break;
        }
    }
    // Of a lab that is dead, all of its cgroup goes with the last of its engines.
    let lab = cgroup.split('/').next().unwrap_or(cgroup);
    cgroups::remove(if LAB_LIVES.load(Ordering::Relaxed) { cgroup } else { lab });
    Ok(ExitCode::FAILURE)
}

/// Where this process is in cgroup v2.
fn own_group(home: &Path) -> io::Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Ok(home.join(path))
}

/// Kills every process of this PID namespace but process 1, the caller.
fn kill_all_others() {
    const SIGKILL: i32 = 9;
    if std::process::id() == 1 {
        // SAFETY: kill(2) has no precondition; as process 1 of a PID namespace, -1 means that namespace.
        unsafe { kill(-1, SIGKILL) };
    }
}

// SAFETY: the C library's waitpid(2) and kill(2), with the types that they have on every Linux target.
unsafe extern "C" {
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
}
