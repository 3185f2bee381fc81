//! IPv4's policy rules, and ours among them: `pref 0 iif lo to 127.0.0.1 fwmark M/M lookup local`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};
use rustix::io::Errno;

use crate::exit::{Exit, OrExit as _};
use crate::host::marks::{MarkUse, claimed};
use crate::host::netlink;

/// Who made a rule (`FRA_PROTOCOL`): the number under which we know ours again, whichever distribution made it and
/// whatever has become of that. `w`, as in our tc filter's handle; not in iproute2's `rt_protos`, and above what the
/// kernel itself uses.
pub const PROTOCOL: u8 = 0x77;
/// `RT_TABLE_LOCAL`.
const LOCAL: u32 = 255;
/// The lowest. Ours is behind WSL's own of this priority, which are for other interfaces, and before those for table 127.
const PRIORITY: u32 = 0;

/// A policy rule as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    message: RuleMessage,
}

impl Rule {
    /// The rule that we want for these bits.
    pub fn ours(mark: u32) -> Self {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.dst_len = 32;
        message.header.table = u8::try_from(LOCAL).unwrap_or(u8::MAX);
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Destination(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            RuleAttribute::Iifname("lo".into()),
            RuleAttribute::Priority(PRIORITY),
            RuleAttribute::FwMark(mark),
            RuleAttribute::FwMask(mark),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ];
        Self { message }
    }

    fn find<T>(&self, pick: impl Fn(&RuleAttribute) -> Option<T>) -> Option<T> {
        self.message.attributes.iter().find_map(pick)
    }

    fn priority(&self) -> u32 {
        self.find(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        })
        .unwrap_or(0)
    }

    fn table(&self) -> u32 {
        self.find(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| u32::from(self.message.header.table))
    }

    fn interface(&self) -> Option<&str> {
        self.message.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Iifname(name) => Some(name.as_str()),
            _ => None,
        })
    }

    fn protocol(&self) -> Option<u8> {
        self.find(|attribute| match attribute {
            RuleAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
            _ => None,
        })
    }

    /// Value and mask of the mark that it wants.
    fn mark(&self) -> (u32, u32) {
        let value = self.find(|attribute| match attribute {
            RuleAttribute::FwMark(value) => Some(*value),
            _ => None,
        });
        let mask = self.find(|attribute| match attribute {
            RuleAttribute::FwMask(mask) => Some(*mask),
            _ => None,
        });
        let value = value.unwrap_or(0);
        (value, mask.unwrap_or(if value == 0 { 0 } else { u32::MAX }))
    }

    /// The destinations or sources that it is for: the first address, and how many bits of it count.
    fn network(&self, pick: impl Fn(&RuleAttribute) -> Option<IpAddr>, length: u8) -> (u32, u8) {
        match self.find(pick) {
            Some(IpAddr::V4(address)) => (u32::from(address), length),
            _ => (0, 0),
        }
    }

    fn destination(&self) -> (u32, u8) {
        let pick = |attribute: &RuleAttribute| match attribute {
            RuleAttribute::Destination(address) => Some(*address),
            _ => None,
        };
        self.network(pick, self.message.header.dst_len)
    }

    fn source(&self) -> (u32, u8) {
        let pick = |attribute: &RuleAttribute| match attribute {
            RuleAttribute::Source(address) => Some(*address),
            _ => None,
        };
        self.network(pick, self.message.header.src_len)
    }

    /// The bits of the mark, if it is a rule of ours: by its protocol and by all that it says, but for the bits.
    pub fn our_mark(&self) -> Option<u32> {
        let (value, mask) = self.mark();
        let is_ours = self.protocol() == Some(PROTOCOL)
            && self.message.header.action == RuleAction::ToTable
            && self.table() == LOCAL
            && self.interface() == Some("lo")
            && self.destination() == (u32::from(Ipv4Addr::LOCALHOST), 32)
            && !self.message.header.flags.contains(RuleFlags::Invert)
            && value == mask
            && value != 0;
        is_ours.then_some(value)
    }

    /// Whether it is the rule for these bits, at its place.
    pub fn is_wanted(&self, mark: u32) -> bool {
        self.our_mark() == Some(mark) && self.priority() == PRIORITY
    }

    /// Whether it may take a marked packet for 127.0.0.1 on `lo` somewhere else than to table local.
    fn may_take(&self, mark: u32) -> bool {
        let harmless = match self.message.header.action {
            RuleAction::ToTable => self.table() == LOCAL,
            RuleAction::Nop => true,
            _ => false,
        };
        if harmless {
            return false;
        }
        if self.message.header.flags.contains(RuleFlags::Invert) {
            return true;
        }
        let (value, mask) = self.mark();
        let loopback = |(first, length): (u32, u8)| {
            let host_bits = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            (u32::from(Ipv4Addr::LOCALHOST) ^ first) & !host_bits == 0
        };
        self.interface().is_none_or(|name| name == "lo")
            && loopback(self.destination())
            && loopback(self.source())
            && value & mask & mark == mark & mask
    }
}

