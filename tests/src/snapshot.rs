//! All of a lab that a test may have changed, as lines that can be compared.
//!
//! Read in this process where that is possible: in emulation, every program that is started costs what reading
//! hundreds of files does.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Lab, Namespace, SCRATCH, netfilter, pins};

/// What `ip` shows, and what it forgets at the same time: what TCP has learned of how far away its peers are.
const IP: &str =
    "tcp_metrics flush\nlink show\naddr show\nrule show\nroute show table all\nneigh show nud permanent\n";
const TC: &str = "qdisc show\nfilter show dev loopback0 ingress\nfilter show dev loopback0 egress\n";
/// Sysctls that change by themselves, or belong to the machine.
const NOT_OF_A_LAB: [&str; 4] =
    ["nf_conntrack_count", "nf_conntrack_max", "nf_conntrack_buckets", "nf_conntrack_expect_max"];

/// A lab at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    lines: BTreeSet<String>,
    /// Of rules only the text of the guest's: those of Windows nobody changes, as long as the generation says so.
    ruleset: String,
    generations: [u32; 2],
    tables: Vec<netfilter::Table>,
    scratch: BTreeSet<PathBuf>,
}

impl Snapshot {
    /// Of how it is now.
    pub(crate) fn take(lab: &Lab) -> Result<Self> {
        Ok(Self {
            generations: generations(lab)?,
            tables: netfilter::tables(lab.guest())?,
            ruleset: ruleset(lab)?,
            lines: lines(lab)?,
            scratch: lab.guest().enter(scratch)?,
        })
    }

    /// Removes what tests leave lying about: tables of rules, and files in the scratch directory.
    pub(crate) fn remove_what_came_later(&self, lab: &Lab) -> Result<()> {
        if netfilter::generation(lab.guest())? != self.generations[0] {
            for table in netfilter::tables(lab.guest())? {
                if !self.tables.contains(&table) {
                    netfilter::delete_table(lab.guest(), &table)?;
                }
            }
        }
        lab.guest().enter(|| -> Result<()> {
            for file in scratch()?.difference(&self.scratch) {
                fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
            }
            Ok(())
        })
    }

    /// Wants the lab to be as it was; the error says what is not.
    pub(crate) fn compare(&mut self, lab: &Lab) -> Result<()> {
        let lines = lines(lab)?;
        let (gone, new) = (self.lines.difference(&lines), lines.difference(&self.lines));
        let differences: Vec<_> =
            gone.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}"))).collect();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        let generations = generations(lab)?;
        ensure!(generations[1] == self.generations[1], "the rules of Windows were changed");
        if generations != self.generations {
            let ruleset = ruleset(lab)?;
            ensure!(ruleset == self.ruleset, "the ruleset is another one:\n{ruleset}");
            self.generations = generations;
        }
        Ok(())
    }
}

fn generations(lab: &Lab) -> Result<[u32; 2]> {
    Ok([netfilter::generation(lab.guest())?, netfilter::generation(lab.windows())?])
}

fn ruleset(lab: &Lab) -> Result<String> {
    Ok(lab.guest().run("nft", ["--stateless", "list", "ruleset"])?.stdout)
}

fn lines(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for namespace in [lab.guest(), lab.windows()] {
        let mut add = |what: &str, line: &str| {
            lines.insert(format!("{}: {what}: {line}", namespace.name()));
        };
        namespace.enter(|| -> Result<()> {
            sysctls(Path::new("/proc/sys/net/ipv4"), &mut add);
            sysctls(Path::new("/proc/sys/net/netfilter"), &mut add);
            listeners(&mut add)?;
            let legacy = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
            // Their rules are nowhere else to be seen: a lab that has any is not compared at all.
            ensure!(legacy.is_empty(), "there are iptables-legacy's tables: {legacy}");
            Ok(())
        })?;
        for line in namespace.batch("ip", &["-details", "-oneline"], IP)?.lines() {
            if let Some(line) = without_what_passes(line) {
                add("ip", &line);
            }
        }
    }
    let mut add = |what: &str, line: &str| {
        lines.insert(format!("guest: {what}: {line}"));
    };
    for line in lab.guest().batch("tc", &[], TC)?.lines() {
        add("tc", line);
    }
    lab.guest().enter(|| -> Result<()> {
        for line in fs::read_to_string("/proc/thread-self/mountinfo")?.lines() {
            add("mount", line);
        }
        for directory in [pins::BPFFS, "/run"] {
            files(Path::new(directory), &mut add)?;
        }
        Ok(())
    })?;
    Ok(lines)
}

