//! `lab-sockets`: a process that does with sockets what it is told, line by line on its standard input: under any
//! name, as any user, in any cgroup. It takes the arguments of a docker-proxy, and means nothing by them. It answers each line with `ok …` or `error …`.
//!
//! | line | what it does |
//! |---|---|
//! | `group FOLDER` | goes to live in that cgroup |
//! | `name NAME` | is called so from now on |
//! | `user ID` | its real user is this one; the effective one stays root |
//! | `leave-root ID` | is that user in everything, and its files below /proc are; `user` takes it back |
//! | `bind KEY tcp\|udp ADDRESS [reuseport] [v6only] [later]` | binds, and listens unless `later` |
//! | `port KEY` | says the port, without asking the socket: that would change its tag |
//! | `unbound KEY` | a UDP socket that the kernel binds when it first sends |
//! | `listen KEY` | listens |
//! | `ask KEY` | getsockname(2) |
//! | `serve KEY` | answers whoever comes with its own name; a socket that is not served is only held |
//! | `send KEY ADDRESS` | sends a datagram |
//! | `tag KEY` | says the socket's tag, `NAME UID`, or `none` |
//! | `target KEY` | says the container behind it, `ADDRESS:PORT SOURCE proxy\|holder open\|dropped`, or `none` |
//! | `timed KEY tcp\|udp ADDRESS` | binds, listens, and says after how many microseconds it has a target |
//! | `pid` | says its process number in its own PID namespace |
//! | `hand KEY NAME [ask] [serve] [proxy]` | hands the socket to a process of that name, which goes on without this one; with `proxy` it has this one's arguments |
//! | `close KEY` | lets go of it |
//! | `binds COUNT` | binds and closes that many sockets |

use std::{
    collections::HashMap,
    ffi::CString,
    fs,
    io::{self, BufRead as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{Map, MapData, MapError, SkStorage};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{FdFlags, fcntl_setfd},
    process::{DumpableBehavior, Uid, set_dumpable_behavior},
    thread::{set_name, set_thread_res_uid},
};
use socket2::{Domain, SockAddr, Socket, Type};
use wsl_mirror_core::abi::{EngineWay, Owner, Service, Target};
use wsl_mirror_lab::pins;

/// docker-proxy's flag says yes or no, since it always finds the socket under 4.
const LISTEN_FD: &str = "-use-listen-fd=";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["taken", descriptor, name, rest @ ..] => take(descriptor, name, rest),
        // As dockerd from 28.0 on starts it.
        ["-proto", .., last] if last.starts_with(LISTEN_FD) => {
            take(&last[LISTEN_FD.len()..], "docker-proxy", &["ask", "serve"])
        }
        [] | ["-proto", ..] => obey(),
        _ => Err(anyhow!("told by its standard input, not by arguments")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-sockets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey() -> Result<()> {
    let mut process = Process { name: "lab-sockets".into(), sockets: HashMap::new() };
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match process.carry_out(&words) {
            Ok(said) => writeln!(out, "ok {said}")?,
            Err(error) => writeln!(out, "error {error:#}")?,
        }
        out.flush()?;
    }
    Ok(())
}

struct Process {
    name: String,
    sockets: HashMap<String, Socket>,
}

impl Process {
    fn carry_out(&mut self, words: &[&str]) -> Result<String> {
        match words {
            ["group", folder] => fs::write(format!("{folder}/cgroup.procs"), "0")?,
            ["name", name] => {
                set_name(&CString::new(*name)?)?;
                (*name).clone_into(&mut self.name);
            }
            ["user", id] => set_thread_res_uid(Uid::from_raw(id.parse()?), Uid::ROOT, Uid::ROOT)?,
            // Until `user`, its files below /proc are that user's, as if the user had started it.
            ["leave-root", id] => {
                let id = Uid::from_raw(id.parse()?);
                set_thread_res_uid(id, id, Uid::ROOT)?;
                set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            }
            ["bind", key, protocol, address, options @ ..] => {
                let socket = bind(protocol, address.parse()?, options)?;
                self.sockets.insert((*key).to_owned(), socket);
            }
            ["port", key] => return Ok(port_of(self.socket(key)?)?.to_string()),
            ["unbound", key] => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                self.sockets.insert((*key).to_owned(), socket);
            }
            ["listen", key] => self.socket(key)?.listen(128)?,
            ["ask", key] => return Ok(asked(self.socket(key)?)?.to_string()),
            ["serve", key] => serve(self.socket(key)?.try_clone()?, self.name.clone())?,
            ["send", key, address] => {
                let socket = self.socket(key)?;
                socket.send_to(b"hello", &SockAddr::from(address.parse::<SocketAddr>()?))?;
            }
            ["tag", key] => return tag(self.socket(key)?),
            ["target", key] => {
                return Ok(target(&targets()?, self.socket(key)?)?.unwrap_or_else(|| "none".into()));
            }
            ["timed", key, protocol, address] => {
                let targets = targets()?;
                let socket = bind(protocol, address.parse()?, &[])?;
                let since = Instant::now();
                while target(&targets, &socket)?.is_none() {
                    if since.elapsed() > Duration::from_secs(40) {
                        bail!("it has no target for 40 s");
                    }
                    thread::sleep(Duration::from_micros(200));
                }
                self.sockets.insert((*key).to_owned(), socket);
                return Ok(since.elapsed().as_micros().to_string());
            }
            ["pid"] => return Ok(std::process::id().to_string()),
            ["hand", key, name, rest @ ..] => hand(self.socket(key)?, name, rest)?,
            ["close", key] => drop(self.sockets.remove(*key)),
            ["binds", count] => binds(count.parse()?)?,
            _ => bail!("what is {words:?}?"),
        }
        Ok(String::new())
    }

    fn socket(&self, key: &str) -> Result<&Socket> {
        self.sockets.get(key).with_context(|| format!("no socket {key}"))
    }
}

