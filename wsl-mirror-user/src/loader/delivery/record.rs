//! What has to be put back one day, written where every distribution finds it: as an alternative name of `lo`.
//!
//! Distributions share the network namespace and no mount, so neither a file nor a pin will do; `lo` lives and dies
//! with the sysctls that are recorded. Its alias (`IFLA_IFALIAS`) would do too, but there is one, anybody may have
//! written something into it, and it can only be replaced as a whole: reading, joining and writing it would lose what
//! somebody else writes in between. Alternative names (`ip link property`, Linux 5.5) are a set: ours is added and
//! taken away in one stroke each, beside any others, and adding it twice is an error and not a second record. It is
//! seen in `ip link show lo`.

use std::fmt;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, Prop};

use super::sysctls::{SWITCHES, Switch};
use crate::exit::{Exit, OrExit as _};
use crate::host::netlink;

/// The index of `lo`, in every network namespace (`LOOPBACK_IFINDEX`).
pub const LO: u32 = 1;
/// How each record begins. No other name in the namespace may be the same, so no blank, `/` or `:` may be in it.
const PREFIX: &str = "wsl-mirror,";

/// The values that the switches had before us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record([i32; SWITCHES.len()]);

impl Record {
    /// A record of these values.
    pub const fn new(values: [i32; SWITCHES.len()]) -> Self {
        Self(values)
    }

    /// What a switch was.
    pub const fn value(self, switch: Switch) -> i32 {
        self.0[switch as usize]
    }

    /// The record that a name is; an error for one that a later release has made.
    fn parse(name: &str) -> Option<Result<Self, String>> {
        let fields = name.strip_prefix(PREFIX)?;
        let mut values = [None; SWITCHES.len()];
        for field in fields.split(',') {
            let known = field.split_once('=').and_then(|(key, value)| {
                let switch = SWITCHES.into_iter().find(|switch| switch.name() == key)?;
                Some((switch, value.parse::<i32>().ok()?))
            });
            match known {
                Some((switch, value)) if values[switch as usize].is_none() => {
                    values[switch as usize] = Some(value);
                }
                _ => return Some(Err(name.to_owned())),
            }
        }
        let [Some(first), Some(second)] = values else { return Some(Err(name.to_owned())) };
        Some(Ok(Self([first, second])))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        for (index, switch) in SWITCHES.into_iter().enumerate() {
            write!(f, "{}{}={}", if index == 0 { "" } else { "," }, switch.name(), self.value(switch))?;
        }
        Ok(())
    }
}

/// `lo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lo {
    /// Whether it is up.
    pub is_up: bool,
    /// What is recorded.
    pub record: Option<Record>,
    /// A name that looks like a record and is none that we know.
    pub unknown: Option<String>,
}

/// Looks at `lo`.
pub fn read() -> Result<Lo> {
    let link = netlink::talk(|handle| async move {
        let mut links = handle.link().get().match_index(LO).execute();
        links.try_next().await?.context("there is none")
    })
    .or_exit(Exit::Kernel, || "cannot look at the interface lo".into())?;
    let names = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::PropList(properties) => Some(properties),
        _ => None,
    });
    let names = names.flatten().filter_map(|property| match property {
        Prop::AltIfName(name) => Some(name.as_str()),
        _ => None,
    });
    Ok(look_at(link.header.flags.contains(LinkFlags::Up), names))
}

fn look_at<'a>(is_up: bool, names: impl Iterator<Item = &'a str>) -> Lo {
    let mut lo = Lo { is_up, ..Lo::default() };
    for found in names.filter_map(Record::parse) {
        match found {
            // Nobody of ours makes a second one, so which of two is right cannot be known.
            Ok(record) if lo.record.is_none_or(|known| known == record) => lo.record = Some(record),
            Ok(record) => lo.unknown = Some(record.to_string()),
            Err(name) => lo.unknown = Some(name),
        }
    }
    lo
}

/// Writes a record.
pub fn write(record: Record) -> Result<()> {
    netlink::talk(|handle| async move {
        Ok(handle.link().property_add(LO).alt_ifname(&[&record.to_string()]).execute().await?)
    })
    .or_exit(Exit::Kernel, || format!("cannot give lo the alternative name {record}"))
}

/// Erases a record.
pub fn erase(record: Record) -> Result<()> {
    netlink::talk(|handle| async move {
        Ok(handle.link().property_del(LO).alt_ifname(&[&record.to_string()]).execute().await?)
    })
    .or_exit(Exit::Kernel, || format!("cannot take the alternative name {record} from lo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record::new([0, -1]);
        assert_eq!(record.to_string(), "wsl-mirror,route_localnet=0,accept_local=-1");
        assert_eq!(Record::parse(&record.to_string()), Some(Ok(record)));
        assert!(record.to_string().len() < 128, "ALTIFNAMSIZ");
        let longest = Record::new([i32::MIN, i32::MIN]).to_string();
        assert!(longest.len() < 128 && !longest.contains([' ', '/', ':']));
    }

    #[test]
    fn what_a_later_release_may_have_written_is_left_alone() {
        let names = |names: &[&str]| look_at(true, names.iter().copied());
        for odd in [
            "wsl-mirror,",
            "wsl-mirror,route_localnet=0",
            "wsl-mirror,route_localnet=0,accept_local=0,rp_filter=2",
            "wsl-mirror,route_localnet=0,route_localnet=1,accept_local=0",
            "wsl-mirror,route_localnet=0,accept_local=x",
        ] {
            assert_eq!(names(&[odd]), Lo { is_up: true, record: None, unknown: Some(odd.into()) });
        }
        assert_eq!(names(&["lo0", "wsl-mirrored"]), Lo { is_up: true, ..Lo::default() }, "somebody else's");
        let (first, second) =
            ("wsl-mirror,route_localnet=0,accept_local=0", "wsl-mirror,route_localnet=1,accept_local=0");
        assert!(names(&[first, second]).unknown.is_some());
        assert_eq!(names(&["x", first]).record, Some(Record::new([0, 0])));
    }
}