/// As `ip rule` shows it, as far as it matters here.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority())?;
        if self.message.header.flags.contains(RuleFlags::Invert) {
            f.write_str(" not")?;
        }
        for (word, (address, length)) in [("from", self.source()), ("to", self.destination())] {
            match (word, length) {
                ("from", 0) => f.write_str(" from all")?,
                (_, 0) => {}
                (_, 32) => write!(f, " {word} {}", Ipv4Addr::from(address))?,
                _ => write!(f, " {word} {}/{length}", Ipv4Addr::from(address))?,
            }
        }
        match self.mark() {
            (_, 0) => {}
            (value, u32::MAX) => write!(f, " fwmark {value:#x}")?,
            (value, mask) => write!(f, " fwmark {value:#x}/{mask:#x}")?,
        }
        if let Some(interface) = self.interface() {
            write!(f, " iif {interface}")?;
        }
        match (self.message.header.action, self.table()) {
            (RuleAction::ToTable, LOCAL) => f.write_str(" lookup local"),
            (RuleAction::ToTable, table) => write!(f, " lookup {table}"),
            (action, _) => write!(f, " {action:?}"),
        }
    }
}

/// The first rule that may take a marked packet elsewhere before ours comes to it. `rules` in the kernel's order, with
/// ours or without: then it would stand behind all others of its priority.
pub fn taken_by(rules: &[Rule], mark: u32) -> Option<&Rule> {
    let ours = rules.iter().position(|rule| rule.is_wanted(mark));
    rules[..ours.unwrap_or(rules.len())]
        .iter()
        .filter(|rule| rule.priority() == PRIORITY)
        .find(|rule| rule.may_take(mark))
}

/// The bits that rules of others look at.
pub fn marks(rules: &[Rule]) -> Vec<MarkUse> {
    let others = rules.iter().filter(|rule| rule.our_mark().is_none());
    others
        .filter_map(|rule| {
            let (value, mask) = rule.mark();
            let bits = value | claimed(mask);
            (bits != 0).then(|| MarkUse { bits, by: format!("ip rule {rule}") })
        })
        .collect()
}

/// All IPv4 rules, in the order in which the kernel looks at them.
pub fn read() -> Result<Vec<Rule>> {
    netlink::talk(|handle| async move { list(&handle).await })
        .or_exit(Exit::Kernel, || "cannot list the policy rules".into())
}

async fn list(handle: &Handle) -> Result<Vec<Rule>> {
    let messages: Vec<RuleMessage> = handle.rule().get(IpVersion::V4).execute().try_collect().await?;
    Ok(messages.into_iter().map(|message| Rule { message }).collect())
}

/// Adds our rule; one that is there already is as good.
pub fn add(mark: u32) -> Result<()> {
    netlink::talk(|handle| async move {
        let mut request = handle.rule().add();
        *request.message_mut() = Rule::ours(mark).message;
        match request.execute().await {
            Err(error) if is(&error, Errno::EXIST) => Ok(()),
            done => Ok(done?),
        }
    })
    .or_exit(Exit::Kernel, || format!("cannot add the policy rule `{}`", Rule::ours(mark)))
}

/// Removes every rule of ours for these bits, duplicates and all.
pub fn remove(mark: u32) -> Result<()> {
    netlink::talk(|handle| async move {
        for rule in list(&handle).await? {
            if rule.our_mark() == Some(mark) {
                match handle.rule().del(rule.message).execute().await {
                    // Somebody else was faster.
                    Err(error) if is(&error, Errno::NOENT) => {}
                    done => done?,
                }
            }
        }
        Ok(())
    })
    .or_exit(Exit::Kernel, || format!("cannot remove the policy rule `{}`", Rule::ours(mark)))
}

/// Whether the kernel answered with this error.
fn is(error: &rtnetlink::Error, wanted: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error) if error.raw_code() == -wanted.raw_os_error())
}

