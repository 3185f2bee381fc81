//! Everything that reads what others wrote, as fuzz targets call it: nothing in here may panic, whatever it is given.
//!
//! `tests/fuzz` feeds these with what a fuzzer makes up. The tests below feed them with the corpus: seeds written by hand
//! (`tests/fuzz/seeds/TARGET/NAME`) and inputs that fuzzers found before (`tests/fuzz/corpus.tar.gz`).

use std::net::Ipv4Addr;

use rtnetlink::{
    packet_core::{NetlinkDeserializable as _, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};
use wsl_mirror_core::abi::Protocol;

use crate::{
    config::Config,
    host::{
        conntrack, docker_proxy, firewall,
        routing::{Route, Routing, Rule},
    },
    install::wsl_conf,
    loader::{
        attachments,
        btf::Btf,
        clsact, local_rules, object,
        pins::bpffs,
        relocate::{Targets, relocate},
        source_alias,
    },
};

/// What a fuzzer calls, by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them; each has a folder of seeds in `tests/fuzz/seeds`.
pub const TARGETS: [Target; 8] = [
    ("config", config),
    ("btf", btf),
    ("object", damaged_object),
    ("proc", proc),
    ("netlink", netlink),
    ("nft", nft),
    ("iptables", iptables),
    ("wsl_conf", wsl_conf),
];

/// A configuration file. What is refused has its place in the file; what is accepted can be used.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text) {
        Ok(config) => drop(config.port_policies()),
        Err(error) => {
            assert!(!error.0.is_empty(), "refused, and nothing is wrong");
            assert!(
                error.0.iter().all(|problem| problem.span.end <= text.len()),
                "a place beyond the end: {error}"
            );
        }
    }
}

/// `/sys/kernel/btf/vmlinux`.
pub fn btf(data: &[u8]) {
    if let Ok(btf) = Btf::parse(data) {
        let _ = Targets::resolve(&btf);
    }
}

/// Our own object after something has happened to it: each six bytes are an offset, a mask and a value; the last,
/// shorter piece is where it ends. Or, beginning with a zero, the rest as an object.
pub fn damaged_object(data: &[u8]) {
    let mut damaged = match data.split_first() {
        Some((0, rest)) => rest.to_vec(),
        _ => damage(object::pristine(), data),
    };
    let before = damaged.len();
    if relocate(&mut damaged, &Targets::made_up()).is_ok() {
        assert_eq!(damaged.len(), before, "relocation changes the length");
    }
}

fn damage(object: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut object = object.to_vec();
    let (pieces, end) = changes.as_chunks::<6>();
    for [a, b, c, d, keep, flip] in pieces {
        // Half of all changes in the ELF header, where they matter most.
        let offset = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let range = if offset.is_multiple_of(2) { object.len() } else { 64.min(object.len()) };
        if let Some(byte) = (offset / 2).checked_rem(range).and_then(|at| object.get_mut(at)) {
            *byte = (*byte & keep) ^ flip;
        }
    }
    if let [a, b, ..] = end {
        let length = usize::from(u16::from_le_bytes([*a, *b])) * object.len() / usize::from(u16::MAX);
        object.truncate(length);
    }
    object
}

/// `/proc/self/mountinfo`, `/proc/self/fdinfo/N`, the kernel's release and the arguments of docker-proxy.
pub fn proc(data: &[u8]) {
    // A port of 0 stands for any.
    if let Some(publication) = docker_proxy::parse(data) {
        assert!(publication.host_port != 0 && publication.container_port != 0, "{publication:?}");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let id = bpffs::mount_id(text);
    let _ = bpffs::is_ours(text, id.unwrap_or(0));
    let _ = object::kfuncs_after(text);
}

/// `nft -n -j list ruleset`: whatever is understood of it can be asked for obstacles, publications, what Linux' own
/// clients may reach, leased ports and marks.
pub fn nft(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ruleset) = firewall::parse_nft(text) {
        ask(ruleset);
    }
}

/// `iptables-save`.
pub fn iptables(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ruleset) = firewall::parse_iptables(text, "iptables-legacy") {
        ask(ruleset);
    }
}

/// `/etc/wsl.conf`. What is installed in it is undone byte for byte, and installing twice is installing once.
pub fn wsl_conf(data: &[u8]) {
    const US: &str = "/usr/sbin/wsl-mirror";
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (undone, installed) = (wsl_conf::without_ours(text), wsl_conf::with_ours(Some(text), US));
    // Who writes what we write may get anything but a panic.
    if text.contains("wsl-mirror") {
        return;
    }
    if let (Ok(undone), Ok(installed)) = (undone, installed) {
        let unchanged = wsl_conf::Edited::Text(text.to_owned());
        assert_eq!(undone, unchanged, "nothing of ours was in it");
        assert_eq!(wsl_conf::without_ours(&installed).as_ref(), Ok(&unchanged), "{installed:?}");
        assert_eq!(wsl_conf::with_ours(Some(&installed), US).as_ref(), Ok(&installed));
    }
}