fn bind(protocol: &str, address: SocketAddr, options: &[&str]) -> Result<Socket> {
    let kind = match protocol {
        "tcp" => Type::STREAM,
        "udp" => Type::DGRAM,
        _ => bail!("no protocol {protocol}"),
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(options.contains(&"v6only"))?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if options.contains(&"reuseport") {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM && !options.contains(&"later") {
        socket.listen(128)?;
    }
    Ok(socket)
}

/// The port as /proc has it; getsockname(2) would change the socket's tag.
fn port_of(socket: &Socket) -> Result<u16> {
    let inode = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
    let inode = inode.to_string_lossy();
    let inode = inode.trim_start_matches("socket:[").trim_end_matches(']').to_owned();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        for line in fs::read_to_string(format!("/proc/thread-self/net/{table}"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(9) == Some(&inode.as_str())
                && let Some((_, port)) = fields.get(1).and_then(|local| local.rsplit_once(':'))
            {
                return Ok(u16::from_str_radix(port, 16)?);
            }
        }
    }
    bail!("not bound, or bound and not listening: in no table")
}

fn asked(socket: &Socket) -> Result<SocketAddr> {
    socket.local_addr()?.as_socket().context("no internet address")
}

fn serve(socket: Socket, name: String) -> Result<()> {
    let is_tcp = socket.r#type()? == Type::STREAM;
    thread::Builder::new().spawn(move || {
        if is_tcp {
            for stream in TcpListener::from(socket).incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
            }
        } else {
            let socket = UdpSocket::from(socket);
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        }
    })?;
    Ok(())
}

fn tag(socket: &Socket) -> Result<String> {
    let map = Map::SkStorage(MapData::from_pin(pins::path("SOCKET_OWNER"))?);
    let tags: SkStorage<MapData, Owner> = map.try_into()?;
    match tags.get(socket, 0) {
        Ok(owner) => Ok(format!("{} {}", owner.name(), owner.uid)),
        Err(MapError::KeyNotFound) => Ok("none".into()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok("none".into())
        }
        Err(error) => Err(error.into()),
    }
}

fn targets() -> Result<SkStorage<MapData, Target>> {
    Ok(Map::SkStorage(MapData::from_pin(pins::path("SOCKET_TARGET"))?).try_into()?)
}

fn target(targets: &SkStorage<MapData, Target>, socket: &Socket) -> Result<Option<String>> {
    let target = match targets.get(socket, 0) {
        Ok(target) => target,
        Err(MapError::KeyNotFound) => return Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let service = match target.service() {
        Service::Proxy => "proxy",
        Service::Holder => "holder",
    };
    let engine_way = match target.engine_way() {
        EngineWay::Open => "open",
        EngineWay::Dropped => "dropped",
    };
    let (address, source) = (Ipv4Addr::from(target.address), Ipv4Addr::from(target.source));
    Ok(Some(format!("{address}:{} {source} {service} {engine_way}", target.port)))
}

fn hand(socket: &Socket, name: &str, rest: &[&str]) -> Result<()> {
    let copy = rustix::io::dup(socket)?;
    fcntl_setfd(&copy, FdFlags::empty())?;
    let mut command = Command::new(std::env::current_exe()?);
    if rest.contains(&"proxy") {
        command.args(std::env::args().skip(1)).arg(format!("{LISTEN_FD}{}", copy.as_raw_fd()));
    } else {
        command.args(["taken", &copy.as_raw_fd().to_string(), name]).args(rest);
    }
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    // It says a line when it has done as it was told.
    let mut line = String::new();
    io::BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
    if line.trim() == "ok" { Ok(()) } else { bail!("the other process said {line:?}") }
}

/// The process that a socket was handed to. It ends when the test closes the first process's standard input, which is
/// its own as well.
fn take(descriptor: &str, name: &str, rest: &[&str]) -> Result<()> {
    set_name(&CString::new(name)?)?;
    // SAFETY: whoever started this process left this descriptor open for it, and for nothing else.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor.parse()?) });
    if rest.contains(&"ask") {
        asked(&socket)?;
    }
    if rest.contains(&"serve") {
        serve(socket.try_clone()?, name.to_owned())?;
    }
    println!("ok");
    let stdin = io::stdin();
    loop {
        // Without reading: the lines are not for this process.
        let mut end = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty())];
        poll(&mut end, None)?;
        if end[0].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
    }
}

fn binds(count: u32) -> Result<()> {
    for _ in 0..count {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    }
    Ok(())
}