/// Everything that is asked of a rule, for those who make rules up.
#[cfg(any(test, feature = "fuzzing"))]
pub fn look_at(message: RuleMessage) {
    let rules = [Rule { message }];
    let _ = (taken_by(&rules, 1).map(ToString::to_string), marks(&rules));
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A rule by somebody else: on this interface, with this mark and mask, to this table.
    pub fn rule(interface: &str, mark: (u32, u32), table: u8) -> Rule {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.table = table;
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Priority(0));
        if !interface.is_empty() {
            message.attributes.push(RuleAttribute::Iifname(interface.into()));
        }
        if mark.1 != 0 {
            message.attributes.extend([RuleAttribute::FwMark(mark.0), RuleAttribute::FwMask(mark.1)]);
        }
        Rule { message }
    }

    /// The same at another priority.
    pub fn at(priority: u32, mut rule: Rule) -> Rule {
        rule.message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Priority(_)));
        rule.message.attributes.push(RuleAttribute::Priority(priority));
        rule
    }

    #[test]
    fn ours_is_known_by_all_that_it_says() {
        assert_eq!(Rule::ours(0x3000).our_mark(), Some(0x3000));
        assert!(Rule::ours(0x3000).is_wanted(0x3000) && !Rule::ours(0x3000).is_wanted(0x1000));
        assert_eq!(
            Rule::ours(0x1000).to_string(),
            "0: from all to 127.0.0.1 fwmark 0x1000/0x1000 iif lo lookup local"
        );
        let changed = |change: fn(&mut RuleMessage)| {
            let mut rule = Rule::ours(0x1000);
            change(&mut rule.message);
            rule.our_mark()
        };
        assert_eq!(changed(|rule| rule.header.table = 254), None);
        assert_eq!(changed(|rule| rule.header.dst_len = 8), None);
        assert_eq!(changed(|rule| rule.header.flags = RuleFlags::Invert), None);
        assert_eq!(changed(|rule| rule.attributes[1] = RuleAttribute::Iifname("lo1".into())), None);
        assert_eq!(changed(|rule| rule.attributes[4] = RuleAttribute::FwMask(0xff)), None);
        assert_eq!(changed(|rule| rule.attributes[5] = RuleAttribute::Protocol(RouteProtocol::Static)), None);
        // At another place it is ours, but not what we want.
        let elsewhere = at(7, Rule::ours(0x1000));
        assert_eq!((elsewhere.our_mark(), elsewhere.is_wanted(0x1000)), (Some(0x1000), false));
    }

    #[test]
    fn wsls_own_rules_take_nothing_from_us() {
        let wsl = [
            rule("loopback0", (0, 0), 255),
            rule("eth0", (0, 0), 255),
            at(1, rule("", (0, 0), 127)),
            at(2, rule("", (0, 0), 255)),
        ];
        assert_eq!(taken_by(&wsl, 0x1000), None);
        let mut with_ours = wsl.to_vec();
        with_ours.insert(2, Rule::ours(0x1000));
        assert_eq!(taken_by(&with_ours, 0x1000), None);
        assert_eq!(marks(&with_ours), []);
    }

    #[test]
    fn a_rule_before_ours_that_may_take_the_packet_is_found() {
        let ours = || Rule::ours(0x1000);
        let before = |rule: Rule| taken_by(&[rule, ours()], 0x1000).is_some();
        assert!(before(rule("", (0, 0), 127)));
        assert!(before(rule("lo", (0, 0), 99)));
        assert!(before(rule("", (0x1001, 0x1001), 99)), "it may have that bit too");
        assert!(before(rule("", (0x10, 0xff0), 99)), "somebody may set that bit");
        assert!(!before(rule("", (0, 0x1000), 99)), "it wants our bit to be 0");
        assert!(!before(rule("", (0x10, u32::MAX), 99)));
        assert!(!before(rule("eth0", (0, 0), 99)));
        assert!(!before(at(1, rule("", (0, 0), 99))));
        assert_eq!(taken_by(&[ours(), rule("", (0, 0), 99)], 0x1000), None, "behind ours");
        assert!(taken_by(&[rule("", (0, 0), 99)], 0x1000).is_some(), "where ours is yet to come");
    }

    #[test]
    fn marks_of_other_rules_are_in_use_and_those_of_ours_are_not() {
        let rules =
            [rule("", (0xca6c, u32::MAX), 99), rule("", (0x8_0000, 0xff_0000), 52), Rule::ours(0x1000)];
        let bits: Vec<_> = marks(&rules).iter().map(|used| used.bits).collect();
        assert_eq!(bits, [0xca6c, 0xff_0000]);
        assert_eq!(marks(&rules)[0].by, "ip rule 0: from all fwmark 0xca6c lookup 99");
    }
}
