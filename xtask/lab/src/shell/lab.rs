//! The lab of the shell: how its Windows starts, and what an order changes.

use std::time::Duration;

use anyhow::Result;
use wsl_mirror_lab::{Dropped, Garbled, HalfMade, Lab, LabBuilder, Transport};
use xtask::shell::{Garble, Packet, Part, Port, Protocol, Switches};

use super::order::{Change, Forgotten, Order};

/// A lab whose Windows starts as the switches say.
pub(super) fn build(switches: &Switches) -> Result<Lab> {
    let lab = builder(switches).build()?;
    for port in &switches.take {
        lab.take_port(transport(*port), port.number)?;
    }
    for port in &switches.block {
        lab.block_port(transport(*port), port.number)?;
    }
    Ok(lab)
}

fn builder(switches: &Switches) -> LabBuilder {
    let mut lab = Lab::builder()
        .wslinfo(false)
        .ignored_ports(switches.ignored_ports.iter().copied())
        .host_address_loopback(switches.host_address_loopback)
        .silent_ipv6(!switches.refuse_ipv6)
        .ghosts(!switches.no_ghosts);
    for range in &switches.refuse_binds {
        lab = lab.refuse_binds(range.0.clone());
    }
    if let Some(garble) = &switches.garble {
        lab = lab.garbles(&kinds(garble), garble.per_mille);
    }
    if let Some(seconds) = switches.give_up_after {
        lab = lab.gives_up_after(Duration::from_secs(seconds));
    }
    lab
}

/// Takes a part of the network away, as the switches say. Docker starts before: it answers to nobody without `eth0`.
pub(super) fn half_make(lab: &Lab, switches: &Switches) -> Result<()> {
    switches.half_made.map_or(Ok(()), |part| lab.half_make_network(missing(part)))
}

/// Carries an order out; gives what the user reads.
pub(super) fn carry_out(lab: &Lab, order: &Order) -> Result<String> {
    let each = |ports: &[Port], change: fn(&Lab, Transport, u16) -> Result<()>| {
        ports.iter().try_for_each(|port| change(lab, transport(*port), port.number))
    };
    match order {
        Order::Refuse { ranges } => {
            lab.refuse_binds(&ranges.iter().map(|range| range.0.clone()).collect::<Vec<_>>())?;
        }
        Order::Take { ports } => each(ports, Lab::take_port)?,
        Order::GiveBack { ports } => each(ports, Lab::give_port_back)?,
        Order::Block { ports } => each(ports, Lab::block_port)?,
        Order::Unblock { ports } => each(ports, Lab::unblock_port)?,
        Order::BlockOutbound { ports } => each(ports, Lab::block_port_outbound)?,
        Order::UnblockOutbound { ports } => each(ports, Lab::unblock_port_outbound)?,
        Order::Garble { kinds: garble } => lab.garble(&kinds(garble), garble.per_mille)?,
        Order::Forget(Forgotten::Flows) => lab.forget_flows()?,
        Order::Forget(Forgotten::Binds) => lab.forget_binds_and_flows()?,
        Order::Network(Change::Anew) => {
            lab.make_network_anew()?;
            let leased = lab.leased();
            return Ok(format!(
                "gateway {}, LAN address {}, leased ports {} to {}\n",
                lab.gateway(),
                lab.lan_address(),
                leased.start(),
                leased.end()
            ));
        }
        Order::Network(Change::HalfMade { part }) => lab.half_make_network(missing(*part))?,
        Order::Network(Change::Complete { part }) => lab.complete_network(missing(*part))?,
        Order::Dropped => return counters(lab),
    }
    Ok(String::new())
}

/// How many packets Windows dropped and garbled, a line each.
fn counters(lab: &Lab) -> Result<String> {
    Ok(format!(
        "unknown flow     {}\nfirewall         {}\nnever sent       {}\nto [::1]         {}\nports garbled    {}\n",
        lab.dropped(Dropped::UnknownFlow)?,
        lab.dropped(Dropped::Firewall)?,
        lab.dropped(Dropped::NeverSent)?,
        lab.dropped(Dropped::Ipv6)?,
        lab.garbled()?
    ))
}

fn transport(port: Port) -> Transport {
    match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

fn kinds(garble: &Garble) -> Vec<Garbled> {
    let kind = |kind: &Packet| match kind {
        Packet::Syn => Garbled::Syn,
        Packet::SynAck => Garbled::SynAck,
        Packet::Rst => Garbled::Rst,
    };
    garble.kinds.iter().map(kind).collect()
}

fn missing(part: Part) -> HalfMade {
    match part {
        Part::NoLoopback0 => HalfMade::NoLoopback0,
        Part::Eth0Down => HalfMade::Eth0Down,
        Part::NoTable127 => HalfMade::NoTable127,
        Part::NoNeighbour => HalfMade::NoNeighbour,
    }
}
