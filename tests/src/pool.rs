//! Labs with a running Docker that several tests of a binary use, one after the other: to start dockerd with a
//! container takes longer than most tests do, in emulation ten times as long.
//!
//! A lab is used again only if it cannot be told from a new one. When a test passes, the pool removes what the test
//! loaded and added, and compares the lab with its [`Snapshot`] from the start. The pool drops the lab at any
//! difference, and when the test panics; the next test makes its own.
//!
//! What stays different, because nobody can take it back: the counters of rules (tests look at differences),
//! `TIME_WAIT` (see [`crate::tcp::Client::connect`]), and the sockets in which docker-proxy remembers who sent it
//! datagrams, for 90 seconds, so that somebody else on the same port of Windows gets that one's socket.
//!
//! Labs that wait here when the tests are over go as all labs do: with the process.

use std::{
    env, fs,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Container, Docker, DockerOptions, Lab, LabBuilder, netfilter, pins,
    process::wait_for,
    snapshot::{self, Snapshot},
};

/// `off`: every test makes its own lab. `tell`: says on standard error what is made, used again and dropped, and why.
const POOL: &str = "WSL_MIRROR_LAB_POOL";
/// How long the connections of a test may take to close.
const CLOSING: Duration = Duration::from_secs(1);

static IDLE: Mutex<Vec<Stand>> = Mutex::new(Vec::new());

/// A lab with Docker and one container in it.
struct Stand {
    /// What was ordered, in words: the same order, the same lab.
    order: String,
    docker: Docker,
    lab: Lab,
    /// Nothing if it never came to rest, as may be on a machine with too much to do: then it is for one test only.
    as_made: Option<Snapshot>,
}

/// A lab for one test. It is a [`Lab`] in all other respects.
pub struct SharedLab {
    stand: Option<Stand>,
}

impl SharedLab {
    /// One that was used before and cannot be told from a new one; else a new one.
    pub fn take(lab: LabBuilder, options: &DockerOptions, container: Container) -> Result<Self> {
        let order = format!("{lab:?} {options:?} {container:?}");
        let used = {
            let mut idle = idle();
            let place = idle.iter().position(|stand| stand.order == order);
            place.map(|place| idle.remove(place))
        };
        let stand = if let Some(stand) = used {
            tell("a used lab");
            stand
        } else {
            tell("a new lab");
            let lab = lab.build()?;
            let docker = Docker::start(&lab, options)?;
            docker.run(container)?;
            let as_made = as_made(&lab)
                .inspect_err(|error| {
                    tell(&format!("not to be shared, for it does not come to rest: {error:#}"));
                })
                .ok();
            Stand { order, docker, lab, as_made }
        };
        Ok(Self { stand: Some(stand) })
    }

    /// Removes what a test has loaded and added, and wants the lab to be as it was made; the error says what is not.
    pub fn tidy_up(&mut self) -> Result<()> {
        match &mut self.stand {
            Some(stand) => stand.tidy_up(),
            None => Ok(()),
        }
    }

    fn stand(&self) -> &Stand {
        match &self.stand {
            Some(stand) => stand,
            None => unreachable!("it is taken only by drop"),
        }
    }
}

impl Deref for SharedLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.stand().lab
    }
}

impl Drop for SharedLab {
    fn drop(&mut self) {
        let Some(mut stand) = self.stand.take() else { return };
        if thread::panicking() {
            tell("dropped: the test failed");
        } else if env::var(POOL).as_deref() == Ok("off") {
            tell("dropped: as it was asked for");
        } else {
            let started = Instant::now();
            match stand.tidy_up() {
                Ok(()) => {
                    tell(&format!("as new after {:?}", started.elapsed()));
                    idle().push(stand);
                }
                Err(error) => tell(&format!("dropped, because it is not as new:\n{error:#}")),
            }
        }
    }
}

impl Stand {
    fn tidy_up(&mut self) -> Result<()> {
        let Self { docker, lab, as_made, .. } = self;
        let as_made = as_made.as_mut().context("it had not come to rest when it was made")?;
        ensure!(docker.is_running(), "dockerd has ended");
        // First, for they may keep connections from closing.
        as_made.remove_what_came_later(lab)?;
        // Before the program goes and conntrack forgets: a connection that neither knows may never close.
        let closed = wait_until_closed(lab);
        if lab.guest().enter(|| fs::exists(pins::PARENT))? {
            lab.wsl_mirror(&["unload"])?.success()?;
        }
        closed?;
        forget_connections(lab)?;
        lab.windows_side().reset()?;
        as_made.compare(lab)
    }
}

fn idle() -> MutexGuard<'static, Vec<Stand>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is there when the container has been asked whether it is ready, and all is quiet again.
fn as_made(lab: &Lab) -> Result<Snapshot> {
    wait_until_closed(lab)?;
    forget_connections(lab)?;
    Snapshot::take(lab)
}

fn wait_until_closed(lab: &Lab) -> Result<()> {
    let mut open = Vec::new();
    wait_for("all connections to close", CLOSING, || {
        open = [snapshot::connections(lab.guest())?, snapshot::connections(lab.windows())?].concat();
        Ok(open.is_empty().then_some(()))
    })
    .with_context(|| format!("open: {open:?}"))
}

fn forget_connections(lab: &Lab) -> Result<()> {
    wait_for("conntrack to forget all connections", CLOSING, || {
        netfilter::flush_conntrack(lab.guest())?;
        let count = lab.guest().sysctl("net/netfilter/nf_conntrack_count")?;
        Ok((count == "0").then_some(()))
    })
}

/// Not by `eprintln!`, of which nothing is seen if a test passes.
fn tell(what: &str) {
    use std::io::Write as _;
    if env::var(POOL).as_deref() == Ok("tell") {
        let test = thread::current().name().unwrap_or("?").to_owned();
        let _ = writeln!(std::io::stderr(), "pool: {test}: {what}");
    }
}