fn ask(ruleset: firewall::Ruleset) {
    let firewall = firewall::Firewall { ruleset, ..firewall::Firewall::default() };
    let _ = firewall.obstacles("loopback0", [127, 119, 0, 1]);
    if let Some(ports) = firewall.leased_ports() {
        assert!(!ports.is_empty() && *ports.start() != 0, "no range of a rule's: {ports:?}");
    }
    let _ = firewall.mark_bits();
    let (publications, linux_access) = (firewall.publications(), firewall.linux_access());
    let source = Ipv4Addr::new(172, 17, 0, 1);
    for protocol in Protocol::ALL {
        for port in [0, 53, 80, 8080, u16::MAX] {
            for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 168, 50, 10)] {
                let _ = publications.target_of(protocol, address, port);
            }
            let _ = publications.is_dropped(protocol, port);
            let container = (Ipv4Addr::new(172, 17, 0, 2), port);
            let translated = firewall::Translated { container, source, bridge: "docker0" };
            let _ = linux_access.to(protocol, port, &translated);
        }
    }
}

/// What netlink answers to a question for filters, rules and routes: messages one behind the other, as recv(2) gives them.
/// And the whole as the body of one, of those and of a conntrack entry, which a fuzzer comes by more easily.
pub fn netlink(data: &[u8]) {
    // `include/uapi/linux/rtnetlink.h`.
    const NEW_ROUTE: u16 = 24;
    const NEW_RULE: u16 = 32;
    const NEW_FILTER: u16 = 44;
    let look = |message: &RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            for direction in attachments::Direction::ALL {
                let _ = clsact::classify(filter, attachments::on_side(direction));
            }
        }
        RouteNetlinkMessage::NewRule(rule) => {
            let rule = Rule::new(rule.clone());
            assert_eq!(rule, Rule::new(rule.message().clone()), "a rule is not equal to itself");
            let routing = Routing { rules: vec![rule], ..Routing::default() };
            source_alias::look_at(&routing);
            local_rules::look_at(&routing);
        }
        RouteNetlinkMessage::NewRoute(route) => {
            source_alias::look_at(&Routing { routes: vec![Route(route.clone())], ..Routing::default() });
        }
        _ => {}
    };
    for kind in [NEW_FILTER, NEW_RULE, NEW_ROUTE] {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        if let Ok(message) = RouteNetlinkMessage::deserialize(&header, data) {
            look(&message);
        }
    }
    let _ = conntrack::parse(data).map(|entry| conntrack::key(&entry));
    let mut rest = data;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
        if let NetlinkPayload::InnerMessage(message) = &message.payload {
            look(message);
        }
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        match length.checked_next_multiple_of(4).and_then(|length| rest.get(length.max(16)..)) {
            Some(next) if !next.is_empty() => rest = next,
            _ => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs::{self, File},
        io::Read as _,
        path::{Path, PathBuf},
    };

    use flate2::{Compression, GzBuilder, read::GzDecoder};

    use super::*;

    /// Inputs by `TARGET/NAME`.
    type Inputs = BTreeMap<PathBuf, Vec<u8>>;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz")
    }

    fn archive() -> PathBuf {
        folder().join("corpus.tar.gz")
    }

    /// What lies in `folder/TARGET` for every target; a target may have none.
    fn files(folder: &Path) -> Inputs {
        let of = |target: &str| fs::read_dir(folder.join(target)).into_iter().flatten();
        let entries = TARGETS.iter().flat_map(|(target, _)| of(target).map(move |entry| (target, entry)));
        entries
            .map(|(target, entry)| {
                let entry = entry.unwrap();
                (Path::new(target).join(entry.file_name()), fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    fn archived() -> Inputs {
        let path = archive();
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut archive = tar::Archive::new(GzDecoder::new(file));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.path().unwrap().into_owned(), data)
        });
        entries.collect()
    }

    #[test]
    fn every_input_of_the_corpus_is_harmless() {
        let mut inputs = files(&folder().join("seeds"));
        inputs.extend(archived());
        for (name, target) in TARGETS {
            let of_target: Vec<_> = inputs.iter().filter(|(path, _)| path.starts_with(name)).collect();
            for (_, data) in &of_target {
                target(data);
            }
            assert!(of_target.len() >= 3, "{name}: only {} inputs", of_target.len());
        }
    }

    /// Adds to the archive what `cargo xtask test fuzz` found since (`tests/fuzz/target/found/TARGET`).
    ///
    /// First, keep only the inputs that reach new code, target by target:
    /// `cargo fuzz cmin --fuzz-dir tests/fuzz --sanitizer none TARGET tests/fuzz/target/found/TARGET`. Then run
    /// `cargo test --release -p wsl-mirror found_inputs_join_the_archive -- --ignored` and commit the archive.
    #[test]
    #[ignore = "writes tests/fuzz/corpus.tar.gz"]
    fn found_inputs_join_the_archive() {
        let mut inputs = if archive().exists() { archived() } else { Inputs::new() };
        inputs.extend(files(&folder().join("target/found")));
        // The same inputs make the same bytes: sorted, without times and owners.
        let file = File::create(archive()).unwrap();
        let mut builder = tar::Builder::new(GzBuilder::new().write(file, Compression::best()));
        for (path, data) in &inputs {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len().try_into().unwrap());
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            builder.append_data(&mut header, path, data.as_slice()).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap();
        assert_eq!(archived(), inputs);
    }
}
