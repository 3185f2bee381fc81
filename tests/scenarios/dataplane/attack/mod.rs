//! As an attacker: forged packets from a container, from a neighbour on the LAN and from Windows.
//!
//! Each test sends the same forgeries without wsl-mirror and with it. The rule: nothing is reached with wsl-mirror that
//! could not be reached without it.
//!
//! Known to be open, and left out by [`forgery::Forgery::is_known_open`]: a packet 127.0.0.1:w -> alias:P from elsewhere
//! than `loopback0` gets into the live carried flow w -> P; before Linux 6.2 also an answer alias:P -> 127.0.0.1:w.
//! What Windows itself sends from the source alias, as nobody else can, is of its own flows.
//! Where FORWARD accepts, a packet alias:P -> source alias:w of a neighbour leaves an entry whose answers, source alias:w ->
//! alias:P, pass the engine's rule: they reach the listener of P, if it has all addresses, and not the container behind it.
//! Under Docker's raw DROP, a neighbour's datagram 127.0.0.1:P -> 127.0.0.1:w blocks the UDP flow w -> P: its entry makes
//! the client's datagrams answers to a program of Linux, which pass.

mod forgery;
mod live_flows;
mod matrix;
mod network;
mod planting;
mod table;

use wsl_mirror_lab::pace;

/// All of these; on emulated CPUs every seventh, which leaves some of each kind.
fn thinned<T>(all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    all.into_iter().step_by(if pace::is_emulated() && !pace::is_soak() { 7 } else { 1 })
}
