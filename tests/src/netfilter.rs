//! `nf_tables` and conntrack by netlink, in this process: asked this often, a program each time costs too much.

use std::io;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::Namespace;

// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
// include/uapi/linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYS_NFTABLES: u16 = 10;
// include/uapi/linux/netfilter/{nfnetlink_conntrack,nf_tables}.h
const CT_DELETE: u16 = (1 << 8) | 2;
const GET_TABLE: u16 = (SUBSYS_NFTABLES << 8) | 1;
const DELETE_TABLE: u16 = (SUBSYS_NFTABLES << 8) | 2;
const GET_GENERATION: u16 = (SUBSYS_NFTABLES << 8) | 16;
/// `NFTA_TABLE_NAME`, `NFTA_GEN_ID`: the one attribute that is read here is the first in both.
const FIRST: u16 = 1;

/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 16 + 4;

/// A table of `nf_tables`: family and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Table {
    family: u8,
    name: Vec<u8>,
}

/// Forgets every connection, as `conntrack -F` does.
pub(crate) fn flush_conntrack(namespace: &Namespace) -> Result<()> {
    ask(namespace, &message(CT_DELETE, ACK, 0, 0, &[])).context("flushing conntrack")?;
    Ok(())
}

/// A number that is another one after every change to any rule of the namespace.
pub(crate) fn generation(namespace: &Namespace) -> Result<u32> {
    let answers = ask(namespace, &message(GET_GENERATION, ACK, 0, 0, &[]));
    let answers = answers.context("asking nf_tables for its generation")?;
    let number = answers.first().and_then(|answer| first_attribute(answer)?.try_into().ok());
    Ok(u32::from_be_bytes(number.context("nf_tables did not tell its generation")?))
}

/// All tables.
pub(crate) fn tables(namespace: &Namespace) -> Result<Vec<Table>> {
    let answers = ask(namespace, &message(GET_TABLE, DUMP, 0, 0, &[])).context("listing tables")?;
    let table =
        |answer: &Vec<u8>| Some(Table { family: answer[16], name: first_attribute(answer)?.to_vec() });
    answers.iter().map(table).collect::<Option<_>>().context("a table without a name")
}

/// Deletes a table with all that is in it.
pub(crate) fn delete_table(namespace: &Namespace, table: &Table) -> Result<()> {
    let length = u16::try_from(4 + table.name.len())?;
    let mut attribute = [length.to_ne_bytes(), FIRST.to_ne_bytes()].concat();
    attribute.extend(&table.name);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    let batch = [
        message(BATCH_BEGIN, 0, 0, SUBSYS_NFTABLES, &[]),
        message(DELETE_TABLE, ACK, table.family, 0, &attribute),
        message(BATCH_END, 0, 0, SUBSYS_NFTABLES, &[]),
    ];
    ask(namespace, &batch.concat())
        .with_context(|| format!("deleting the table {}", String::from_utf8_lossy(&table.name)))?;
    Ok(())
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one question a socket.
    message.extend([0; 8]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

/// Sends a question that is acknowledged, or answered by a list, and gives the answers.
fn ask(namespace: &Namespace, question: &[u8]) -> Result<Vec<Vec<u8>>> {
    let open = || {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))
    };
    let socket = namespace.enter(open).context("opening a netlink socket")?;
    send(&socket, question, SendFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            ensure!(rest.len() >= HEADERS, "a netlink message that ends early");
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            ensure!((HEADERS..=rest.len()).contains(&length), "a netlink message of {length} bytes");
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let error = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
                    return if error == 0 {
                        Ok(answers)
                    } else {
                        Err(io::Error::from_raw_os_error(-error).into())
                    };
                }
                _ => answers.push(rest[..length].to_vec()),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

fn first_attribute(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.get(HEADERS..)?;
    while let [low, high, kind_low, kind_high, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if u16::from_ne_bytes([kind_low, kind_high]) == FIRST {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}
