//! What netfilter did with a connection: conntrack's entries, and the counters of Docker's DNAT rules.

use anyhow::{Result, bail};

use crate::{Namespace, netfilter};

/// The entries of conntrack, one line each, as `conntrack -L -o extended` prints them.
pub fn conntrack(namespace: &Namespace) -> Result<Vec<String>> {
    let listed = namespace.run("conntrack", ["-L", "-o", "extended"])?;
    Ok(listed.stdout.lines().map(str::to_owned).collect())
}

/// The entries whose line has every one of `fields` among its words: `["tcp", "src=127.0.0.1", "dport=8080"]`.
pub fn conntrack_with(namespace: &Namespace, fields: &[&str]) -> Result<Vec<String>> {
    let mut entries = conntrack(namespace)?;
    entries.retain(|entry| fields.iter().all(|field| entry.split_whitespace().any(|word| word == *field)));
    Ok(entries)
}

/// The same without what changes from second to second: the words that are numbers alone.
pub fn conntrack_without_times(namespace: &Namespace, fields: &[&str]) -> Result<Vec<String>> {
    let is_number = |word: &str| word.chars().all(|digit| digit.is_ascii_digit());
    let lines = conntrack_with(namespace, fields)?;
    Ok(lines
        .iter()
        .map(|line| line.split_whitespace().filter(|word| !is_number(word)).collect::<Vec<_>>().join(" "))
        .collect())
}

/// The same with each entry's number (`id=`): an entry that was made anew has another one.
pub fn conntrack_identities(namespace: &Namespace, fields: &[&str]) -> Result<Vec<String>> {
    let is_steady =
        |word: &&str| !word.starts_with("use=") && !word.chars().all(|digit| digit.is_ascii_digit());
    let listed = namespace.run("conntrack", ["-L", "-o", "extended,id"])?;
    let mut entries: Vec<_> = listed
        .stdout
        .lines()
        .filter(|entry| fields.iter().all(|field| entry.split_whitespace().any(|word| word == *field)))
        .map(|entry| entry.split_whitespace().filter(is_steady).collect::<Vec<_>>().join(" "))
        .collect();
    entries.sort();
    Ok(entries)
}

/// Makes an entry, by the arguments of `conntrack -I`.
pub fn conntrack_insert(namespace: &Namespace, arguments: &str) -> Result<()> {
    namespace.run("conntrack", ["-I"].into_iter().chain(arguments.split_whitespace())).map(drop)
}

/// Deletes the entries that `conntrack -D` selects by these arguments: at least one.
pub fn conntrack_delete(namespace: &Namespace, arguments: &str) -> Result<()> {
    namespace.run("conntrack", ["-D"].into_iter().chain(arguments.split_whitespace())).map(drop)
}

/// Forgets every connection, as `conntrack -F` does.
pub fn conntrack_flush(namespace: &Namespace) -> Result<()> {
    netfilter::flush_conntrack(namespace)
}

/// What an engine does to published ports, without an engine: a DNAT of 8000 to 8999 to a container which nobody will
/// ask for an answer. Nothing gets to a listener but what is steered.
pub fn trap(namespace: &Namespace) -> Result<()> {
    const TRAP: &str = "add table ip engine
        add chain ip engine pre { type nat hook prerouting priority dstnat; }
        add rule ip engine pre fib daddr type local tcp dport 8000-8999 dnat to 192.0.2.7:80
        add rule ip engine pre fib daddr type local udp dport 8000-8999 dnat to 192.0.2.7:80";
    namespace.run("nft", [TRAP]).map(drop)
}

/// A DNAT rule of Docker's nat chain and what it has counted. nat chains see the first packet of a
/// connection only: `packets` counts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnatRule {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The published port.
    pub port: u16,
    /// How many connections it has redirected.
    pub packets: u64,
    /// The line of `iptables -L -v -n -x`.
    pub line: String,
}

/// The DNAT rules of `DOCKER` in table nat.
pub fn dnat_rules(namespace: &Namespace) -> Result<Vec<DnatRule>> {
    let listed = namespace.run("iptables", ["-w", "5", "-t", "nat", "-L", "DOCKER", "-v", "-n", "-x"])?;
    Ok(listed.stdout.lines().filter_map(parse_dnat_rule).collect())
}

/// How many connections the DNAT rule (or rules) for a published port have redirected; an error if there is
/// none.
pub fn dnat_packets(namespace: &Namespace, protocol: &str, port: u16) -> Result<u64> {
    let rules = dnat_rules(namespace)?;
    let matching: Vec<_> =
        rules.iter().filter(|rule| rule.protocol == protocol && rule.port == port).collect();
    if matching.is_empty() {
        bail!("no DNAT rule for {protocol} port {port} in chain DOCKER; there are: {rules:#?}");
    }
    Ok(matching.iter().map(|rule| rule.packets).sum())
}

fn parse_dnat_rule(line: &str) -> Option<DnatRule> {
    let words: Vec<_> = line.split_whitespace().collect();
    if words.get(2) != Some(&"DNAT") {
        return None;
    }
    let (protocol, port) =
        words.windows(2).find_map(|pair| Some((pair[0], pair[1].strip_prefix("dpt:")?)))?;
    Some(DnatRule {
        protocol: protocol.to_owned(),
        port: port.parse().ok()?,
        packets: words.first()?.parse().ok()?,
        line: line.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::parse_dnat_rule;

    #[test]
    fn reads_the_counter_of_a_rule_and_skips_the_rest() {
        let line = "       3      180 DNAT       6    --  !docker0 *       0.0.0.0/0            0.0.0.0/0            tcp \
             dpt:8080 to:172.17.0.2:80";
        let rule = parse_dnat_rule(line).map(|rule| (rule.protocol, rule.port, rule.packets));
        assert_eq!(rule, Some(("tcp".to_owned(), 8080, 3)));
        let line = "  0 0 RETURN 0 -- docker0 * 0.0.0.0/0 0.0.0.0/0";
        assert_eq!(parse_dnat_rule(line), None);
    }
}