/// The line without what the kernel itself changes for some seconds after a link was made: whether there is a carrier,
/// a bridge's timers, and all that IPv6 does to give links addresses of their own.
fn without_what_passes(line: &str) -> Option<String> {
    if line.contains(" fe80::") || line.contains(" ff00::") {
        return None;
    }
    let line = line.replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word.ends_with("_timer") || word == "state" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    Some(kept.join(" "))
}

fn sysctls(directory: &Path, add: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // Neighbours' timers are the kernel's business.
            if !path.ends_with("neigh") {
                sysctls(&path, add);
            }
        } else if !NOT_OF_A_LAB.iter().any(|name| path.ends_with(name)) {
            // Some can only be written.
            let value = fs::read_to_string(&path).unwrap_or_default();
            add("sysctl", &format!("{} = {}", path.display(), value.trim()));
        }
    }
}

/// Everybody who waits for connections, datagrams or frames, by inode: another socket in its place is no match.
fn listeners(add: &mut impl FnMut(&str, &str)) -> Result<()> {
    for (protocol, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        for socket in sockets(protocol)? {
            if socket.state == state {
                add(protocol, &format!("{} inode {}", socket.local, socket.inode));
            }
        }
    }
    for line in fs::read_to_string("/proc/thread-self/net/packet")?.lines().skip(1) {
        add("packet", line);
    }
    Ok(())
}

/// The TCP connections that are neither closed nor only waiting for stray segments.
pub(crate) fn connections(namespace: &Namespace) -> Result<Vec<String>> {
    namespace.enter(|| {
        let mut open = Vec::new();
        for protocol in ["tcp", "tcp6"] {
            open.extend(sockets(protocol)?.into_iter().filter(|socket| {
                // LISTEN and TIME_WAIT.
                !["0A", "06"].contains(&socket.state.as_str())
            }));
        }
        Ok(open.iter().map(|socket| format!("{} state {}", socket.local, socket.state)).collect())
    })
}

struct Socket {
    local: String,
    state: String,
    inode: String,
}

fn sockets(protocol: &str) -> Result<Vec<Socket>> {
    let path = format!("/proc/thread-self/net/{protocol}");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let socket = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let word = |index: usize| words.get(index).map(|word| (*word).to_owned());
        Some(Socket { local: word(1)?, state: word(3)?, inode: word(9)? })
    };
    text.lines().skip(1).map(socket).collect::<Option<_>>().with_context(|| format!("{path}: {text}"))
}

/// Files directly in the scratch directory.
fn scratch() -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(SCRATCH).with_context(|| format!("listing {SCRATCH}"))?.flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    Ok(files.map(|entry| entry.path()).collect())
}

/// All below a directory, without the engines' own.
fn files(directory: &Path, add: &mut impl FnMut(&str, &str)) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        let of_an_engine = path.to_str().is_some_and(|path| path.starts_with(&format!("{SCRATCH}/docker-")));
        if of_an_engine {
            continue;
        }
        let found = fs::symlink_metadata(&path)?;
        let written = if found.is_file() { found.mtime_nsec() ^ found.mtime() } else { 0 };
        let size = if found.is_file() { found.size() } else { 0 };
        add("file", &format!("{} {:o} {} {size} {written}", path.display(), found.mode(), found.uid()));
        if found.is_dir() {
            files(&path, add)?;
        }
    }
    Ok(())
}
